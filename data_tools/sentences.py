"""Paragraphs into sentences, for Korean and for Latin scripts: where a sentence may end, with a mark or without, and what prevents it.

Only the written form decides: regular expressions, in linear time. benchmarks/sentences.py compares this with a morphological analyser.
"""

import re
from bisect import bisect_left
from collections.abc import Callable
from functools import cache

from data_tools.errors import UserError

_CLOSERS = "\"'”’)\\]」』》〉〕】"
# An end mark (with its closing quotes, brackets and note numbers) before white space; or Korean "…다." glued to the next sentence.
# Because of the look-behind, a run of marks is tried only from its first: linear time on any text.
_END = re.compile(
    f"(?<![.!?…。！？])(?:[.!?…。！？]+[{_CLOSERS}]*(?:\\[\\d{{1,3}}\\])*(?=\\s)|[。！？]+[{_CLOSERS}]*(?=\\S))|(?<=[다요])\\.(?=[가-힣])"
)
# Marks within a quotation or brackets do not end a sentence of the paragraph.
_ENCLOSED = re.compile(
    r"\([^()\n]{1,300}\)|\[[^\[\]\n]{1,300}\]|“[^“”\"\n]{1,300}[”\"]|‘[^‘’\n]{1,300}’|「[^「」\n]{1,300}」|『[^『』\n]{1,300}』|《[^《》\n]{1,300}》"
    r"""|〈[^〈〉\n]{1,300}〉|(?<!\S)"[^"“”\n]{1,300}["”]|(?<!\S)'[^'‘’\n]{1,300}['’](?![A-Za-z])"""
)
_OPENER = re.compile(r"[(\[“‘「『《〈\"']")
# What comes before a full stop that does not end a sentence: a number (a date, an item of a list), an initial, an abbreviation.
_NO_END_BEFORE = re.compile(
    r"""(?:^|[\s(\["'“‘])(?:\d{1,4}|\d{4}\.\d{1,2}(?:\.\d{1,2})?|[A-Z]|[A-Z](?:\.[A-Z])+|[가나다라마바사아자차카타파하]
    |Mr|Mrs|Ms|Dr|St|Prof|Gen|Sen|Rev|Lt|Col|Capt|Jr|Sr|vs|cf|ca|al|No|Vol|vol|pp|Fig|fig|e\.g|i\.e)$""",
    re.VERBOSE,
)
_YEAR_BEFORE = re.compile(r"\s\d{3,4}$")
# What comes after a quotation when the sentence goes on: "…" 라고 말했다
_QUOTE_GOES_ON = re.compile(r"\s+(?:이?라고|이?라는|이?라며|이?라면서|하고|하며|라|고|는|며|면서|란|이란)(?=[\s,.]|$)")
# Korean without a mark: endings that no noun shares and after which a sentence seldom goes on. Not among them: 하다, 이다 (하다 보니,
# 아이다), 갔다, 들었다 (갔다 온, 들었다 놓는), 함, 임, 됨 (잠수함, 모임, 삭제됨 등). Each was tried on an encyclopedia, where hardly any
# should split.
_B = "".join(chr(code) for code in range(0xAC00 + 17, 0xD7A4, 28))  # the syllables that end in ㅂ
_PREDICATE = f"""(?:(?<=[{_B}]니다[ ])|(?<=[것적]이다[ ])|(?<=[가-힣][한된는인진킨른든없같않많좋싶]다[ ])|(?<=것임[ ])|(?<=[요죠다]~[ ])
    |(?<=[였했됐있][다음][ ])|(?<=[되있없이]었[다음][ ])|(?<=[않많받]았[다음][ ])|(?<=[려뤄]졌[다음][ ])
    |(?<=[가-힣][세네내어아해예에여워와져겨려봐돼까나군텐서뻐래게커]요[ ])(?<!안녕하세요[ ])
    |(?<=[든라더하시이있없집]구요[ ])|(?<=[었했았겠있없]지요[ ])
    |(?<=[알들]려줘[ ])|(?<=보여줘[ ])|(?<=찾아줘[ ])|(?<=천해줘[ ])|(?<=[ ]봐줘[ ])
    |(?<=[있겠가]니[ ])|(?<=[있뭐크]냐[ ])|(?<=[릴할갈될]까[ ]))"""
# What begins no sentence: the rest of a quotation or of a longer predicate (했다 하더라도, 있다 전해진다), a particle, "and the like".
_GOES_ON = """(?:하[여더고며면는니기였겠자시셨오옵므던게]|하[나지][ ,]|한[다들 ]|할|함|합|해[ 서도야]|\\S*[했졌였었았됐]|[갔왔]|온[ ]|가[ ]
    |생각|여[겨기긴]|판단|말[하한고까을]|주장|약속|응답|다짐|전해|싶|못해|궁[금리]|걱정|염려|우려|두려|불안|고민|모[르른를]
    |보[니면고는기]|볼[ ]|다시|봐|치[고더]|손[ ]|뿐|점[에을은이]|아니라|인지|또는|혹은|외[ ]|수[ 는가를]|[역행][ ·]
    |(?:이?라[고는며면]?|[은는을를의에와과도로고며면란던]|으로|에서|면서|등[은을이의]?|및)[ ,.])"""
