"""Input files into documents: every format in every compression, told from the content alone; and what damaged files get."""

import bz2
import gzip
import hashlib
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.collecting import list_inputs
from data_tools.corpus import Corpus
from data_tools.errors import UserError
from data_tools.filters import SentenceFilter
from data_tools.hub import read_dataset
from data_tools.sources import Document, list_files, read_documents
from data_tools.spool import split_documents
from data_tools.wikitext import to_paragraphs
from tests.prepared import DOCUMENTS, run

PLAIN = "첫 문서이다.\n둘째 문단.\n\n\n다음 문서.\n"
JSON_LINES = '{"text": "첫 문서이다.\\n둘째 문단."}\n\n{"text": "다음 문서.", "lang": "ko"}\n'
WIKIEXTRACTOR_JSON = '{"id": "1", "url": "u", "title": "가", "text": "첫 문서이다.\\n둘째 문단."}\n' + json.dumps(
    {"id": "2", "url": "u", "title": "나", "text": "다음 문서."}
)
WIKIEXTRACTOR = """<doc id="1" url="https://ko.wikipedia.org/wiki?curid=1" title="가 &amp; 나">
가 &amp; 나

첫 문서이다.
둘째 문단.

</doc>
<doc id="2" url="u" title="빈 것">
빈 것

다음 문서.
</doc>
"""


def dump(*pages: str, version: str = "0.11", siteinfo: str = "<siteinfo/>") -> str:
    namespace = f"http://www.mediawiki.org/xml/export-{version}/"
    return f'<mediawiki xmlns="{namespace}" version="{version}" xml:lang="ko">\n{siteinfo}\n{"".join(pages)}</mediawiki>\n'


def page(title: str, text: str, namespace: int = 0, extra: str = "") -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return (
        f"<page><title>{title}</title><ns>{namespace}</ns><id>1</id>{extra}<revision><id>2</id>"
        f'<text xml:space="preserve">{escaped}</text></revision></page>\n'
    )


DUMP = dump(
    page("가", "'''첫''' [[문서]]이다.\n\n둘째 문단."),
    page("토론:가", "토론", namespace=1),
    page("옛 이름", "#REDIRECTION [[가]]", extra='<redirect title="가"/>'),
    page("옛 이름 2", "#REDIRECT [[가]]"),
    page("옛 이름 3", "#넘겨주기 [[가]]"),
    page("나", "== 머리 ==\n다음 문서.{{틀}}"),
)
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "bz2": bz2.compress,
    "multistream": lambda data: bz2.compress(data[:100]) + bz2.compress(data[100:]),
    "multistream that begins with a few bytes": lambda data: bz2.compress(data[:4]) + bz2.compress(data[4:]),
    "gz": gzip.compress,
    "gz that begins with a few bytes": lambda data: gzip.compress(data[:4]) + gzip.compress(data[4:]),
    "xz": lzma.compress,
    "xz that begins with a few bytes": lambda data: lzma.compress(data[:4]) + lzma.compress(data[4:]),
    "padded xz": lambda data: lzma.compress(data[:100]) + bytes(8) + lzma.compress(data[100:]) + bytes(4),
}


def paragraphs(document: Document) -> list[str]:
    text = to_paragraphs(document.text, document.namespaces) if document.is_wikitext else document.text
    return [line for line in text.split("\n") if line.strip()]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize(
    "text", [PLAIN, JSON_LINES, WIKIEXTRACTOR_JSON, WIKIEXTRACTOR, DUMP], ids=["plain", "json", "wejson", "we", "dump"]
)
def test_formats_are_told_from_the_content(tmp_path: Path, text: str, compression: str) -> None:
    file = tmp_path / "name says nothing"
    file.write_bytes(COMPRESSIONS[compression](text.encode()))
    documents = list(read_documents(file))
    assert [paragraphs(document) for document in documents] == [["첫 문서이다.", "둘째 문단."], ["다음 문서."]]
    assert documents[-1].position == file.stat().st_size


@pytest.mark.parametrize("text", [PLAIN, JSON_LINES, WIKIEXTRACTOR, '<?xml version="1.0" encoding="utf-16"?>\n' + DUMP])
def test_byte_order_marks(tmp_path: Path, text: str) -> None:
    for encoding in ("utf-16", "utf-8-sig"):
        (tmp_path / "file").write_bytes(text.replace("utf-16", encoding.removesuffix("-sig")).encode(encoding))
        assert len(list(read_documents(tmp_path / "file"))) == 2


