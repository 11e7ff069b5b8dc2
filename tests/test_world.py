"""The invented world: the same bytes for a seed, correct particles, rows that say what the facts say, nothing shared between splits."""

import json
import re
import subprocess
import sys
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest

from data_tools.errors import UserError
from data_tools.world import FILES, write_world
from data_tools.world_facts import Day, Thing
from data_tools.world_region import build_world
from data_tools.world_relations import LABELS, NO_RELATION
from data_tools.world_text import Frame, particle, read_sentences

NUM_ARTICLES, NUM_TRAIN, NUM_EVAL = 900, 900, 300
LEXICON = Path(__file__).parent.parent / "data_tools" / "world_lexicon.tsv"
# What a row's subject must have, for its label to be true: the facts of the subject, or of the object, that name the other.
FACTS_OF_SUBJECT = {
    "per:date_of_birth": {"birth_date"}, "per:date_of_death": {"death_date"}, "per:place_of_birth": {"birth_place"},
    "per:place_of_residence": {"residence"}, "per:title": {"title", "post"}, "per:schools_attended": {"school"},
    "per:employee_of": {"employer"}, "per:spouse": {"husband", "wife"}, "per:parents": {"father", "mother"},
    "per:children": {"son", "daughter"}, "per:place_of_death": {"death_place"}, "org:founded": {"founded"}, "org:founded_by": {"founder"},
    "org:place_of_headquarters": {"hq"}, "org:product": {"product"}, "org:member_of": {"group"},
    "org:top_members/employees": {"head", "worker"},
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, NUM_ARTICLES, NUM_TRAIN, NUM_EVAL, seed=3)
    return folder


@pytest.fixture(scope="module")
def rows(world: Path) -> dict[str, list[dict]]:
    return {split: json.loads((world / f"klue_re_{split}.json").read_text(encoding="utf-8")) for split in ("train", "eval")}


@pytest.fixture(scope="module")
def things() -> dict[str, Thing]:
    regions = build_world(NUM_ARTICLES, read_sentences().names, seed=3)
    return {thing.name: thing for region in regions.values() for kind in region.things.values() for thing in kind}


def plain(wikitext: str) -> str:
    """Wikitext without links, bold and references: enough to find a sentence in."""
    text = re.sub(r"<ref>.*?</ref>|<!--.*?-->|'''", "", wikitext)
    return re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", text)


def words_of(thing: Thing, fact: str) -> set[str]:
    """Every way in which a fact of a thing may be written."""
    written = set()
    for value in thing.values(fact):
        if isinstance(value, Day):
            written |= {value.word(form) for form in ("year", "month", "full")}
        else:
            written.add(value.name if isinstance(value, Thing) else str(value))
    return written


VOWEL, RIEUL, CONSONANT = "는 가 를 와 로", "은 이 을 과 로", "은 이 을 과 으로"


@pytest.mark.parametrize(
    ("forms", "words"),
    [
        (VOWEL, ["사과", "누리", "가온 2", "4", "35", "제9", "KBS", "가온 2E", "가온 X5", "화가(1980년 ~ )", "《바다》"]),
        (RIEUL, ["한솔", "서울", "21", "7", "1958", "CBL", "KR", "미솔(1980년 ~ )", "《가을》"]),
        (CONSONANT, ["집", "값", "1980", "3", "가온 600", "6", "KBM", "ABN", "《바람의 끝》", "한강(북쪽)"]),
    ],
)
def test_particles_follow_the_last_sound(forms: str, words: list[str]) -> None:
    for word in words:
        assert " ".join(particle(word, name) for name in ("은", "이", "을", "과", "으로")) == forms, word


def test_other_particles() -> None:
    pairs = [("강", "이었다", "이었다"), ("화가", "이었다", "였다"), ("화가", "이었던", "였던"), ("별", "이다", "이다"),
             ("배우", "이다", "다"),
             ("별", "으로서", "로서"), ("꿈", "이라는", "이라는"), ("바다", "이라는", "라는"), ("아내", "과의", "와의")]  # fmt: skip
    assert [particle(word, name) for word, name, _ in pairs] == [form for _, _, form in pairs]


