"""Reading and checking KLUE-RE rows."""

import copy
import json
from pathlib import Path

import pytest

from data_tools.errors import UserError
from trainer.relations import LABELS, MAX_PROBLEMS_SHOWN, Entity, read_relations

ROW = {
    "guid": "r1",
    "sentence": "가람은 나루시에서 태어났다.",
    "subject_entity": {"word": "가람", "start_idx": 0, "end_idx": 1, "type": "PER"},
    "object_entity": {"word": "나루시", "start_idx": 4, "end_idx": 6, "type": "LOC"},
    "label": "per:place_of_birth",
    "source": "made up",
}


def changed(path: str, *value: object) -> dict:
    """ROW with the field at a dotted path set to a value, or taken out."""
    row = copy.deepcopy(ROW)
    *parents, key = path.split(".")
    target = row
    for parent in parents:
        target = target[parent]
    if value:
        target[key] = value[0]
    else:
        del target[key]
    return row


def write(path: Path, rows: list) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_labels_are_thirty_and_begin_with_no_relation():
    assert len(set(LABELS)) == 30 and LABELS[0] == "no_relation" and LABELS[29] == "per:title" and LABELS[12] == "per:date_of_birth"


def test_array_and_lines_give_the_same_rows(tmp_path):
    second = changed("sentence", "가람은 나루시에서\u2028태어났다. 😀")  # U+2028 breaks lines for str.splitlines, not in JSON lines
    array = write(tmp_path / "a.json", [ROW, second])
    lines = tmp_path / "b.jsonl"
    lines.write_text("\ufeff" + json.dumps(ROW) + "\r\n\n" + json.dumps(second, ensure_ascii=False), encoding="utf-8")
    rows = read_relations(array)
    assert rows == read_relations(lines)
    assert rows[0].object == Entity("나루시", 4, 6, "LOC") and rows[0].label == 14 and rows[1].sentence.endswith("😀")


def test_rows_to_predict_may_have_any_guid_and_label(tmp_path):
    bare = {key: value for key, value in ROW.items() if key not in ("guid", "label")}
    given = [ROW | {"guid": 7, "label": 100}, ROW | {"guid": None, "label": ""}, bare]
    rows = read_relations(write(tmp_path / "a.json", given), labelled=False)
    assert [(row.guid, row.label) for row in rows] == [("7", 0), ("2", 0), ("3", 0)]


def test_offsets_count_code_points(tmp_path):
    row = changed("sentence", "😀가람은 나루시")
    row["subject_entity"].update(start_idx=1, end_idx=2)
    row["object_entity"].update(start_idx=5, end_idx=7)
    assert read_relations(write(tmp_path / "a.json", [row]))[0].subject.start == 1


BAD = [
    (changed("guid"), ["guid: missing"]),
    (changed("guid", 7), ["guid: expected text", "7"]),
    (changed("sentence"), ["sentence: missing"]),
    (changed("sentence", ""), ["sentence: expected text", 'found ""']),
    (changed("sentence", "가람은 나루시\ud800"), ["sentence: expected valid Unicode", "lone surrogate"]),
    (changed("label"), ["label: missing"]),
    (changed("label", None), ["label: expected text", "null"]),
    (changed("label", "per:birthplace"), ["label: expected one of KLUE-RE's 30 labels", "per:birthplace"]),
    (changed("subject_entity"), ["subject_entity: missing"]),
    (changed("subject_entity", "가람"), ["subject_entity: expected an object with word"]),
    (changed("object_entity.word"), ["object_entity.word: missing"]),
    (changed("object_entity.type"), ["object_entity.type: missing"]),
    (changed("object_entity.type", "CITY"), ["object_entity.type: expected one of PER", 'found "CITY"']),
    (changed("object_entity.start_idx"), ["object_entity.start_idx: missing"]),
    (changed("object_entity.start_idx", "4"), ["object_entity.start_idx: expected a whole number", 'found "4"']),
    (changed("object_entity.end_idx", True), ["object_entity.end_idx: expected a whole number"]),
    (changed("object_entity.end_idx", 7), ["object_entity: expected the word", "end inclusive", "4-7", "나루시에"]),  # an exclusive end
    (changed("object_entity.end_idx", 99), ["object_entity: expected 0 <= start_idx <= end_idx < 15", "4-99"]),
    (changed("object_entity.start_idx", -1), ["object_entity: expected 0 <=", "-1-6"]),
    (changed("object_entity", {"word": "람", "start_idx": 1, "end_idx": 1, "type": "PER"}), ["do not overlap", "0-1 and 1-1"]),
    (["guid"], ["expected an object with guid", 'found ["guid"]']),
]


@pytest.mark.parametrize(("row", "words"), BAD)
def test_bad_row_is_named(tmp_path, row, words):
    path = write(tmp_path / "rows.json", [ROW, row])
    with pytest.raises(UserError) as error:
        read_relations(path)
    message = str(error.value)
    assert f"{path}: 1 problem" in message and "row 2" in message and all(word in message for word in words), message
    assert not isinstance(row, dict) or not isinstance(row.get("guid"), str) or "guid r1" in message


def test_all_problems_in_one_message_up_to_a_limit(tmp_path):
    two = changed("label", "x")
    two["object_entity"]["end_idx"] = 7
    with pytest.raises(UserError) as error:
        read_relations(write(tmp_path / "rows.json", [two] + [changed("guid")] * 30))
    lines = str(error.value).splitlines()
    assert "32 problems" in lines[0] and "row 1 " in lines[1] and "row 1 " in lines[2] and "row 2" in lines[3]
    assert len(lines) == MAX_PROBLEMS_SHOWN + 3 and lines[-2].strip() == "... and 12 more"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["the file is empty", "expected KLUE-RE rows"]),
        (b" \n\n", ["empty"]),
        (b"[]", ["expected KLUE-RE rows, found none", "give a JSON array"]),
        (b"[{]", ["expected a JSON array", "found text that is not JSON", "repair"]),
        (b"guid,sentence\n1,2\n", ["not JSON", "found: line 1", "give KLUE's JSON"]),
        (b"[" * 100000, ["not JSON"]),
        (b"\xff\xfe\x00", ["expected UTF-8", "found byte 0xff at 0", "convert"]),
        (json.dumps({"data": [ROW]}).encode(), ["guid: missing"]),
        (json.dumps(ROW).encode() + b"\n{broken", ["row 2: line 2 is not JSON"]),
    ],
)
def test_unusable_file(tmp_path, content, words):
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_relations(path)
    assert all(word in str(error.value) for word in (str(path), *words)), error.value


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_relations(tmp_path / "none.json")
    with pytest.raises(UserError, match=r"found a folder.*name the file"):
        read_relations(tmp_path)
