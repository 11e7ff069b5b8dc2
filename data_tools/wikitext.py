"""MediaWiki markup into paragraphs of prose. Dropped: templates, tables, references, comments, files, categories, formulas, headings.

Most of a page's markup is dropped, and most of the rest is links, quotes and entities. So linear passes over the text cut and unwrap
these first; mwparserfromhell reads the lines that hold more (tags, external links), at a fraction of the cost of the whole page. Markup
that is opened and never closed costs the rest of its line, never the rest of the page.
"""

import html
import re
from collections import Counter
from collections.abc import Iterable
from itertools import takewhile
from typing import NamedTuple

import mwparserfromhell
from mwparserfromhell.nodes import ExternalLink, Tag
from mwparserfromhell.wikicode import Wikicode

_FILE, _CATEGORY = "6", "14"  # keys of namespaces, the same in every wiki
# What wikis understand whatever their language (and the Korean ones, for pages that come without their dump's list).
_HIDDEN = frozenset({"file", "image", "category", "파일", "그림", "분류"})
_OTHER = frozenset(
    {"media", "special", "talk", "user", "user talk", "project", "wikipedia", "mediawiki", "template", "help", "portal", "module", "draft"}
    | {"미디어", "특수", "토론", "사용자", "사용자토론", "위키백과", "미디어위키", "틀", "도움말", "포털", "모듈", "초안"}
)


class Namespaces(NamedTuple):
    """What may stand before the colon of a link, in lower case."""

    hidden: frozenset[str] = _HIDDEN  # files and categories: nothing of the link is prose
    other: frozenset[str] = _OTHER  # prose only if the link has a text of its own

    @classmethod
    def of_dump(cls, names: Iterable[tuple[str, str]]) -> "Namespaces":
        """Those that a dump lists as (key, name), besides the ones that every wiki understands."""
        by_name = {_normalize(name): key for key, name in names if name}
        hidden = _HIDDEN | {name for name, key in by_name.items() if key in (_FILE, _CATEGORY)}
        return cls(hidden, (_OTHER | by_name.keys()) - hidden)

    def has_article(self, title: str) -> bool:
        """Whether a page of that title is an article, going by what stands before its colon."""
        prefix, colon, _ = title.partition(":")
        return not colon or _normalize(prefix) not in self.hidden | self.other


def _normalize(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).lower()


DEFAULT_NAMESPACES = Namespaces()

# Elements whose content is not prose and which do not nest; only the content of nowiki is prose, without any markup.
_OPAQUE_NAMES = (
    "ref|references|nowiki|gallery|math|chem|ce|timeline|score|syntaxhighlight|source|code|pre|imagemap|templatedata|graph|mapframe|maplink"
    "|hiero|templatestyles|inputbox|style|script|section|indicator|includeonly"
)
_OPAQUE = re.compile(rf"<(?:(!--)|({_OPAQUE_NAMES})\b[^<>]*>)", re.IGNORECASE)
# Where another one begins, the one before never ended.
_OPAQUE_ENDS = {name: re.compile(rf"<(?:/{name}\s*>|{name}\b[^<>]*(?<!/)>)", re.IGNORECASE) for name in _OPAQUE_NAMES.split("|")}
_OPAQUE_ENDS["nowiki"] = re.compile(r"</nowiki\s*>", re.IGNORECASE)
_OPAQUE_ENDS["!--"] = re.compile("-->")
_AS_ENTITIES = {ord(char): f"&#{ord(char)};" for char in "[]{}|<>'=*#:;_~-/!"}

