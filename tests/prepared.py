"""Invented Korean documents, and data_tools.prepare called as its users call it."""

import random

from data_tools import prepare as prepare_command

SYLLABLES = "가나다라마바사아자차카타파하고노도로모보소오조초코토포호"


def invented_documents(count: int, seed: int) -> list[list[str]]:
    """Documents of sentences, each of which is unique."""
    generator = random.Random(seed)
    words = ["".join(generator.choice(SYLLABLES) for _ in range(generator.randint(1, 4))) for _ in range(800)]
    return [
        [
            f"{' '.join(generator.choice(words) for _ in range(generator.randint(3, 9)))} {document}의 {number}이다."
            for number in range(generator.randint(1, 20))
        ]
        for document in range(count)
    ]


DOCUMENTS = invented_documents(120, 0)


def run(*arguments: object) -> None:
    prepare_command.prepare(prepare_command.parse_arguments([str(argument) for argument in arguments]))
