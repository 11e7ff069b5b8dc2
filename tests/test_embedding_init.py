"""The first embeddings of a new vocabulary, on two small languages made here: the same topics, other words."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data_tools.errors import UserError
from tests.vocabularies import ROLES, tokenizer_of
from trainer import embedding_init, static_vectors
from trainer.embedding_init import held_out_pieces, initial_embeddings
from trainer.lexicon import translated_pieces
from trainer.pieces import Pieces

TOPICS, WORDS, HIDDEN = 20, 9, 24


def spelling(number: int, first: str) -> str:
    return "".join(chr(ord(first) + number // 20**place % 20) for place in range(3))


def make_languages() -> SimpleNamespace:
    """English: TOPICS x WORDS words, those of a topic near one another. Korean: a corpus whose sentences keep to a topic, and a
    lexicon that leaves out a third of the words."""
    rng = np.random.default_rng(0)
    numbers = range(TOPICS * WORDS)
    roles = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "pad": "[PAD]"}
    english = tokenizer_of(roles, [spelling(number, "a") for number in numbers] + ["7", "##7", ",", "##,", "new", "##ing"])
    seed = rng.normal(0.3, 1.0, (len(english), HIDDEN))
    seed[5 : 5 + len(numbers)] = np.repeat(rng.normal(0.3, 1.0, (TOPICS, HIDDEN)), WORDS, axis=0)
    seed[5 : 5 + len(numbers)] += rng.normal(0.0, 0.3, (len(numbers), HIDDEN))
    korean = tokenizer_of(ROLES, ["▁" + spelling(number, "가") for number in numbers] + ["▁7", "7", ",", "▁New", "ing", "▁뷁"])
    tokens = [5 + topic * WORDS + word for topic in rng.integers(0, TOPICS, 2500) for word in rng.integers(0, WORDS, 12)]
    split = SimpleNamespace(tokens=np.array(tokens, dtype=np.uint16))
    pairs = [f"{spelling(number, 'a').upper()}\t{spelling(number, '가')}\n" for number in numbers if number % 3]
    corpus = SimpleNamespace(split=lambda name: {"train": split}[name])
    return SimpleNamespace(english=english, seed=torch.from_numpy(seed).float(), korean=korean, corpus=corpus, lexicon="".join(pairs))


@pytest.fixture(scope="module")
def languages() -> SimpleNamespace:
    return make_languages()


def from_dictionary(languages: SimpleNamespace, folder: Path, lexicon: str) -> tuple[torch.Tensor, dict[str, Any]]:
    (folder / "lexicon.tsv").write_text(lexicon, encoding="utf-8")
    return initial_embeddings(
        "dictionary", languages.seed, languages.english, languages.korean, languages.corpus, folder / "lexicon.tsv", 0.02, 0
    )


def test_anchors_need_no_lexicon(languages: SimpleNamespace) -> None:
    """The map is learnt from pieces that both vocabularies have: here a third of the words, besides."""
    shared = [number for number in range(TOPICS * WORDS) if number % 3]
    pieces = ["▁" + spelling(number, "a" if number in set(shared) else "가") for number in range(TOPICS * WORDS)]
    korean = tokenizer_of(ROLES, pieces)
    rows, report = initial_embeddings("anchors", languages.seed, languages.english, korean, languages.corpus, None, 0.02, 0)
    assert report["copied"] == len(shared) and report["lexicon_pairs"] == report["translated"] == 0
    centre = languages.seed.mean(0)
    words = torch.nn.functional.normalize(languages.seed[5 : 5 + TOPICS * WORDS] - centre, dim=1)
    others = [number for number in range(TOPICS * WORDS) if number % 3 == 0]
    nearest = (torch.nn.functional.normalize(rows[[5 + number for number in others]] - centre, dim=1) @ words.T).argmax(1)
    right = sum(int(place) // WORDS == number // WORDS for place, number in zip(nearest, others, strict=True))
    assert right > 0.5 * len(others), right  # chance: a twentieth
    korean = tokenizer_of(ROLES, ["▁" + spelling(number, "a") for number in range(TOPICS * WORDS)])  # nothing is left to map
    rows, report = initial_embeddings("anchors", languages.seed, languages.english, korean, languages.corpus, None, 0.02, 0)
    assert torch.equal(rows[5:], languages.seed[5 : 5 + TOPICS * WORDS]) and report["neighbours"] == 0
    with pytest.raises(UserError, match="anchors: 5 of the 5 shared pieces"):
        initial_embeddings("anchors", languages.seed, languages.english, languages.korean, languages.corpus, None, 0.02, 0)


def test_co_occurrences_alone_lie_to_each_other_as_topics_do_and_are_as_wide_as_the_seeds(languages: SimpleNamespace) -> None:
    rows, report = initial_embeddings(
        "co-occurrences", languages.seed, languages.english, languages.korean, languages.corpus, None, 0.02, 0
    )
    count, seed = TOPICS * WORDS, languages.seed
    assert report["special"] == 5 and report["co-occurrences"] == count and report["random"] == 6
    words = seed[languages.english.convert_tokens_to_ids([spelling(number, "a") for number in range(count)] + ["new"])]
    placed = rows[5 : 5 + count]
    near = torch.nn.functional.normalize(placed - placed.mean(0), dim=1)
    nearest = (near @ near.T).fill_diagonal_(-1).argmax(1)
    assert (nearest // WORDS == torch.arange(count) // WORDS).float().mean() > 0.9  # chance: a twentieth
    dimensions = min(static_vectors.DIMENSIONS, HIDDEN)
    (theirs, axes), (ours, own) = (np.linalg.eigh(np.cov(found.numpy().T, bias=True)) for found in (words, placed))
    assert np.allclose(ours[-dimensions:], theirs[-dimensions:], rtol=1e-3) and torch.allclose(placed.mean(0), words.mean(0), atol=1e-4)
    assert abs((axes[:, -3:] * own[:, -3:]).sum(0)).min() > 0.99
    ids, english = languages.korean.convert_tokens_to_ids, languages.english.convert_tokens_to_ids
    for own, theirs_ in {"<s>": "[CLS]", "<pad>": "[PAD]", "</s>": "[SEP]", "<unk>": "[UNK]", "<mask>": "[MASK]"}.items():
        assert torch.equal(rows[ids(own)], seed[english(theirs_)]), own


def test_dictionary_puts_every_piece_where_it_belongs(languages: SimpleNamespace, tmp_path: Path) -> None:
    rows, report = from_dictionary(languages, tmp_path, languages.lexicon)
    seed, count = languages.seed, TOPICS * WORDS
    assert rows.dtype == torch.float32 and rows.shape == (len(languages.korean), HIDDEN)

    ids, english = languages.korean.convert_tokens_to_ids, languages.english.convert_tokens_to_ids
    roles = {"<s>": "[CLS]", "<pad>": "[PAD]", "</s>": "[SEP]", "<unk>": "[UNK]", "<mask>": "[MASK]"}
    shared = {"▁7": "7", "7": "##7", ",": ",", "▁New": "new", "ing": "##ing"}  # no one trained the seed's "##,"
    for piece, source in {**roles, **shared}.items():
        assert torch.equal(rows[ids(piece)], seed[english(source)]), piece

    # A word that the lexicon lacks: near the English words of its topic. Chance is one in TOPICS.
    centred = torch.nn.functional.normalize(seed - seed.mean(0), dim=1)
    unknown = [number for number in range(count) if number % 3 == 0]
    nearest = (
        torch.nn.functional.normalize(rows - seed.mean(0), dim=1)[[5 + number for number in unknown]] @ centred[5 : 5 + count].T
    ).argmax(1)
    assert np.mean([int(found) // WORDS == number // WORDS for number, found in zip(unknown, nearest, strict=True)]) > 0.9

    # A word that it has: half its translation, half a mean of words of its topic.
    known = torch.tensor([number for number in range(count) if number % 3])
    other_half = 2 * rows[5 + known] - seed[5 + known]
    topics = seed[5 : 5 + count].view(TOPICS, WORDS, HIDDEN).mean(1)
    assert (torch.cdist(other_half, topics).argmin(1) == known // WORDS).float().mean() > 0.9
    assert (torch.cdist(rows[5 + known], seed[5 : 5 + count]).argmin(1) == known).float().mean() > 0.9

    assert {key: report[key] for key in ("special", "copied", "translated", "neighbours", "random")} == {
        "special": 5, "copied": 5, "translated": 120, "neighbours": 60, "random": 1,
    }  # fmt: skip
    assert report["map"]["pairs"] == 120 and report["map"]["held_out"] == 12 and report["map"]["top10"] > 0.8
    assert rows[ids("▁뷁")].norm() > 1  # never seen: drawn like the source, not left at zero


def test_a_held_out_word_is_held_out_in_all_its_pieces() -> None:
    texts = [f"{number:02}" for number in range(30)]
    ids = {(True, text): number for number, text in enumerate(texts)} | {(False, text): 30 + number for number, text in enumerate(texts)}
    found = held_out_pieces(set(range(60)) - {10, 55}, Pieces(ids, {}, True), every=10)
    # 10 stands within words only and 25 at their start only; the words are counted in the order of their first piece
    assert found == [0, 11, 21, 30, 41, 51]


def test_a_wrong_lexicon_gives_a_bad_map(languages: SimpleNamespace, tmp_path: Path) -> None:
    english, korean = zip(*(line.split("\t") for line in languages.lexicon.splitlines()), strict=True)
    shuffled = np.random.default_rng(1).permutation(len(korean))
    _, report = from_dictionary(languages, tmp_path, "".join(f"{word}\t{korean[i]}\n" for word, i in zip(english, shuffled, strict=True)))
    assert report["map"]["top10"] < 0.4


def test_any_process_gives_the_same_embeddings(tmp_path: Path) -> None:
    program = (
        "import hashlib, pathlib, sys; from tests.test_embedding_init import from_dictionary, make_languages\n"
        "made = make_languages(); rows, _ = from_dictionary(made, pathlib.Path(sys.argv[1]), made.lexicon)\n"
        "print(hashlib.sha256(rows.numpy().tobytes()).hexdigest())"
    )
    made = make_languages()
    here = hashlib.sha256(from_dictionary(made, tmp_path, made.lexicon)[0].numpy().tobytes()).hexdigest()
    environment = {**os.environ, "PYTHONHASHSEED": "17", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout.strip() == here


def test_nearest_and_weights_by_hand() -> None:
    rng = np.random.default_rng(0)
    mapped, words = (rng.normal(size=(n, 6)) for n in (30, 50))
    mapped, words = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (mapped, words))
    cosines = mapped @ words.T
    adjusted = cosines - np.sort(cosines, axis=0)[-10:].mean(0) / 2
    similarity, nearest = embedding_init._nearest(mapped, words, 4)
    np.testing.assert_array_equal(nearest, np.argsort(-adjusted, axis=1)[:, :4])
    np.testing.assert_allclose(similarity, -np.sort(-adjusted, axis=1)[:, :4], atol=1e-6)
    weights = np.exp(similarity / 0.1)
    expected = np.stack([sum(weights[n, k] * words[nearest[n, k]] for k in range(4)) / weights[n].sum() for n in range(30)])
    np.testing.assert_allclose(embedding_init._weighted_mean(similarity, nearest, words), expected, rtol=1e-5)


def test_random_methods_have_their_distributions(languages: SimpleNamespace) -> None:
    def draw(method: str, seed: int = 0) -> torch.Tensor:
        korean = tokenizer_of(ROLES, [f"▁{number}x" for number in range(20_000)])
        source = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 1, 2, 3]) + torch.tensor(
            [0.0, 1, -2, 5]
        )
        rows, report = initial_embeddings(method, source, languages.english, korean, None, None, 0.02, seed)
        assert report["random"] == len(rows) == 20_005
        expected = (torch.zeros(4), torch.full((4,), 0.02)) if method == "random" else (source.mean(0), source.std(0))
        assert torch.allclose(rows.mean(0), expected[0], atol=0.1 * float(expected[1].max()))
        assert torch.allclose(rows.std(0), expected[1], rtol=0.03)
        return rows

    for method in ("random", "source-statistics"):
        assert torch.equal(draw(method), draw(method)) and not torch.equal(draw(method), draw(method, seed=1))


def test_what_a_translated_piece_is_made_of(languages: SimpleNamespace, tmp_path: Path) -> None:
    """One that the corpus holds: half its translations' mean. One that it does not, here 뷁: that mean, of all of them."""
    seed, english = languages.seed, languages.english.convert_tokens_to_ids
    several = [spelling(number, "a") for number in (1, 2)]
    rows, _ = from_dictionary(languages, tmp_path, languages.lexicon + "".join(f"{word}\t뷁\n" for word in several))
    mean = seed[[english(word) for word in several]].mean(0)
    assert torch.allclose(rows[languages.korean.convert_tokens_to_ids("▁뷁")], mean, atol=1e-6)
    assert not torch.allclose(rows[6], seed[english(spelling(1, "a"))], atol=1e-2)
    korean = Pieces({(True, "가"): 0, (False, "가"): 1, (False, "나"): 2}, {}, False)
    pieces = SimpleNamespace(find_word=lambda word: {"go": 7, "be": 8}.get(word))
    assert translated_pieces([("go", "가"), ("be", "가"), ("be", "나"), ("no", "나")], pieces, korean) == {0: [7, 8], 1: [7, 8], 2: [8]}  # type: ignore[arg-type]


def test_lexicons_that_are_of_no_use(languages: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lexicon \S+: 0 of its 1 pairs"):
        from_dictionary(languages, tmp_path, "dog\t개\n")
    with pytest.raises(UserError, match=r"surgery\.lexicon"):
        initial_embeddings("dictionary", languages.seed, languages.english, languages.korean, languages.corpus, None, 0.02, 0)


def test_what_does_not_fit_is_told(languages: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text(languages.lexicon, encoding="utf-8")
    for method in ("dictionary", "anchors", "co-occurrences"):
        with pytest.raises(UserError, match=r"the seed's tokenizer has a piece \d+, its model 90 embeddings"):
            initial_embeddings(
                method, languages.seed[:90], languages.english, languages.korean, languages.corpus, tmp_path / "pairs.tsv", 0.02, 0
            )
    few = SimpleNamespace(split=lambda _: SimpleNamespace(tokens=np.array([6, 7, 6, 7, 9], dtype=np.uint16)))
    with pytest.raises(UserError, match="of the pieces with a known meaning stand in the corpus, expected"):
        from_dictionary(SimpleNamespace(**vars(languages) | {"corpus": few}), tmp_path, languages.lexicon)
