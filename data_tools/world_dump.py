"""Articles about the invented world, as a MediaWiki XML export."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape

from data_tools.world_facts import ORGANISATIONS, Region, Thing
from data_tools.world_scene import Scene, fits
from data_tools.world_text import Frame, Sentences, particle

_NAMESPACES = {
    -2: "미디어", -1: "특수", 0: "", 1: "토론", 2: "사용자", 3: "사용자토론", 4: "위키백과", 5: "위키백과토론", 6: "파일", 7: "파일토론",
    8: "미디어위키", 9: "미디어위키토론", 10: "틀", 11: "틀토론", 12: "도움말", 13: "도움말토론", 14: "분류", 15: "분류토론",
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A part of an article: the frames it draws from, how many at least and at most, and its heading, if it begins a section."""

    topic: str
    least: int
    most: int
    heading: str = ""


_ORGANISATION = (
    Part("org.lead", 1, 1), Part("org.founded", 2, 3, "역사"), Part("org.hq", 1, 3), Part("org.mixed", 3, 6), Part("org.event", 0, 2),
    Part("org.people", 2, 4, "조직"), Part("org.member", 1, 2),
)  # fmt: skip
PLANS = {
    "person": (
        Part("person.lead", 1, 1), Part("person.birth", 1, 2, "생애"), Part("person.youth", 0, 1), Part("person.taste", 0, 1),
        Part("person.study", 1, 3), Part("person.career", 2, 4, "경력"), Part("person.start", 0, 2), Part("person.lead_org", 0, 1),
        Part("person.mixed", 5, 8), Part("person.event", 0, 2), Part("person.work", 1, 2, "작품"), Part("person.family", 3, 5, "가족"),
        Part("person.home", 1, 2, "근황"), Part("person.death", 1, 2, "말년"), Part("person.scene", 0, 1), Part("person.late", 0, 1),
    ),
    "company": (*_ORGANISATION, Part("company.product", 1, 3, "사업"), Part("company.goods", 1, 2), Part("company.business", 2, 3)),
    "school": (*_ORGANISATION, Part("school.life", 3, 5, "교육")),
    "party": (*_ORGANISATION, Part("party.policy", 2, 3, "정책")),
    "society": (*_ORGANISATION, Part("society.work", 2, 3, "활동")),
    "group": (Part("group.lead", 1, 1), Part("group.body", 4, 6)),
    "city": (
        Part("city.lead", 1, 1), Part("city.body", 2, 4, "지리와 산업"), Part("city.nature", 1, 2),
        Part("city.people", 5, 9, "사람과 기관"),
    ),
    "work": (Part("work.lead", 1, 1), Part("work.body", 3, 5, "내용"), Part("work.symbol", 1, 2)),
    "product": (Part("product.lead", 1, 1), Part("product.body", 3, 5, "특징")),
}  # fmt: skip
_CATEGORIES = {"person": "사람", "city": "도시", "work": "작품", "product": "제품", "group": "단체"} | dict.fromkeys(ORGANISATIONS, "단체")
_PRONOUNS = {"person": "그", "company": "회사", "school": "학교", "party": "당", "society": "단체", "city": "이곳", "product": "이 제품"}
_REDIRECT_SHARE, _OTHER_PAGES_SHARE = 0.03, 0.02


def pages(regions: dict[str, Region], sentences: Sentences, rng: random.Random) -> Iterator[tuple[str, int, str]]:
    """(title, namespace, wikitext) of every page: shuffled articles, redirects, and pages that are not articles."""
    things = [(region, thing) for region in regions.values() for kind in PLANS for thing in region.things[kind]]
    rng.shuffle(things)
    for region, thing in things:
        yield thing.name, 0, article(thing, region, sentences, rng)
        if rng.random() < _REDIRECT_SHARE:
            yield thing.name + rng.choice((" (동음이의)", "의 역사", " 소개")), 0, f"#넘겨주기 [[{thing.name}]]"
        if rng.random() < _OTHER_PAGES_SHARE:
            yield rng.choice(
                (
                    (f"토론:{thing.name}", 1, f"== 출처 ==\n{thing.name} 문서에 출처가 더 필요합니다. --~~~~"),
                    (f"틀:{thing.name}", 10, f"{{{{둘러보기 상자|제목={thing.name}|목록=[[{thing.name}]]}}}}"),
                    (f"분류:{thing.name}", 14, f"[[{thing.name}]]에 관한 분류이다.\n[[분류:{_CATEGORIES[thing.kind]}]]"),
                )
            )