_SIMPLE_LINK = re.compile(r"\[\[(?:[^\[\]{}<>|\n:]*\|([^\[\]{}<>|\n]+)|([^\[\]{}<>|\n:]+))\]\]")
# What begins a line only since its link is unwrapped is no list item or row: [[!!!]], [[a|#b]]. [[:a]] is the link's own.
_SIGN_IN_LINK = re.compile(r"^(\[\[(?:[^\[\]{}<>|\n:]*\|)?)([*#;!=-])", re.MULTILINE)
_NESTING = re.compile(r"\{\{+|\}\}+|\[\[|\]\]+|\n|</?table\b[^<>]*>", re.IGNORECASE)
_TARGET = re.compile(r"[^\[\]{}<>|\n]{0,1000}")
# [[de:Fluss]]: the codes of Wikipedia's languages; any other short word may begin an article's name ([[re:Zero]]).
_LANGUAGES = (
    "aa|ab|ace|ady|ae|af|ak|als|am|an|ang|ar|arc|ary|arz|as|ast|atj|av|avk|awa|ay|az|azb|ba|ban|bar|bat-"
    "smg|bcl|be|be-tarask|be-x-old|bg|bh|bi|bjn|blk|bm|bn|bo|bpy|br|bs|bug|bxr|ca|cbk-zam|cdo|ce|ceb|ch|cho|"
    "chr|chy|ckb|co|cr|crh|cs|csb|cu|cv|cy|da|dag|de|din|diq|dsb|dty|dv|dz|ee|el|eml|en|eo|es|et|eu|ext|"
    "fa|fat|ff|fi|fiu-vro|fj|fo|fon|fr|frp|frr|fur|fy|ga|gag|gan|gcr|gd|gl|glk|gn|gom|gor|got|gpe|gu|guc|"
    "gur|guw|gv|ha|hak|haw|he|hi|hif|ho|hr|hsb|ht|hu|hy|hyw|hz|ia|id|ie|ig|ii|ik|ilo|inh|io|is|it|iu|ja|"
    "jam|jbo|jv|ka|kaa|kab|kbd|kbp|kcg|kg|ki|kj|kk|kl|km|kn|ko|koi|kr|krc|ks|ksh|ku|kv|kw|ky|la|lad|lb|"
    "lbe|lez|lfn|lg|li|lij|lld|lmo|ln|lo|lrc|lt|ltg|lv|mad|mai|map-bms|mdf|mg|mh|mhr|mi|min|mk|ml|mn|mni|"
    "mnw|mo|mr|mrj|ms|mt|mus|mwl|my|myv|mzn|na|nah|nap|nds|nds-nl|ne|new|ng|nia|nl|nn|no|nov|nqo|nrm|nso|"
    "nv|ny|oc|olo|om|or|os|pa|pag|pam|pap|pcd|pcm|pdc|pfl|pi|pih|pl|pms|pnb|pnt|ps|pt|pwn|qu|rm|rmy|rn|"
    "ro|roa-rup|roa-tara|ru|rue|rw|sa|sah|sat|sc|scn|sco|sd|se|sg|sh|shi|shn|si|simple|sk|skr|sl|sm|smn|sn|"
    "so|sq|sr|srn|ss|st|stq|su|sv|sw|szl|szy|ta|tay|tcy|te|tet|tg|th|ti|tk|tl|tly|tn|to|tok|tpi|tr|trv|"
    "ts|tt|tum|tw|ty|tyv|udm|ug|uk|ur|uz|ve|vec|vep|vi|vls|vo|vro|wa|war|wo|wuu|xal|xh|xmf|yi|yo|yue|za|"
    "zea|zgh|zh|zh-classical|zh-min-nan|zh-yue|zu"
)
_LANGUAGE_LINK = re.compile(rf"(?:{_LANGUAGES}):\S")
_TABLE_INDENT = " \t:*#;"

