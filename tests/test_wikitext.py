"""Markup into prose: what each construct leaves, that the shortcuts agree with the parser, that nothing costs the square of a page."""

import html
import random
import re
import time

import mwparserfromhell
import pytest
from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Tag, Text, Wikilink
from mwparserfromhell.wikicode import Wikicode

from data_tools.wikitext import Namespaces, to_paragraphs

CASES = {
    "nested files": ("[[파일:a.jpg|섬네일|[[나]]의 {{작게|[[다]]}} 사진<ref>[[라]]</ref>]]가 [[File:b.jpg|[http://b c]]] 나", "가 나"),
    "a caption over lines": ("[[Image:a.svg|thumb|첫째\n둘째]]\n셋째", "셋째"),
    "links": (
        "[[가]]는 [[나 (뜻)|나]], [[CSI: 마이애미]], [[위키백과:알찬 글|알찬 글]], [[:분류:강]]",
        "가는 나, CSI: 마이애미, 알찬 글, 분류:강",
    ),
    "links that begin a line with a sign": (
        "[[!!!]]는 밴드이다!! 그렇다.\n[[*NSYNC]]은\n[[미투|#MeToo]]는\n[[=|=가=]]\n[[:분류:강]]\n* [[-|-]]",
        "!!!는 밴드이다!! 그렇다.\n*NSYNC은\n#MeToo는\n=가=\n분류:강\n-",
    ),
    "links that show nothing": ("가[[분류:강|가]][[ category : x]][[en:River]][[zh-min-nan:Hô]][[be-x-old:A]][[위키백과:알찬 글]]", "가"),
    "a link over lines": ("[[가|나\n다]]", "나\n다"),
    "link in link": ("[[가|나 [[다|라]] 마]]", "나 라 마"),
    "templates": ("가{{나|{{다|{{{라|}}}}}|[[마]]}}바{{{사|아}}}자{{{{차}}|카}}타", "가바자타"),
    "tables": (
        '가\n{| class="x"\n|+ 제목\n| 나 ||\n:{|\n| 다\n|}\n! 라 !! 마\n이어짐\n|}\n바<table><tr><td><table></table>사</td></table>',
        "가\n바",
    ),
    "rows whose table a template began": ("{{표}}\n|-\n! 가 !! 나\n| style=x | 다\n|}\n라\nalign=left | 마", "라\n마"),
    "references": (
        '가<ref name="나/다">라<ref name=a /></ref>마<ref name=바 />사<REF>아</Ref >.\n<references>\n<ref>자</ref>\n</references>',
        "가마사.",
    ),
    "other elements": (
        "가<math>\\frac{1}{2}}}</math>나<gallery>\n파일:a|다\n</gallery>라<!-- [[ {{ -->마<includeonly>바</includeonly>",
        "가나라마",
    ),
    "nowiki": ("<nowiki>[[가]] {{나}} ''다'' <ref></nowiki> [[라]]<nowiki />", "[[가]] {{나}} ''다'' <ref> 라"),
    "breaks": ("가<br>나<br />다<blockquote>라</blockquote>마\n<poem>바\n사</poem>아\n----\n자", "가\n나\n다\n라\n마\n바\n사\n아\n자"),
    "tags": ('가<small class="x">나</small><sub>2</sub><div\nstyle="x">다</div> 3 < 4 > 2', "가나2\n다\n3 < 4 > 2"),
    "external links": ("[http://a.b 가 ''나'']다 [//a.b 라] [mailto:a@b 마] [http://a.b] http://a.b/c 바 [1]", "가 나다 라 마 바 [1]"),
    "entities": ("가&nbsp;나&#44032;&amp;nbsp;다 AT&amp;T &lt;b&gt; R&D &copy=1", "가 나가 다 AT&T <b> R&D &copy=1"),
    "quotes": ("'''''가''' 나'' ''''다''' ''{{라}}'' ''마''<!-- -->'s", "가 나 '다 마's"),
    "quotes that are apostrophes": ("L'''amour'' 가\n''동물 농장'''s '''나'''", "L'amour 가\n동물 농장's 나"),
    "lists and headings": ("== 가 ==\n*# 나\n:; 다 : 라\n=== 마 ===  \n식 x = 1 =", "나\n다 : 라\n식 x = 1 ="),
    "glosses": (
        "김(, 金)은 이({{llang|en|Lee}}, {{lang|ja|李}})와 박({{a}}; 朴)의 최(한자: {{b}}, 영어: Choi, ), 강 ( ; ){{c}}.\n"
        "도(D: {{d}}, Do)와 레(고대 영어: {{d}})는 미(1973년 ~ )이다.",
        "김(金)은 이와 박(朴)의 최(영어: Choi), 강.\n도(D: Do)와 레는 미(1973년 ~ )이다.",
    ),
    "switches": ("__TOC__가 __목차숨김__나 __init__ 다 -- ~~~~", "가 나 __init__ 다 --"),
    "variants": ("가 -{zh-hans:나;zh-hant:다}- -{T|라}- -{R|마}- -{바}-", "가 나 마 바"),
    # What never ends costs the rest of its line, and a link only its brackets.
    "unclosed template": ("가 {{나 다\n라 {{마}} 바\n\n사", "가\n라 바\n사"),
    "unclosed link": ("가 [[나|다 라\n마 [[바]] 사", "가 다 라\n마 바 사"),
    "unclosed link in a template": ("{{가|[[나}} 다 {{라|[[파일:마}}", "다"),
    "unclosed file": ("가 [[파일:a.jpg|나\n\n다 [[라]] 마]] 바", "가\n다 라 마 바"),
    "unclosed reference": ("가<ref>나\n다<ref>라</ref>마<ref>바", "가\n다마"),
    "unclosed comment": ("가<!-- 나\n다", "가\n다"),
    "an element that another begins in": (
        "가 <code>x<code>는 함수이다.\n\n나\n\n<math>y<math> 다\n라 <code>y</code> 마",
        "가\n나\n라 마",
    ),
    "links of short words": ("[[re:가|나]] [[doi:10.1/x|다]] [[de:Fluss]][[ko:강|강]][[wp:라|라]]", "나 다 라"),
    "templates in a link's target": ("[[{{a}}|가]]는 [[나{{b|c}}다|라 {{d}}]]와 [[마{{e}}]][[{{f}}]]", "가는 라 와 마"),
    "unclosed table without a blank line": ("{| class=x\n|-\n| 가\n나 다\n| 라\n마", "나 다\n마"),
    "unclosed table": ("{| class=x\n|-\n| 가\n\n나 다", "나 다"),
    "ends without a beginning": ("가}} 나]] 다</ref> 라</div>\n|}\n마", "가 나 다 라\n마"),
}


