"""MediaWiki markup into paragraphs of prose. Dropped: templates, tables, references, comments, files, categories, formulas, headings."""

import html
import re

import mwparserfromhell
from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Tag, Text, Wikilink
from mwparserfromhell.wikicode import Wikicode

# fmt: off
_DROPPED_TAGS = frozenset({
    "ref", "references", "table", "gallery", "math", "chem", "timeline", "score", "syntaxhighlight", "source", "code", "pre",
    "imagemap", "templatedata", "graph", "mapframe", "style", "script", "section", "indicator",
})
# fmt: on
# A link to another namespace or wiki ("파일:...", "Category:...", "de:...") is no prose; a leading colon makes it an ordinary link.
_NAMESPACED = re.compile(
    r"\s*(?:파일|그림|분류|틀|사용자|위키백과|포털|File|Image|Media|Category|Template|User|Wikipedia|Portal|[a-z]{2,3}(?:-[a-z]+)*)\s*:",
    re.IGNORECASE,
)
_BLANKS = re.compile(r"[ \t\xa0]+")
_EMPTY_BRACKETS = re.compile(r"\s*[(（]\s*[,;:·、/]*\s*[)）]")
_BRACKET_EDGES = re.compile(r"([(（])\s*[,;、]+\s*|\s*[,;、]+\s*([)）])")
_MAGIC_WORD = re.compile(r"__[A-Z]+__")
_LIST_MARKS = re.compile(r"^[*#:;]+\s*", re.MULTILINE)


def to_paragraphs(markup: str) -> str:
    """The prose of a page, one paragraph a line. Raises whatever the parser does on a page it cannot read; the caller counts those."""
    parts: list[str] = []
    _collect(mwparserfromhell.parse(markup, skip_style_tags=False), parts)
    text = _MAGIC_WORD.sub("", "".join(parts))
    text = _LIST_MARKS.sub("", text)
    lines = []
    for line in text.splitlines():
        line = _BLANKS.sub(" ", line)
        line = _BRACKET_EDGES.sub(r"\1\2", line)
        line = _EMPTY_BRACKETS.sub("", line).strip()
        if line:
            lines.append(line)
    return "\n".join(lines)


def _collect(code: Wikicode, parts: list[str]) -> None:
    for node in code.nodes:
        if isinstance(node, Text):
            parts.append(str(node.value))
        elif isinstance(node, Wikilink):
            if not _NAMESPACED.match(str(node.title)):
                if node.text is None:
                    parts.append(str(node.title).strip().lstrip(":"))
                else:
                    _collect(node.text, parts)
        elif isinstance(node, ExternalLink):
            if node.title is not None:
                _collect(node.title, parts)
        elif isinstance(node, HTMLEntity):
            parts.append(html.unescape(str(node)))
        elif isinstance(node, Tag):
            _collect_tag(node, parts)
        elif isinstance(node, Heading):
            parts.append("\n")
        # the rest (templates, comments, arguments) says nothing to a reader


def _collect_tag(tag: Tag, parts: list[str]) -> None:
    name = str(tag.tag).strip().lower()
    if name in ("li", "dt", "dd") and tag.wiki_markup:
        parts.append("")  # the list's mark; its text follows as nodes of its own
    elif name in ("br", "hr", "p", "div", "blockquote", "li"):
        parts.append("\n")
        if tag.contents is not None and name in ("p", "div", "blockquote", "li"):
            _collect(tag.contents, parts)
            parts.append("\n")
    elif name not in _DROPPED_TAGS and tag.contents is not None:
        _collect(tag.contents, parts)