_KNOWN_TAGS = (
    "a|abbr|b|bdi|bdo|big|blockquote|br|caption|center|cite|dd|del|dfn|div|dl|dt|em|font|h[1-6]|hr|i|ins|kbd|li|mark|noinclude|ol"
    "|onlyinclude|p|poem|q|rb|rp|rt|ruby|s|samp|small|span|strike|strong|sub|sup|table|tbody|td|th|thead|tr|tt|u|ul|var|wbr"
)
_BLOCK_TAGS = "blockquote|br|caption|center|dd|div|dl|dt|h[1-6]|hr|li|ol|p|poem|table|tbody|td|th|thead|tr|ul"
_BLOCK_TAG = re.compile(_BLOCK_TAGS, re.IGNORECASE)
_LONE_BLOCK_TAG = re.compile(rf"</?(?:{_BLOCK_TAGS})\b[^<>]*>", re.IGNORECASE)
# What needs no parser, since nothing is nested in it: <small>a</small>, [https://b.c d].
_SIMPLE_TAG = re.compile(
    r"<(abbr|b|big|em|font|i|mark|s|small|span|strike|strong|sub|sup|u)(?: [^<>]*)?(?<!/)>([^<>\[\]]*)</\1>", re.IGNORECASE
)
_SIMPLE_EXTERNAL_LINK = re.compile(r"\[https?://[^\s\[\]<>\"'|]+ ([^\[\]<>\n]+)\]")
_TAG_OVER_LINES = re.compile(rf"</?(?:{_KNOWN_TAGS})\b[^<>\n]*\n[^<>]*>", re.IGNORECASE)
_NEEDS_PARSER = re.compile(r"</?[A-Za-z][^<>]*>|\[(?:[A-Za-z]{2,10}:)?//|\[(?:mailto|news|tel|urn|bitcoin|magnet):|://", re.IGNORECASE)
# The parser's time grows with the square of what is never closed; a line with more of these than any real one is not given to it.
_MOST_MARKS = 100
_EXTERNAL_LINK = re.compile(r"\[(?:[A-Za-z]{2,10}:)?//[^\s\[\]<>]*([^\[\]<>]*)\]|[A-Za-z]{2,10}://[^\s\[\]<>]+")
# What is left of tables that templates began or ended, and of pages that nest badly.
_ROW = re.compile(r"\s*(?:\|(?!\})|!.*(?:!!|\|)|\{\|)")
_CELL_ATTRIBUTES = re.compile(
    r"(?:(?:style|class|v?align|width|height|(?:col|row)span|bgcolor|scope|border|id|cell(?:padding|spacing))\s?=\s?"
    r'(?:"[^"]*"\s*|[\w#%.;:-]+(?:\s+|(?=\|))))+\|(?!\|)'
)
_RESIDUE = re.compile(
    rf"\[\[|\]\]|\{{\{{+|\}}\}}+|\{{\||\|\}}|__(?:[A-Z]{{3,}}|[^\x00-\x7f]{{2,20}})__|~{{3,5}}|</?(?i:{_KNOWN_TAGS}|{_OPAQUE_NAMES})\b[^<>]*>"
)
_VARIANTS = re.compile(r"-\{(?:([A-Za-z-]+(?:;[A-Za-z-]+)*)\|)?([^{}]*)\}-")
_VARIANT_RULE = re.compile(r"\s*[a-z]{2,3}(?:-[a-z]+)*\s*:([^;]*)")
_QUOTES = re.compile(r"'{2,}")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_BLANKS = re.compile(r"[ \t\xa0]+")
# What dropped glosses leave between brackets: "(, 江)", "(江, )", "(한자: , 영어: Kim)", "(Doric: , Apellon)", "( ; )". Repeated a bounded
# number of times, or a line of commas costs the square of its length.
_LABEL = r"[^\W\d_]{1,20}(?: [^\W\d_]{1,20}){0,2}: ?"
_EMPTY_LABEL = re.compile(rf"(?:(?<=[(（])|(?<=[,;] )){_LABEL}(?:[,;] ?(?={_LABEL})|(?=[)）;]))")
_EMPTY_ITEM = re.compile(r"([,;、])(?: ?[,;、]){1,20}|(: )[,;] ")
_BRACKET_EDGES = re.compile(r"([(（]) ?[,;、:][ ,;、:]{0,20}| ?[,;、][ ,;、]{0,20}(?=[)）])")
_EMPTY_BRACKETS = re.compile(r" ?[(（] ?[·/]? ?[)）]")
# Put between quotes that a cut brings together: ''{{a}}'' is not the four quotes that show an apostrophe. XML cannot hold this.
_CUT = "\0"


def to_paragraphs(markup: str, namespaces: Namespaces = DEFAULT_NAMESPACES) -> str:
    """The prose of a page, one paragraph a line. Raises whatever the parser does on a page it cannot read; the caller counts those."""
    text = _cut_opaque(markup)
    text = _SIGN_IN_LINK.sub(lambda found: f"{found[1]}&#{ord(found[2])};", text)
    text = _SIMPLE_LINK.sub(r"\1\2", text)
    text = _cut_nesting(text, namespaces)
    if "{|" in text:
        text = _cut_tables(text)
    text = _SIMPLE_EXTERNAL_LINK.sub(r"\1", text)
    if "<" in text:
        text = _SIMPLE_TAG.sub(r"\2", text)
        text = _TAG_OVER_LINES.sub(lambda match: match[0].replace("\n", " "), text)
    paragraphs: list[str] = []
    for line in text.splitlines():
        if line and not line.isspace():
            _read_line(line, paragraphs)
    return "\n".join(paragraphs)