def article(thing: Thing, region: Region, sentences: Sentences, rng: random.Random) -> str:
    """The wikitext of one article."""
    linked = {thing.name}
    blocks: list[str] = [_infobox(thing)] if rng.random() < 0.25 else []
    for part in PLANS[thing.kind]:
        fitting = [frame for frame in sentences.frames["dump", part.topic] if fits(frame, thing)]
        chosen = rng.sample(fitting, min(len(fitting), rng.randint(part.least, part.most)))
        told = [_sentence(frame, thing, region, sentences, linked, rng, part.topic.endswith("lead")) for frame in chosen]
        if not told:
            continue
        if part.heading:
            blocks.append(f"== {part.heading} ==\n{' '.join(told)}")
        elif part.topic.endswith("lead") or rng.random() < 0.3:
            blocks.append(" ".join(told))
        else:
            blocks[-1] += " " + " ".join(told)
    if rng.random() < 0.3:
        blocks.append("== 같이 보기 ==\n* [[" + rng.choice(region.things[thing.kind]).name + "]]")
    blocks.append(f"[[분류:{_CATEGORIES[thing.kind]}]]")
    return "\n\n".join(blocks)


def _sentence(frame: Frame, thing: Thing, region: Region, sentences: Sentences, linked: set[str], rng: random.Random, lead: bool) -> str:
    """A sentence with its markup: the subject in bold once, first mentions linked, now and then a reference or a comment."""
    scene = Scene(thing, region, sentences.lists, rng)

    def show(path: str, word: str) -> str:
        if path == "x":
            return f"'''{word}'''" if lead else word
        value = scene.values.get(path)
        if isinstance(value, Thing) and word not in linked and rng.random() < 0.6:
            linked.add(word)
            if value.kind == "city" and rng.random() < 0.15:
                return f"[[{word}|{word[:-1]}]]"
            return f"[[{word}]]"
        return word

    if not lead and frame.pattern.startswith("{x|은} "):
        frame = _without_subject(frame, thing, rng)
    text, _ = frame.render(rng, scene.word_of, show)
    if rng.random() < 0.04:
        text += f"<ref>《{scene.word_of('any_work', '')}》, {rng.randint(10, 300)}쪽</ref>"
    if rng.random() < 0.01:
        text += "<!-- 확인 필요 -->"
    return text


def _without_subject(frame: Frame, thing: Thing, rng: random.Random) -> Frame:
    """Korean leaves a known subject out or says 그는; so does this, two times in three."""
    rest = frame.pattern[len("{x|은} ") :]
    way = rng.random()
    if way < 0.33:
        return Frame(rest)
    if way < 0.66 and thing.kind in _PRONOUNS:
        pronoun = "그녀" if thing.facts.get("sex") == "여" and rng.random() < 0.5 else _PRONOUNS[thing.kind]
        return Frame(f"{pronoun}{particle(pronoun, '은')} {rest}")
    return frame


def _infobox(thing: Thing) -> str:
    return f"{{{{{_CATEGORIES[thing.kind]} 정보\n| 이름 = {thing.name}\n| 그림 = {thing.name}.jpg\n| 설명 = {{{{작게|{thing.name}}}}}\n}}}}"


def dump_xml(regions: dict[str, Region], sentences: Sentences, rng: random.Random) -> Iterator[str]:
    """The lines of the export."""
    yield '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="ko">\n  <siteinfo>\n'
    yield "    <sitename>지어낸 백과</sitename>\n    <dbname>inventedwiki</dbname>\n    <case>first-letter</case>\n    <namespaces>\n"
    for key, name in _NAMESPACES.items():
        yield f'      <namespace key="{key}" case="first-letter"' + (f">{name}</namespace>\n" if name else " />\n")
    yield "    </namespaces>\n  </siteinfo>\n"
    for number, (title, namespace, text) in enumerate(pages(regions, sentences, rng), start=1):
        target = text[text.index("[[") + 2 : -2] if text.startswith("#넘겨주기") else ""
        redirect = f'    <redirect title="{escape(target, {chr(34): "&quot;"})}" />\n' if target else ""
        yield (
            f"  <page>\n    <title>{escape(title)}</title>\n    <ns>{namespace}</ns>\n    <id>{number}</id>\n{redirect}    <revision>\n"
            f"      <id>{number + 100000}</id>\n      <timestamp>2021-01-01T00:00:00Z</timestamp>\n      <model>wikitext</model>\n"
            f'      <format>text/x-wiki</format>\n      <text bytes="{len(text.encode())}" xml:space="preserve">{escape(text)}</text>\n'
            "    </revision>\n  </page>\n"
        )
    yield "</mediawiki>\n"