_UNMARKED_END = re.compile(
    f"""[ ](?<=[다요음임줘니냐까~][ ]){_PREDICATE}(?!{_GOES_ON})(?=["“‘'《〈「『]?\\w\\S*(?<![.!?…])[ ])""", re.VERBOSE
)
_QUESTION = re.compile(r"(?:어떻게|얼마나?|어디|누구|무슨|언제|뭐|뭔|몇)\S*(?: \S+){0,2}$")
_SHORT = 40  # characters
_HAS_CONTENT = re.compile(r"\w")
_SPACE = re.compile(r"\s+")


@cache
def make_splitter(name: str) -> Callable[[str], list[str]]:
    """The function that splits a text whose lines are paragraphs: "rules", "kiwi", or "lines", which takes each line for a sentence.

    Worker processes call this too.
    """
    if name == "rules":
        return split_sentences
    if name == "kiwi":
        return _make_kiwi()
    if name == "lines":
        return _split_lines
    raise UserError(f"--splitter: expected rules, kiwi or lines, found {name!r}")


def _make_kiwi() -> Callable[[str], list[str]]:
    """Kiwi, a morphological analyser. An extra: its model is large, and it is some hundred times slower than the rules."""
    try:
        from kiwipiepy import Kiwi
    except ImportError as error:
        raise UserError(
            "--splitter kiwi needs kiwipiepy, which is not installed; run pip install -e '.[kiwi]', or use --splitter rules"
        ) from error
    kiwi = Kiwi(num_workers=1)

    def split(text: str) -> list[str]:
        paragraphs = (_SPACE.sub(" ", line).strip() for line in text.splitlines())
        pieces = (piece.text.strip() for paragraph in paragraphs if paragraph for piece in kiwi.split_into_sents(paragraph))
        return [piece for piece in pieces if _HAS_CONTENT.search(piece)]

    return split


def _split_lines(text: str) -> list[str]:
    lines = (_SPACE.sub(" ", line).strip() for line in text.splitlines())
    return [line for line in lines if _HAS_CONTENT.search(line)]


def split_sentences(text: str) -> list[str]:
    """The sentences of a text whose lines are paragraphs. White space becomes single spaces; what has no letter or digit is left out."""
    sentences = []
    for paragraph in text.splitlines():
        if paragraph:
            sentences += split_paragraph(paragraph)
    return sentences


def split_paragraph(paragraph: str) -> list[str]:
    """The sentences of one paragraph."""
    paragraph = _SPACE.sub(" ", paragraph).strip()
    sentences = []
    start = 0
    enclosed: tuple[list[int], list[int]] | None = None  # where quotations and brackets begin and end
    for match in sorted((*_END.finditer(paragraph), *_UNMARKED_END.finditer(paragraph)), key=re.Match.end):
        end = match.end()
        if not (_may_end_unmarked if match.group() == " " else _may_end)(paragraph, start, match):
            continue
        if enclosed is None:
            enclosed = _find_enclosed(paragraph)
        nearest = bisect_left(enclosed[0], end) - 1
        if nearest >= 0 and end < enclosed[1][nearest]:
            continue
        sentences.append(paragraph[start:end])
        start = end
    sentences.append(paragraph[start:])
    return [sentence.strip() for sentence in sentences if _HAS_CONTENT.search(sentence)]


def _find_enclosed(paragraph: str) -> tuple[list[int], list[int]]:
    if not _OPENER.search(paragraph):
        return [], []
    spans = [match.span() for match in _ENCLOSED.finditer(paragraph)]
    return [left for left, _ in spans], [right for _, right in spans]


def _may_end_unmarked(paragraph: str, start: int, match: re.Match[str]) -> bool:
    """Whether what ends without a mark is a sentence: two words or more, a short request, or a question with a question word."""
    nearest = paragraph[max(start, match.start() - _SHORT) : match.start()].lstrip()
    if nearest[-1] == "줘":
        return match.start() - start <= _SHORT and " " in nearest and "," not in nearest
    if nearest[-1] in "니냐까":
        return _QUESTION.search(nearest) is not None
    return " " in nearest


def _may_end(paragraph: str, start: int, match: re.Match[str]) -> bool:
    marks, end = match.group(), match.end()
    following = paragraph[end : end + 12]
    next_character = following.lstrip()[:1]
    is_korean = "가" <= paragraph[match.start() - 1 : match.start()] <= "힣"
    if next_character.islower() and not is_korean:  # "approx. two" goes on; after "…이다." a sentence may begin with "iOS는"
        return False
    if next_character.isupper() and _YEAR_BEFORE.search(paragraph, max(start, match.start() - 5), match.start()):
        return True  # "... in 1539. Various factions ..."
    if marks == "." and _NO_END_BEFORE.search(paragraph, max(start, match.start() - 12), match.start()):
        return False
    return not (marks[-1] in "\"'”’」』" and _QUOTE_GOES_ON.match(following))