def _cut_opaque(text: str) -> str:
    """The text without comments and the elements whose content is not looked into; what nowiki protects becomes entities."""
    if "<" not in text:
        return text
    parts: list[str] = []
    position = 0
    endless: set[str] = set()  # these have no end from here on: it is looked for once, or many of them would cost the square of the page
    while start := _OPAQUE.search(text, position):
        parts.append(text[position : start.start()])
        if parts[-1].endswith("'"):
            parts.append(_CUT)
        position = start.end()
        name = start[1] or start[2].lower()
        if text.endswith("/>", 0, position) and not start[1]:
            continue
        end = None if name in endless else _OPAQUE_ENDS[name].search(text, position)
        if end is None:
            endless.add(name)
        if end is None or (end[0][0] == "<" and end[0][1] != "/"):
            if name not in ("nowiki", "includeonly", "section"):
                position = _end_of_line(text, position, end.start() if end else len(text))
            continue
        if name == "nowiki":
            parts.append(text[position : end.start()].translate(_AS_ENTITIES))
        position = end.end()
    parts.append(text[position:])
    return "".join(parts)


def _end_of_line(text: str, start: int, limit: int) -> int:
    end = text.find("\n", start, limit)
    return limit if end < 0 else end


class _Open(NamedTuple):
    """Something that nests and was begun."""

    kind: str  # "{{", "<table", "[[" (its label is prose) or "[[File" (nothing of it is)
    start: int
    inside: int  # where its label or content begins
    braces: int = 0  # of a template; of a link, whether its target holds one


class _Stack:
    """What is open, innermost last, and how many of each kind."""

    def __init__(self) -> None:
        self.items: list[_Open] = []
        self.count: Counter[str] = Counter()

    def push(self, item: _Open) -> None:
        self.items.append(item)
        self.count[item.kind] += 1

    def pop(self) -> _Open:
        item = self.items.pop()
        self.count[item.kind] -= 1
        return item

    def top_is(self, *kinds: str) -> bool:
        return bool(self.items) and self.items[-1].kind in kinds


def _cut_nesting(text: str, namespaces: Namespaces) -> str:
    """The text without templates, HTML tables and links to files and categories; of other links, only their labels."""
    stack = _Stack()
    cuts: list[tuple[int, int]] = []
    unclosed: list[_Open] = []
    for token in _NESTING.finditer(text):
        mark, start, end = token[0], token.start(), token.end()
        if mark == "[[":
            stack.push(_open_link(text, start, namespaces))
        elif mark[0] == "{":
            stack.push(_Open("{{", start, end, end - start))
        elif mark[0] == "<" and mark[1] != "/":
            stack.push(_Open("<table", start, end))
        elif mark == "\n":  # a label ends with its line, a file's caption with its paragraph
            ended = ("[[", "[[File") if text.startswith("\n", end) else ("[[",)
            while stack.top_is(*ended):
                unclosed.append(stack.pop())
        elif mark[0] == "]":
            _close_links(text, start, end, stack, cuts)
        elif mark[0] == "<":
            _close_table(end, stack, cuts)
        else:
            _close_templates(start, end, stack, cuts)
    return _without(text, cuts, unclosed + stack.items)


def _close_links(text: str, start: int, end: int, stack: _Stack, cuts: list[tuple[int, int]]) -> None:
    """End links at the closing brackets text[start:end]."""
    if end - start > 2 and stack.items and "[" in text[max(stack.items[-1].inside, start - 500) : start].rpartition("]")[2]:
        start += 1  # the first ends an external link within: [[File:a.jpg|[http://b c]]]
    while end - start >= 2 and stack.top_is("[[", "[[File"):
        link = stack.pop()
        start += 2
        if link.kind == "[[File":
            cuts.append((link.start, start))
        else:
            inside = _label_start(text, link.inside, start - 2, cuts) if link.braces else link.inside
            cuts += [(link.start, inside), (start - 2, start)]