def test_wikiextractor_entities_and_titles(tmp_path: Path) -> None:
    (tmp_path / "wiki_00").write_text('<doc id="1" url="u" title="가 &amp; 나">\n가 &amp; 나\n\n3 &lt; 5 &amp; 나.\n</doc>\n')
    (document,) = read_documents(tmp_path / "wiki_00")
    assert document.title == "가 & 나" and paragraphs(document) == ["3 < 5 & 나."]
    (tmp_path / "wiki_01").write_text('<doc id="1" url="u" title=""영웅" > (음반)">\n"영웅" > (음반)\n\n글이다.\n</doc>\n')
    (document,) = read_documents(tmp_path / "wiki_01")
    assert document.title == '"영웅" > (음반)' and paragraphs(document) == ["글이다."]
    rows = [{"url": url, "title": "가", "text": "3 &lt; 5"} for url in ("https://ko.wikipedia.org/wiki?curid=1", "elsewhere")]
    (tmp_path / "wiki.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [paragraphs(document) for document in read_documents(tmp_path / "wiki.jsonl")] == [["3 < 5"], ["3 &lt; 5"]]


SITEINFO = """<siteinfo><sitename>지어낸 백과</sitename><namespaces><namespace key="-2">미디어</namespace><namespace key="0" />
<namespace key="1">토론</namespace><namespace key="6" case="first-letter">두루마리</namespace><namespace key="14">갈래</namespace>
<namespace key="odd">이상한</namespace></namespaces></siteinfo>"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("version", ["0.10", "0.11"])
def test_a_dump_of_either_version_brings_its_namespaces(tmp_path: Path, version: str, encoding: str) -> None:
    old = "<revision><id>1</id><text>옛 글.</text></revision>"
    # 0.11 says of each revision where it came from and how long it is, and lists further parts of it beside the text.
    new = "<origin>2</origin>" if version == "0.11" else ""
    text = page("가", "가[[두루마리:a.jpg|섬네일|[[나]]]][[갈래:다]][[File:b.jpg]] [[토론:라|마]].", extra=old).replace(
        "<id>2</id>", f"<id>2</id>{new}"
    )
    hidden = '<page><title>지운 것</title><ns>0</ns><id>3</id><revision><id>4</id><text deleted="deleted" /></revision></page>'
    xml = f'<?xml version="1.0" encoding="{encoding}"?>\n' + dump(text, hidden, version=version, siteinfo=SITEINFO)
    (tmp_path / "dump").write_bytes(bz2.compress(xml.encode(encoding)[:300]) + bz2.compress(xml.encode(encoding)[300:]))
    assert [(document.title, paragraphs(document)) for document in read_documents(tmp_path / "dump")] == [
        ("가", ["가 마."]),
        ("지운 것", []),
    ]


def test_clean_pages_leave_prose_only() -> None:
    markup = """{{정보상자|이름={{한국어|가}}}}[[파일:a.jpg|섬네일|[[나]]의 사진]]
'''가람'''({{llang|en|River}}, [[한자]]: 江, )은 [[강 (지형)|강]]이다.<ref name="a">출처 {{웹 인용}}</ref><!-- 주석 -->
{| class="wikitable"
! 머리 !! 둘
|-
| 칸 || 칸
|}
== 역사 ==
* 첫째 [https://example.com 항목]&nbsp;이다.
# 둘째 <math>x^2</math>항목이다.<br />줄을 바꾼다.
<gallery>
파일:b.jpg|그림
</gallery>
[[분류:강]][[en:River]] [[:분류:강|분류]]를 보라. __TOC__
"""
    assert to_paragraphs(markup).split("\n") == [
        "가람(한자: 江)은 강이다.",
        "첫째 항목 이다.",
        "둘째 항목이다.",
        "줄을 바꾼다.",
        "분류를 보라.",
    ]


def test_a_page_that_cannot_be_parsed_is_named_and_not_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise RecursionError

    good = Document("좋음", "글이다.", False, 1)
    monkeypatch.setattr("data_tools.wikitext.to_paragraphs", fail)
    result = split_documents([Document("나쁨", "{{", True, 0), good, Document("빔", "...", False, 2)], "rules", SentenceFilter())
    assert result.failed == ["나쁨"] and result.num_without_sentences == 1 and result.text.decode() == "글이다.\n"


def test_directories_are_walked_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b/wiki_01", "b/wiki_00", "a.txt", ".hidden", "c/.git/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("글")
    assert [file.relative_to(tmp_path).as_posix() for file in list_files([tmp_path])] == ["a.txt", "b/wiki_00", "b/wiki_01"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "b")  # a circle
    (tmp_path / "b" / "disk").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "far.txt").write_text("글")
    found = [file.relative_to(tmp_path).as_posix() for file in list_files([tmp_path / "b"])]
    assert found == ["b/disk/far.txt", "b/wiki_00", "b/wiki_01"]
    (tmp_path / "linked" / ".store").mkdir(parents=True)
    (tmp_path / "linked" / ".store" / "a.txt").write_text("글")
    (tmp_path / "linked" / "text").symlink_to(".store")
    assert [file.relative_to(tmp_path).as_posix() for file in list_files([tmp_path / "linked"])] == ["linked/text/a.txt"]
    found = [file.name for file in list_files([tmp_path], besides=tmp_path / "b")]
    assert "a.txt" in found and "wiki_00" not in found
    (tmp_path / "linked" / "gone").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"gone is a link to nothing"):
        list_files([tmp_path / "linked"])
    (tmp_path / "empty").mkdir()
    for path, message in ((tmp_path / "empty", "without files"), (tmp_path / "none", "found nothing there")):
        with pytest.raises(UserError, match=message):
            list_files([path])


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text").write_text("글")
    scandir = os.scandir

    def guarded(path: str) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(PermissionError):
        list_files([tmp_path])


def test_pages_of_old_dumps_say_their_namespace_in_the_title_alone(tmp_path: Path) -> None:
    pages = "".join(
        f"<page><title>{title}</title><revision><text>글이다.</text></revision></page>" for title in ("가: 나", "틀:가", "Talk:가", "가")
    )
    (tmp_path / "dump").write_text(f"<mediawiki>{pages}</mediawiki>")
    assert [document.title for document in read_documents(tmp_path / "dump")] == ["가: 나", "가"]


def test_a_file_with_several_names_is_read_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "2024.txt").write_text("글이다.\n")
    (tmp_path / "texts" / "latest.txt").symlink_to("2024.txt")
    given = [str(tmp_path / "texts"), str(tmp_path / "texts" / "2024.txt")]
    assert list_inputs(given) == [tmp_path / "texts" / "2024.txt"]
    assert capsys.readouterr().out.count("read once") == 2


def test_what_is_one_document_and_what_is_a_list_of_lines(tmp_path: Path) -> None:
    def documents(*lengths: int) -> list[int]:
        text = "\n".join("글이다.\n" * length for length in lengths)
        (tmp_path / "text").write_text(text)
        return [document.text.count("\n") + 1 for document in read_documents(tmp_path / "text")]

    assert documents(9_999) == [9_999]
    assert documents(3, 10_500, 2) == [3, *[100] * 105, 2]  # a title, a blank line, a list
    assert documents(25_050) == [100] * 250 + [50]
    assert documents(10_030, 5) == [100] * 100 + [30, 5]


LONG = ("가나다라 마바사. " * 500 + "\n\n") * 30
BAD_FILES = {
    "truncated bz2": (bz2.compress(LONG.encode())[:-30], "cut short or damaged"),
    "truncated gz": (gzip.compress(LONG.encode())[:-30], "cut short or damaged"),
    "truncated xz": (lzma.compress(LONG.encode())[:-30], "cut short or damaged"),
    "damaged bz2": (b"BZh9" + bytes(range(200)), "cannot be read to the end|cut short"),
    "damaged gz": (gzip.compress(LONG.encode())[:40] + b"\xff" * 99, "cut short or damaged"),
    "second bz2 damaged": (bz2.compress(LONG.encode()) + b"BZi" + bz2.compress(LONG.encode())[3:], "cannot be read to the end"),
    "second xz damaged": (lzma.compress(LONG.encode()) + b"\xfd8" + lzma.compress(LONG.encode())[2:], "cut short or damaged"),
    "SQL dump": ("-- MySQL dump 10.19\nINSERT INTO page VALUES (1);\n", "found an SQL dump"),
    "index": ("602:5:지미 카터\n602:9:수학\n", "found the index"),
    "HTML": ("<!DOCTYPE html>\n<html>글이다.</html>\n", "found HTML"),
    "binary": (bytes(range(256)) * 40, "binary data"),
    "another encoding": ("한국어 글이다.\n" * 9).encode("cp949"),
    "wrong bytes late": (LONG.encode() + b"\n\xea\xb0\xff\xfe", "line 62: expected UTF-8 .* found the bytes 0xeab0ff; convert"),
    "XML cut in the middle": (DUMP[:-60].encode(), "well-formed XML"),
    "another XML": ('<?xml version="1.0"?><rss></rss>', "XML of another kind"),
    "doc without end": (WIKIEXTRACTOR[:-8].encode(), "</doc>"),
    "doc in a doc": (WIKIEXTRACTOR.replace("</doc>", "", 1).encode(), "before the next"),
    "JSON array of strings": ('["가나다 라마.", "나"]'.encode(), "an object a line"),
    "text between docs": ((WIKIEXTRACTOR + "글\n").encode(), '"<doc'),
    "JSON cut": (JSON_LINES[:-9].encode(), "line 3"),
    "JSON without text": (b'{"title": "a"}\n', "line 1.*text"),
    "JSON list": (b'{"text": "a"}\n["a"]\n', "line 2"),
    "JSON array": (json.dumps([{"text": "가나다 라마."}], ensure_ascii=False).encode(), "an object a line"),
    "JSON array over lines": (json.dumps([{"text": "가나다 라마."}], indent=1).encode(), "an object a line"),
    "JSON object over lines": (json.dumps({"text": "가나다 라마."}, indent=1).encode(), "an object a line"),
    "JSON with a huge number": (b'{"text": "a", "id": ' + b"9" * 5000 + b"}\n", "line 1"),
    "XML in euc-kr": ('<?xml version="1.0" encoding="euc-kr"?>\n' + DUMP[DUMP.index("<mediawiki") :], "expected UTF-8 or UTF-16"),
}


def test_a_text_that_begins_with_comments_is_told_quickly(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("<!-- a -->\n" * 40 + "글이다.\n")
    (tmp_path / "dump").write_text("<!-- a -->\n" * 40 + DUMP[DUMP.index("<mediawiki") :])
    assert len(list(read_documents(tmp_path / "file"))) == 1 and next(read_documents(tmp_path / "dump")).is_wikitext


@pytest.mark.parametrize("name", BAD_FILES)
def test_damaged_files_get_one_clear_error(tmp_path: Path, name: str) -> None:
    content = BAD_FILES[name]
    data, message = content if isinstance(content, tuple) else (content, "expected UTF-8")
    (tmp_path / "file").write_bytes(data.encode() if isinstance(data, str) else data)
    with pytest.raises(UserError, match=message) as caught:
        list(read_documents(tmp_path / "file"))
    assert str(tmp_path / "file") in str(caught.value)


def test_a_dataset_folder_is_read_in_streaming_mode(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = "".join(json.dumps({"title": str(i), "text": "\n".join(document)}) + "\n" for i, document in enumerate(DOCUMENTS))
    (tmp_path / "data" / "train.jsonl").write_text(rows)
    run("--input", f"hf:{tmp_path / 'data'}", "--output-dir", tmp_path / "hf", "--vocab-size", 200, "--workers", 1)
    run("--input", tmp_path / "data", "--output-dir", tmp_path / "file", "--vocab-size", 200, "--workers", 1)
    assert Corpus.open(tmp_path / "hf").fingerprint == Corpus.open(tmp_path / "file").fingerprint
    assert len(next(iter(Corpus.open(tmp_path / "hf").manifest["datasets_sha256"].values()))) == 64
    (tmp_path / "data" / "train.jsonl").write_text(json.dumps({"title": "x", "text": None}) + "\n" + rows)
    with pytest.raises(UserError, match="differs in inputs"):  # a row more, in a folder of the same name
        run("--input", f"hf:{tmp_path / 'data'}", "--output-dir", tmp_path / "hf", "--vocab-size", 200, "--workers", 1)
    run("--input", f"hf:{tmp_path / 'data'}", "--output-dir", tmp_path / "null", "--vocab-size", 200, "--workers", 1)
    again = Corpus.open(tmp_path / "null")
    assert again.fingerprint == Corpus.open(tmp_path / "hf").fingerprint and again.manifest["documents"]["without_sentences"] == 1
    with pytest.raises(UserError, match=r"--input hf:.*nowhere"):
        run("--input", f"hf:{tmp_path / 'nowhere'}", "--output-dir", tmp_path / "d", "--workers", 1)
    # hf:DATASET:CONFIG is that part of the dataset and no other
    (tmp_path / "data" / "other.jsonl").write_text(json.dumps({"text": "다른 글이다."}) + "\n")
    parts = "".join(f"- config_name: {name}\n  data_files: {file}\n" for name, file in (("whole", "train.jsonl"), ("part", "other.jsonl")))
    (tmp_path / "data" / "README.md").write_text(f"---\nconfigs:\n{parts}---\n")
    assert [document.text for document in read_dataset(f"hf:{tmp_path / 'data'}:part", 0, hashlib.sha256())] == ["다른 글이다."]