@pytest.mark.parametrize("name", CASES)
def test_constructs(name: str) -> None:
    markup, expected = CASES[name]
    assert to_paragraphs(markup) == expected


def test_the_dump_says_what_its_namespaces_are() -> None:
    markup = "가[[두루마리:a.jpg|나]] [[갈래_이름:다]][[File:b|c]][[누리집:라]][[누리집:라|마]]"
    namespaces = Namespaces.of_dump([("0", ""), ("6", "두루마리"), ("14", "갈래 이름"), ("4", "누리집")])
    assert to_paragraphs(markup, namespaces) == "가 마"
    assert to_paragraphs(markup) == "가나 갈래_이름:다누리집:라마"


def parse_whole(markup: str) -> list[str]:
    """The same prose from the parser alone, on the whole page at once."""
    text = re.sub(r"^[*#:;]+\s*", "", _collect(mwparserfromhell.parse(markup)), flags=re.MULTILINE)
    return [line for line in (re.sub(r"[ \t\xa0]+", " ", line).strip() for line in text.split("\n")) if line]


def _collect(code: Wikicode | None) -> str:
    return "".join(_show(node) for node in code.nodes) if code is not None else ""


def _show(node: object) -> str:
    if isinstance(node, Text | HTMLEntity):
        return html.unescape(str(node))
    if isinstance(node, Wikilink):
        if re.match(r"(?:파일|File|분류|Category|[a-z]{2}):", str(node.title)):
            return ""
        return str(node.title).lstrip(":") if node.text is None else _collect(node.text)
    if isinstance(node, ExternalLink):
        return _collect(node.title)
    if isinstance(node, Tag):
        name = str(node.tag)
        if name in ("ref", "math", "table", "gallery"):
            return ""
        return "\n" if name == "br" else _collect(node.contents)
    return "\n" if isinstance(node, Heading) else ""