def _close_table(end: int, stack: _Stack, cuts: list[tuple[int, int]]) -> None:
    """End a table at the tag that ends before `end`; links that are open in it are given up."""
    if stack.count["<table"]:
        while stack.top_is("[[", "[[File"):
            stack.pop()
        if stack.top_is("<table"):
            cuts.append((stack.pop().start, end))


def _close_templates(start: int, end: int, stack: _Stack, cuts: list[tuple[int, int]]) -> None:
    """End templates at the closing braces text[start:end]; whatever is open in them is given up."""
    while end - start >= 2 and stack.count["{{"]:
        while not stack.top_is("{{"):
            stack.pop()
        template = stack.pop()
        matched = min(template.braces, end - start, 3)
        start += matched
        if template.braces - matched >= 2:  # {{{{a}} b}}: the outer ones are still open
            stack.push(template._replace(braces=template.braces - matched))
        else:
            cuts.append((template.start, start))


def _open_link(text: str, start: int, namespaces: Namespaces) -> _Open:
    found = _TARGET.match(text, start + 2)
    assert found is not None  # it matches the empty string, too
    target, inside = found[0].strip(), start + 2
    is_piped = text.startswith("|", found.end())
    prefix, colon, _ = target.partition(":")
    if colon and not prefix:  # [[:Category:a]] is an ordinary link
        inside = text.index(":", inside) + 1
    elif colon:
        prefix = _normalize(prefix)
        if prefix in namespaces.hidden or (prefix in namespaces.other and not is_piped) or _LANGUAGE_LINK.match(target):
            return _Open("[[File", start, inside)
    return _Open("[[", start, found.end() + 1 if is_piped else inside, 2 * text.startswith("{{", found.end()))


def _label_start(text: str, inside: int, end: int, cuts: list[tuple[int, int]]) -> int:
    """Where the label of a link begins whose target holds templates, which are cut already: behind the first bar outside them."""
    position = inside
    for first, last in sorted(takewhile(lambda cut: cut[0] >= inside, reversed(cuts))):
        bar = text.find("|", position, max(position, first))
        if bar >= 0:
            return bar + 1
        position = max(position, last)
    return text.find("|", position, end) + 1 or inside


def _without(text: str, cuts: list[tuple[int, int]], unclosed: list[_Open]) -> str:
    """The text without the cuts, and without what never ended: the rest of its line, or only the link around a label."""
    position = 0
    for item in sorted(unclosed, key=lambda item: item.start):
        if item.kind == "[[":
            cuts.append((item.start, item.inside))
        elif item.start >= position:
            position = _end_of_line(text, item.start, len(text))
            cuts.append((item.start, position))
    parts = []
    position = 0
    for start, end in sorted(cuts):
        if start > position:
            parts.append(text[position:start])
            if text[start - 1] == "'" and text.startswith("'", end):
                parts.append(_CUT)
        position = max(position, end)
    parts.append(text[position:])
    return "".join(parts)


def _cut_tables(text: str) -> str:
    """The text without tables, which begin and end with a line, and nest. One that never ends loses the rows that follow its start."""
    lines = text.split("\n")
    ends = _table_ends(lines)
    kept = []
    last = -1
    for number, line in enumerate(lines):
        if number > last:
            last = ends.get(number, -1)
            end = lines[last].lstrip(_TABLE_INDENT) if last >= 0 else ""
            kept.append(line if last < 0 else end[2:] if end.startswith("|}") else "")
    return "\n".join(kept)


def _table_ends(lines: list[str]) -> dict[int, int]:
    """Number of a table's first line -> number of its last."""
    begun: list[int] = []
    ends: dict[int, int] = {}
    for number, line in enumerate(lines):
        line = line.lstrip(_TABLE_INDENT)
        if line.startswith("{|"):
            begun.append(number)
        elif begun and line.startswith("|}"):
            ends[begun.pop()] = number
    last = -1
    for number in begun:  # those that are left never end
        if number > last:
            rows = (i - 1 for i in range(number + 1, len(lines)) if not lines[i].lstrip(_TABLE_INDENT).startswith(("|", "!")))
            last = next(rows, len(lines) - 1)
            ends[number] = last
    return ends


