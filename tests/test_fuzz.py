"""Thousands of mutated inputs through the readers: documents, a counted page-level failure, or a UserError that names the file."""

import bz2
import gzip
import json
import lzma
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from data_tools.errors import UserError
from data_tools.exclusions import read_exclusions
from data_tools.filters import SentenceFilter
from data_tools.sentences import split_sentences
from data_tools.sources import read_documents
from data_tools.spool import batch_documents, split_documents

MARKUP = (
    "'''강'''은 {{틀|이름=값|{{안|쪽}}}} [[서울|서울시]]에 있다.<ref name=\"a\">주석</ref> <!-- 말 --> 길이는 3.5km이다. "
    '[[파일:강.jpg|섬네일|[[강]]의 모습]]\n== 역사 ==\n* 하나 &amp; 둘\n{| class="wikitable"\n|-\n| 칸 || 둘\n|}\n[[분류:강]]'
)
DUMP = "".join(
    [
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="ko"><siteinfo><namespaces>',
        '<namespace key="0" /><namespace key="6">파일</namespace><namespace key="14">분류</namespace></namespaces></siteinfo>',
        *(
            f"<page><title>강 {n}</title><ns>0</ns><id>{n}</id><revision><text>{MARKUP.replace('&', '&amp;').replace('<', '&lt;')}"
            "</text></revision></page>"
            for n in range(3)
        ),
        "</mediawiki>",
    ]
)
PLAIN = "강은 길다. 산은 높다.\n둘째 문단이다.\n\n다음 문서이다.\n"
LINES = "".join(json.dumps({"id": str(n), "url": "", "title": "강", "text": PLAIN}, ensure_ascii=False) + "\n" for n in range(3))
ELEMENTS = f'<doc id="1" url="" title="강">\n강\n{PLAIN.strip()}\n</doc>\n' * 2
SEEDS = [text.encode() for text in (DUMP, PLAIN, LINES, ELEMENTS)] + [DUMP.encode("utf-16"), PLAIN.encode("utf-16")]
PACKERS = [lambda data: data, bz2.compress, gzip.compress, lzma.compress, lambda data: bz2.compress(data[:900]) + bz2.compress(data[900:])]


def mutate(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place, length = rng.randrange(len(out) + 1), rng.choice((1, 1, 4, 60))
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[place % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[place : place + length]
        elif kind == 2:
            out[place:place] = rng.randbytes(length)
        elif kind == 3:
            out[place:place] = rng.choice(
                [b"{{", b"[[", b"{|", b"<ref>", b"<!--", b"]]", b"<", b"&", b"\0", b"\xff", b"\n\n", b'"}', b"</doc>"]
            )
        elif kind == 4:
            out = out[:place]
        else:
            out[place:place] = out[place // 2 : place // 2 + 10 * length]
    return bytes(out)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_mutated_inputs(tmp_path: Path, part: int) -> None:
    rng, outcomes = random.Random(part), Counter[str]()
    file = tmp_path / "input"
    for _ in range(1000):
        seed, pack = rng.choice(SEEDS), rng.choice(PACKERS)
        data = mutate(pack(seed), rng) if rng.random() < 0.4 else pack(mutate(seed, rng))
        file.write_bytes(data)
        begin = time.process_time()
        try:
            for batch in batch_documents(read_documents(file)):
                split = split_documents(batch, "rules", SentenceFilter(script="hangul"))
                outcomes["documents"] += len(split.num_sentences)
                outcomes["failed pages"] += len(split.failed)
                assert split.text.count(b"\n") == sum(split.num_sentences) == len(split.hashes)
        except UserError as error:
            assert str(file) in str(error) and "\n" not in str(error)
            outcomes["refused"] += 1
        try:
            outcomes["keys"] += len(read_exclusions([file], split_sentences))
        except UserError as error:
            assert str(file) in str(error)
        assert time.process_time() - begin < 5, data
    assert outcomes["documents"] > 150 and outcomes["refused"] > 100, outcomes


@pytest.mark.slow
def test_junk_is_refused(tmp_path: Path) -> None:
    rng = random.Random(9)
    for number in range(200):
        (tmp_path / "junk").write_bytes(
            rng.choice((b"", b"BZh9", b"\x1f\x8b", b"\xfd7zXZ\x00", b"<mediawiki", b"\xff\xfe")) + rng.randbytes(300)
        )
        with pytest.raises(UserError):
            list(read_documents(tmp_path / "junk"))
            pytest.fail(f"{number} was read")
