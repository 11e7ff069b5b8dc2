"""Evaluation files of any shape, and what of them a corpus must not hold."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_tools.errors import UserError
from data_tools.exclusions import read_exclusions
from data_tools.filters import content_key


def test_notes_and_columns_hide_no_evaluation_sentence(tmp_path: Path) -> None:
    (tmp_path / "sts.tsv").write_text("id\t가나다라마바사아자차카타\t하나 둘 셋 넷 다섯 여섯 일곱\n")
    keys = read_exclusions([tmp_path / "sts.tsv"], lambda text: [text])
    (tmp_path / "sts.csv").write_text('id,one,two\n1,"가나다라마바사, 아자차카타",하나 둘 셋 넷 다섯 여섯 일곱\n')
    for found in (keys, read_exclusions([tmp_path / "sts.csv"], lambda text: [text])):
        for text in ("가나다라마바사아자차카타.[1]", "하나 둘 셋 넷 다섯, 여섯 일곱[12][3] "):
            assert np.uint64(content_key(text)) in found, text
    (tmp_path / "text").write_text("가나다라마바사, 아자차카타\n하나 둘 셋 넷 다섯 여섯 일곱이다\n")  # commas, and no table
    assert len(read_exclusions([tmp_path / "text"], lambda text: [text])) == 2


def test_evaluation_files_of_any_shape_are_read_whole_or_refused(tmp_path: Path) -> None:
    rows = [{"guid": f"g{number}", "sentence": f"{number}번째 문장은\u2028가나다라마바사이다."} for number in range(9)]
    shapes = {
        "array": json.dumps(rows, ensure_ascii=False),
        "lines": "\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
        "text": "\n".join(row["sentence"].replace("\u2028", " ") for row in rows),
    }
    keys = {}
    for name, content in shapes.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        keys[name] = read_exclusions([tmp_path / name], lambda text: [text])
    assert len(keys["array"]) == 9 and all((found == keys["array"]).all() for found in keys.values())
    for name, content in (
        ("numbers first", '[12, "가나다라마바사아자차카타파하"]'),
        ("lists", '[["가나다라마바사아자차카타파하"]]\n[[1, "가나다라마바사아자차카"]]'),
        ("wiki", "[[서울]]은 한국의 수도이고 가나다라마바사이다.\n[1] 가나다라마바사아자차카타"),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert len(read_exclusions([tmp_path / name], lambda text: [text])) == (1 if name == "numbers first" else 2), name
    for name in ("array", "lines"):
        (tmp_path / name).write_text(shapes[name][:-20], encoding="utf-8")
        with pytest.raises(UserError, match="begins as JSON, but is neither"):
            read_exclusions([tmp_path / name], lambda text: [text])
