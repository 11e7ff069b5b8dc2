"""The linear classifier that nets are compared with: what it is given, and no more."""

from benchmarks import word_baseline
from trainer.relations import Entity, Relation


def row(name: str, verb: str, place: str, label: int, kind: str = "LOC", turned: bool = False) -> Relation:
    sentence = f"{name} 씨는 {place} 에서 {verb}."
    first = Entity(name, 0, len(name) - 1, "PER")
    start = sentence.index(place)
    second = Entity(place, start, start + len(place) - 1, kind)
    return Relation("", sentence, second if turned else first, first if turned else second, label)


def test_columns_hold_words_apart_from_entities_and_types() -> None:
    one, two = word_baseline.columns([row("김철수", "태어났다", "서울", 3), row("김철수", "태어났다", "서울", 3, turned=True)]).tolist()
    assert one == ["  씨는   에서 태어났다.", " 씨는 ", "김철수", "서울", "PER LOC subject first"]
    assert two == [*one[:2], "서울", "김철수", "LOC PER object first"]


def test_each_set_of_features_tells_what_it_can() -> None:
    """A verb tells relations 1 and 2 apart, the object's type 3 from both."""
    names, places = ("김철수", "박영희", "이민수", "최지우", "정다은"), ("서울", "부산", "대전", "광주", "인천")
    rows = [row(name, verb, place, label) for name in names for place in places for verb, label in (("태어났다", 1), ("일했다", 2))]
    rows += [row(name, "태어났다", place, 3, kind="ORG") for name in names for place in places]
    found = {given: word_baseline.scores(word_baseline.fit(rows, given, 1.0), rows)["accuracy"] for given in word_baseline.FEATURES}
    assert 60 < found["words"] < 70 and 60 < found["types"] < 70 and found["words and types"] == 100