def random_page(rng: random.Random) -> str:
    """A page in which constructs that are all well-formed stand in one another."""

    def inline(depth: int) -> str:
        word = "".join(rng.choice("가나다라마Ab1é'.,") for _ in range(rng.randint(1, 4))).replace("''", "'").strip("'") or "사"
        if depth == 0 or rng.random() < 0.4:
            return word
        inner = " ".join(inline(depth - 1) for _ in range(rng.randint(1, 3)))
        no_reference = inner.replace("<ref>", "").replace("</ref>", "")  # a second one in it says that the first never ended
        plain = word if "[" in inner else inner  # a link in a link is none
        links = (
            f"[[{word}]]",
            f"[[:{word}]]",
            f"[[{word}|{plain}]]",
            f"[[분류:{word}]]",
            f"[[en:{word}]]",
            f"[[파일:{word}.jpg|섬네일|{inner}]]",
        )
        templates = f"{{{{{word}|{inner}|a={inner}}}}}", f"{{{{{{{word}|{inner}}}}}}}", f"<!-- {word} [[ }}}} -->"
        tags = f"<ref>{no_reference}</ref>", f'<ref name="{word}" />', f"<b>{inner}</b>", f"<small style='x'>{inner}</small>", "가<br />나"
        others = f"<math>{word}_{{x}}</math>", f"[http://a.b/c {plain}]", "&nbsp;", "&amp;", " '''굵게''' ", " ''기울여'' "
        return rng.choice(links + templates + tags + others)

    blocks = []
    for _ in range(rng.randint(1, 6)):
        line = " ".join(inline(3) for _ in range(rng.randint(1, 8)))
        blocks.append(rng.choice((line, line, f"* {line}", f"#: {line}", f"== {line.replace('=', '')} ==", f"{{|\n| {line}\n|}}")))
    return rng.choice(("\n", "\n\n")).join(blocks)


def test_shortcuts_agree_with_the_parser() -> None:
    rng = random.Random(0)
    pages = [random_page(rng) for _ in range(800)]
    for page in pages:
        assert to_paragraphs(page).split("\n") == (parse_whole(page) or [""]), page


# Each would cost minutes if its time grew with the square of its length; these take a third of a second at most.
ENDLESS = [
    "{{",
    "{{ a ",
    "{{{",
    "[[",
    "[[a|",
    "[[File:a|",
    "<ref>",
    "<ref name=a ",
    "<!-- ",
    "<nowiki>",
    "<math>x",
    "{|\n",
    "<table>",
    "}}",
    "]]",
]
ENDLESS += [
    "<b>",
    "<a ",
    "<br \n",
    "[http://a ",
    "http://",
    "(",
    "(a: ",
    ", ",
    "(, ",
    "'' ''' ",
    "&a",
    "style=a ",
    "__가",
    "-{a;",
    "[[File:a\n",
    "!! ",
    "[[파일:",
    "{|",
    "\n|",
    "'''",
    "&amp;",
    "<div>",
]
NESTED = [
    ("{{a", "}}"),
    ("[[a|", "]]"),
    ("[[File:a|", "]]"),
    ("[[a", "]]] "),
    ("<table>", "</table>"),
    ("{{[[", "}}"),
    ("<div>a", "</div>"),
    ("= ", " ="),
]
TOO_LONG = [f"({part * 50_000}" for part in ENDLESS] + [first * 50_000 + last * 50_000 for first, last in NESTED]


@pytest.mark.parametrize("markup", TOO_LONG, ids=range(len(TOO_LONG)))
def test_time_grows_with_the_length(markup: str) -> None:
    begin = time.process_time()
    to_paragraphs(markup)
    assert time.process_time() - begin < 3, markup[:20]