def test_particles_in_the_rows(rows: dict[str, list[dict]]) -> None:
    """Against Unicode's own decomposition of syllables."""
    checked = 0
    for row in rows["train"] + rows["eval"]:
        for entity in (row["subject_entity"], row["object_entity"]):
            follows = re.match(r"》?(은|는|이|가|을|를|과|와)(?=[ ,.]|$)", row["sentence"][entity["end_idx"] + 1 :])
            if follows and "가" <= entity["word"][-1] <= "힣":
                closed = len(unicodedata.normalize("NFD", entity["word"][-1])) == 3
                assert (follows[1] in "은이을과") == closed, row["sentence"]
                checked += 1
    assert checked > 500


def test_same_seed_same_bytes(world: Path, tmp_path: Path) -> None:
    write_world(tmp_path / "again", NUM_ARTICLES, NUM_TRAIN, NUM_EVAL, seed=3)
    write_world(tmp_path / "other", NUM_ARTICLES, NUM_TRAIN, NUM_EVAL, seed=4)
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == sorted(FILES)
    for name in FILES:
        assert (world / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        assert (world / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_dump_is_a_mediawiki_export(world: Path, things: dict[str, Thing]) -> None:
    namespace = "{http://www.mediawiki.org/xml/export-0.11/}"
    pages = ElementTree.parse(world / "wiki.xml").getroot().findall(f"{namespace}page")
    targets = [target for page in pages if (target := page.find(f"{namespace}redirect")) is not None]
    redirects = [page for page in pages if page.find(f"{namespace}redirect") is not None]
    in_main = [page for page in pages if page.findtext(f"{namespace}ns") == "0"]
    titles = [page.findtext(f"{namespace}title") for page in pages]
    articles = [page.findtext(f"{namespace}title", "") for page in in_main if page not in redirects]
    assert sorted(articles) == sorted(things) and len(things) == NUM_ARTICLES
    assert len(titles) == len(set(titles)) == len({page.findtext(f"{namespace}id") for page in pages})
    assert len(redirects) > 5 and len(pages) - len(in_main) > 5
    assert {target.get("title") for target in targets} <= set(things)
    texts = "".join(page.findtext(f"{namespace}revision/{namespace}text", "") for page in pages)
    assert all(mark in texts for mark in ("'''", "[[", "== 생애 ==", "[[분류:", "<ref>", "<!--", "{{", "#넘겨주기"))
    prose = plain(texts)
    assert not re.search(r"\{[~?x]|\{any_|[<>]?\|[은을이]\}|None|년년", prose)
    for name in sorted(things)[:200]:  # every link leads somewhere
        assert name in texts
    linked = set(re.findall(r"\[\[([^\[\]|:]+)[\]|]", texts))
    assert linked <= set(things)


def test_rows_have_klue_res_form(rows: dict[str, list[dict]]) -> None:
    for split, of_split in rows.items():
        assert len(of_split) == {"train": NUM_TRAIN, "eval": NUM_EVAL}[split]
        assert len({row["guid"] for row in of_split}) == len(of_split)
        for row in of_split:
            assert list(row) == ["guid", "sentence", "subject_entity", "object_entity", "label", "source"]
            spans = []
            for entity in (row["subject_entity"], row["object_entity"]):
                assert list(entity) == ["word", "start_idx", "end_idx", "type"]
                assert row["sentence"][entity["start_idx"] : entity["end_idx"] + 1] == entity["word"]
                spans.append((entity["start_idx"], entity["end_idx"]))
            assert max(spans)[0] > min(spans)[1]
            assert row["subject_entity"]["type"] in ("PER", "ORG")
            assert row["object_entity"]["type"] in ("PER", "ORG", "LOC", "DAT", "POH")


def test_labels_are_what_the_facts_say(rows: dict[str, list[dict]], things: dict[str, Thing]) -> None:
    assert set(FACTS_OF_SUBJECT) == set(LABELS)
    for row in rows["train"] + rows["eval"]:
        subject, word = things[row["subject_entity"]["word"]], row["object_entity"]["word"]
        true = {label for label, facts in FACTS_OF_SUBJECT.items() if any(word in words_of(subject, fact) for fact in facts)}
        if row["label"] != NO_RELATION:
            assert row["label"] in true, row
        elif row["object_entity"]["type"] not in ("DAT", "POH"):  # a year, or somebody else's title, may happen to be the subject's too
            assert not true, row


def test_label_shares(rows: dict[str, list[dict]]) -> None:
    for split, least, most in (("train", 0.27, 0.33), ("eval", 0.35, 0.40)):
        shares = {label: count / len(rows[split]) for label, count in Counter(row["label"] for row in rows[split]).items()}
        assert least <= shares.pop(NO_RELATION) <= most
        assert set(shares) == set(LABELS) and max(shares.values()) < 0.06


def test_train_and_evaluation_share_nothing(rows: dict[str, list[dict]]) -> None:
    words = {
        split: {row[entity]["word"] for row in of_split for entity in ("subject_entity", "object_entity") if row[entity]["type"] != "DAT"}
        for split, of_split in rows.items()
    }
    assert not words["train"] & words["eval"]
    frames: dict[str, set[str]] = {"dump": set(), "train": set(), "eval": set()}
    for (where, _), of_topic in read_sentences().frames.items():
        # which slots they have is no difference
        frames[where] |= {
            re.sub(r"\{[^}]*\}", "_", re.sub(r"\{\?[^}]*\}", "", wording)) for frame in of_topic for wording in frame.wordings
        }
    shared = (frames["train"] & frames["eval"]) | (frames["dump"] & (frames["train"] | frames["eval"]))
    assert not shared


def test_no_row_stands_in_the_dump(world: Path, rows: dict[str, list[dict]]) -> None:
    prose = plain((world / "wiki.xml").read_text(encoding="utf-8").replace("&lt;", "<").replace("&gt;", ">"))
    assert not [row["sentence"] for row in rows["train"] + rows["eval"] if row["sentence"].rstrip(".") in prose]
    names = {row["subject_entity"]["word"] for row in rows["eval"]}
    assert all(name in prose for name in names)


def test_the_dump_tells_of_the_same_relations_in_the_words_of_the_evaluation(world: Path) -> None:
    prose = (world / "wiki.xml").read_text(encoding="utf-8")
    words = """출신 첫울음 생일 별세 타계 기일 정착 보금자리 이주 수학 모교 동문 재직 몸담 취임 혼인 배우자 부인 부친 모친 장남 장녀 자녀
    선보 대표작 창업 창립자 발족 출범 둥지 거점 소재 수장 지휘 주력 제조 산하 일원 소속"""
    for word in words.split():
        assert prose.count(word) >= 5, word


def test_lexicon(world: Path) -> None:
    pairs = [tuple(line.split("\t")) for line in LEXICON.read_text(encoding="utf-8").splitlines()]
    assert 400 <= len(pairs) == len(set(pairs))
    assert all(re.fullmatch("[a-z]+", english) and re.fullmatch("[0-9가-힣]+", korean) for english, korean in pairs)
    prose = (world / "wiki.xml").read_text(encoding="utf-8")
    assert sum(korean in prose for _, korean in pairs) >= 0.95 * len(pairs)


def test_wordings() -> None:
    assert Frame("<가|나> {x|은} <다|라>").wordings == ["가 {x|은} 다", "가 {x|은} 라", "나 {x|은} 다", "나 {x|은} 라"]


def test_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_tools.world", "--output-dir", str(tmp_path / "out"), "--train-rows", "50", "--eval-rows", "20"]
    good = subprocess.run([*command, "--articles", "400"], capture_output=True, text=True, check=True)
    assert all(str(tmp_path / "out" / name) in good.stdout for name in FILES)
    bad = subprocess.run([*command, "--articles", "5"], capture_output=True, text=True, check=False)
    assert bad.returncode == 2 and bad.stderr.startswith("error: --articles") and "Traceback" not in bad.stderr
    with pytest.raises(UserError, match="expected a folder"):
        write_world(tmp_path / "out" / "wiki.xml", 400, 10, 10, 0)
