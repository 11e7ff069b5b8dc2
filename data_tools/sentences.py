"""Paragraphs into sentences, for Korean and for Latin scripts: one regular expression for where a sentence may end, and what forbids it."""

import re
from bisect import bisect_left

_CLOSERS = "\"'”’)\\]」』》〉〕】"
# An end mark (with its closing quotes, brackets and note numbers) before white space; or Korean "…다." glued to the next sentence.
# The look-behind lets a run of marks be tried once, from its first: linear time on any text.
_END = re.compile(
    f"(?<![.!?…。！？])(?:[.!?…。！？]+[{_CLOSERS}]*(?:\\[\\d{{1,3}}\\])*(?=\\s)|[。！？]+[{_CLOSERS}]*(?=\\S))|(?<=[다요])\\.(?=[가-힣])"
)
# Marks within a quotation or brackets end no sentence of the paragraph's own.
_ENCLOSED = re.compile(
    r"\([^()\n]{1,300}\)|\[[^\[\]\n]{1,300}\]|“[^“”\n]{1,300}”|‘[^‘’\n]{1,300}’|「[^「」\n]{1,300}」|『[^『』\n]{1,300}』|《[^《》\n]{1,300}》"
    r'|〈[^〈〉\n]{1,300}〉|(?<!\S)"[^"\n]{1,300}"'
)
_OPENER = re.compile(r"[(\[“‘「『《〈\"]")
# What stands before a full stop that ends nothing: a number (a date, an item of a list), an initial, an abbreviation.
_NO_END_BEFORE = re.compile(
    r"""(?:^|[\s(\["'“‘])(?:\d{1,4}|\d{4}\.\d{1,2}(?:\.\d{1,2})?|[A-Z]|[A-Z](?:\.[A-Z])+|[가나다라마바사아자차카타파하]
    |Mr|Mrs|Ms|Dr|St|Prof|Gen|Sen|Rev|Lt|Col|Capt|Jr|Sr|vs|cf|ca|al|No|Vol|vol|pp|Fig|fig|e\.g|i\.e)$""",
    re.VERBOSE,
)
_YEAR_BEFORE = re.compile(r"\s\d{3,4}$")
# What follows a quotation that goes on: "…" 라고 말했다
_QUOTE_GOES_ON = re.compile(r"\s+(?:이?라고|이?라는|이?라며|이?라면서|하고|하며|라|고|는|며|면서|란|이란)(?=[\s,.]|$)")
_HAS_CONTENT = re.compile(r"\w")
_SPACE = re.compile(r"\s+")


def split_sentences(text: str) -> list[str]:
    """The sentences of a text whose lines are paragraphs: white space made single, pieces without a letter or digit left out."""
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
    for match in _END.finditer(paragraph):
        end = match.end()
        if not _may_end(paragraph, start, match):
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


def _may_end(paragraph: str, start: int, match: re.Match[str]) -> bool:
    marks, end = match.group(), match.end()
    following = paragraph[end : end + 12]
    next_character = following.lstrip()[:1]
    if next_character.islower():  # Latin: the sentence goes on (Hangul has no case)
        return False
    if next_character.isupper() and _YEAR_BEFORE.search(paragraph, max(start, match.start() - 5), match.start()):
        return True  # "... in 1539. Various factions ..."
    if marks == "." and _NO_END_BEFORE.search(paragraph, max(start, match.start() - 12), match.start()):
        return False
    return not (marks[-1] in "\"'”’」』" and _QUOTE_GOES_ON.match(following))