def _read_line(line: str, paragraphs: list[str]) -> None:
    """Append the paragraphs of a line: none for a heading, two for one with a <br>."""
    if line[0] == "=" and len(line) > 2 and line.rstrip()[-1] == "=":
        return
    line = line.lstrip("*#:; \t")
    if line.startswith(("|", "!", "{|")):
        if _ROW.match(line):
            return
    elif line.startswith("----"):
        line = line.lstrip("-")
    if "=" in line and "|" in line:
        line = _CELL_ATTRIBUTES.sub("", line, 1)
    if not _NEEDS_PARSER.search(line):
        _finish(line, paragraphs)
        return
    if line.count("<") + line.count("[") + line.count("://") > _MOST_MARKS:
        line = _EXTERNAL_LINK.sub(r"\1", line)
    else:
        parts: list[str] = []
        _collect(mwparserfromhell.parse(line, skip_style_tags=True), parts)
        line = "".join(parts)
    for part in _LONE_BLOCK_TAG.sub("\n", line).split("\n"):
        _finish(part, paragraphs)


def _collect(code: Wikicode, parts: list[str]) -> None:
    """The prose of a line: of tags, their contents; of external links, their titles. Quotes and entities stay for `_finish`."""
    for node in code.nodes:
        if isinstance(node, ExternalLink):
            if node.title is not None:
                _collect(node.title, parts)
        elif isinstance(node, Tag):
            is_block = _BLOCK_TAG.fullmatch(str(node.tag).strip()) is not None
            parts.append("\n" * is_block)
            if node.contents is not None:
                _collect(node.contents, parts)
                parts.append("\n" * is_block)
        else:
            parts.append(str(node))


def _finish(line: str, paragraphs: list[str]) -> None:
    """Append a line without its quotes, entities, and what was left of markup and of brackets."""
    if "''" in line:
        line = _unquote(line)
    if _CUT in line:
        line = line.replace(_CUT, "")
    if "-{" in line:
        line = _VARIANTS.sub(_choose_variant, line)
    line = _RESIDUE.sub("", line)
    if "&" in line:
        line = _unescape(line)
    line = _BLANKS.sub(" ", line)
    if "(" in line or "（" in line:
        line = _EMPTY_LABEL.sub("", line)
        line = _EMPTY_ITEM.sub(r"\1\2", line)
        line = _BRACKET_EDGES.sub(r"\1", line)
        line = _EMPTY_BRACKETS.sub("", line)
    for part in line.splitlines():  # an entity may be a line break
        if part := part.strip():
            paragraphs.append(part)


def _unquote(line: str) -> str:
    """The line without quotes for bold and italics, told from apostrophes as MediaWiki does: by number, and by what has no partner."""
    runs = list(_QUOTES.finditer(line))
    lengths = [len(run[0]) for run in runs]
    shown = ["'" * max(0, length - 5) if length != 4 else "'" for length in lengths]
    num_bold = sum(length != 2 for length in lengths)
    num_italic = sum(length == 2 or length >= 5 for length in lengths)
    if num_bold % 2 and num_italic % 2 and 3 in lengths:  # ''Animal Farm'''s: an apostrophe, and italics end
        starts = [(number, run.start()) for number, run in enumerate(runs) if lengths[number] == 3]
        after_letter = [number for number, start in starts if start > 1 and line[start - 2] == " " != line[start - 1]]
        after_word = [number for number, start in starts if start and line[start - 1] != " "]
        shown[(after_letter or after_word or [starts[0][0]])[0]] = "'"
    parts = []
    position = 0
    for run, apostrophes in zip(runs, shown, strict=True):
        parts += [line[position : run.start()], apostrophes]
        position = run.end()
    return "".join([*parts, line[position:]])


def _choose_variant(match: re.Match[str]) -> str:
    """The first variant of a text in several scripts, -{zh-hans:a;zh-hant:b}-; nothing for rules that show nothing."""
    flags, content = match[1] or "", match[2]
    if flags and not set(flags.split(";")) <= {"R", "A", "S"} and len(flags) == 1:
        return ""
    rule = _VARIANT_RULE.match(content)
    return rule[1].strip() if rule else content


def _unescape(line: str) -> str:
    """Entities as characters; those that were escaped twice (&amp;nbsp;) as well."""
    for _ in range(2):
        if "&" in line:
            line = _ENTITY.sub(lambda match: html.unescape(match[0]), line)
    return line
