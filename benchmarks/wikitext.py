"""How well and how fast MediaWiki dumps are read, by us and by the WikiExtractor command.

    python -m benchmarks.wikitext DUMP.xml[.bz2] ... [--wikiextractor COMMAND] [--output FILE.json]

Measured: lines with leftover markup per 1,000, the per cent of one side's words that the other has on the same page, and megabytes of XML
per second of CPU time (the least of three runs, on uncompressed XML; it includes the command's own start of about 0.1 s). Besides the
dumps that are named, two generated ones are read: the quickstart's Korean world, and the same prose in the markup of a Korean
encyclopedia, of which we know what should come out. WikiExtractor is AGPL: a program found on the PATH, never imported, no dependency. It
takes no dump without <siteinfo>, so that it gets a copy that has one; and it leaves out the items of lists, which are prose to us.
"""

import argparse
import bz2
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.sax.saxutils import escape

from data_tools.sources import read_documents
from data_tools.wikitext import to_paragraphs

# What no line of prose holds; one list for both tools.
LEFTOVER = {
    "links": r"\[\[|\]\]",
    "templates": r"\{\{|\}\}",
    "tables": r"\{\||\|\}|^\s*\||^\s*!.*(?:!!|\|)|\|\||\b(?:style|align|valign|colspan|rowspan|bgcolor|cellpadding)\s?=",
    "tags": r"<!--|-->|</?[A-Za-z][A-Za-z0-9]*(?:\s[^<>]*)?/?>",
    "entities": r"&(?:#\d+|#[xX][0-9a-fA-F]+|[A-Za-z]+\d*);",
    "quotes": r"''",
    "headings": r"^=+[^=].*=\s*$",
    "switches": r"__[A-Z]{3,}__|~~~",
    "files": r"\b(?:File|Image|Category|Template)\s?:\s?\S|(?:파일|그림|분류|틀):",
    "list marks": r"^[*#:;]",
}
PLACEHOLDER = re.compile(r"\b(?:formula|codice)_\d+")
SITEINFO = "<siteinfo><base>https://en.wikipedia.org/wiki/Main_Page</base><namespaces>{}</namespaces></siteinfo>".format(
    "".join(
        f'<namespace key="{key}">{name}</namespace>' for key, name in ((6, "File"), (10, "Template"), (14, "Category"), (828, "Module"))
    )
)
WORD = re.compile(r"\w+")
DRESSED_WORDS = (  # the share of words up to which; a word in markup, and what should come out. ○: the word, №: the number of its line
    (0.03, "[[○ (동음이의)|○]]", "○"),
    (0.06, "[[○]]", "○"),
    (0.07, "[[위키백과:○|○]]", "○"),
    (0.08, "''○''", "○"),
    (0.09, "<small>○</small>", "○"),
    (0.10, "[https://example.com/№ ○]", "○"),
    (0.11, "○<!-- [[확인]] {{필요}} -->", "○"),
    (0.12, "○([[한자]]: 江山, {{llang|en|River}})", "○(한자: 江山)"),
    (0.13, "○({{llang|ja|川}}, {{llang|en|River}})", "○"),
    (0.14, '<span style="color:red">○</span>', "○"),
)
A_TABLE = '{| class="wikitable" style="width:50%"\n! 머리 !! 둘째\n|-\n| 칸 ||\n{|\n| 안쪽 [[칸]]\n|}\n| colspan=2 | 끝\n|}'
GALLERY = "<gallery>\n파일:가.jpg|그림 {{작게|가}}\n파일:나.jpg|그림 나\n</gallery>"
FORGOTTEN = (  # as people forget to close them
    "{{닫지 않은 틀|값",
    "[[파일:닫지 않은.jpg|섬네일",
    "}}",
    "|}",
    "<ref>닫지 않은 주석",
    "{| class=wikitable\n|-\n| 칸",
)
Pages = dict[str, list[str]]  # lines of prose by title


def read_with_ours(dump: Path) -> Pages:
    pages = {}
    for document in read_documents(dump):
        pages[document.title] = to_paragraphs(document.text, document.namespaces).splitlines()
    return pages


def run_wikiextractor(command: str, dump: Path, output: Path) -> float:
    """Write what it extracts; its CPU seconds. Raises CalledProcessError when it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(output, "wb") as stream:
        subprocess.run([command, "--quiet", "--processes", "1", "--output", "-", str(dump)], stdout=stream, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def read_extracted(output: Path) -> Pages:
    return {document.title: [line for line in document.text.splitlines() if line.strip()] for document in read_documents(output)}


def headings_of(dump: Path) -> dict[str, set[str]]:
    """The headings of each page as WikiExtractor prints them. It keeps them as lines "Title.", we drop them: they are no lost prose."""
    heading = re.compile(r"^=+[ \t]*(.*?)[ \t]*=+[ \t]*$", re.MULTILINE)
    tidy = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]|'{2,}|<[^<>]*>|\{\{[^{}]*\}\}")
    return {
        document.title: {tidy.sub(r"\1", found).strip() + "." for found in heading.findall(document.text)}
        for document in read_documents(dump)
    }


def count_words(lines: list[str]) -> Counter[str]:
    return Counter(word.lower() for line in lines for word in WORD.findall(PLACEHOLDER.sub(" ", line)))


def recall(wanted: Pages, found: Pages) -> float:
    """The share of the words of `wanted` that are in the same page of `found`, in per cent."""
    total = kept = 0
    for title, lines in wanted.items():
        words = count_words(lines)
        total += words.total()
        kept += (words & count_words(found.get(title, []))).total()
    return 100 * kept / max(total, 1)


def measure_lines(pages: Pages) -> dict[str, object]:
    lines = [line for page in pages.values() for line in page]
    kinds = {kind: sum(1 for line in lines if re.search(pattern, line)) for kind, pattern in LEFTOVER.items()}
    dirty = sum(1 for line in lines if any(re.search(pattern, line) for pattern in LEFTOVER.values()))
    return {
        "pages": len(pages),
        "lines": len(lines),
        "words": sum(count_words(lines).values()),
        "leftover_lines_per_1000": round(1000 * dirty / max(len(lines), 1), 3),
        "leftover_kinds": {kind: count for kind, count in kinds.items() if count},
        "placeholders": sum(len(PLACEHOLDER.findall(line)) for line in lines),
    }


def least_of_three(run: Callable[[], float]) -> float:
    return min(run() for _ in range(3))


def cpu_seconds(run: Callable[[], object]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def compare(dump: Path, command: str, folder: Path, truth: Pages | None) -> dict[str, object]:
    """Our reading of a dump beside wikiextractor's, and of both beside the truth where it is known; MB and seconds of CPU time."""
    xml = folder / "dump.xml"
    xml.write_bytes(bz2.decompress(dump.read_bytes()) if dump.suffix == ".bz2" else dump.read_bytes())
    megabytes = xml.stat().st_size / 1e6
    ours, seconds = read_with_ours(xml), least_of_three(lambda: cpu_seconds(lambda: read_with_ours(xml)))
    packed = folder / "dump.xml.bz2"
    packed.write_bytes(bz2.compress(xml.read_bytes()))
    record: dict[str, object] = {"dump": dump.name, "megabytes": round(megabytes, 2)}
    record["ours"] = measure_lines(ours) | {
        "megabytes_per_second": round(megabytes / seconds, 2),
        "megabytes_per_second_from_bz2": round(megabytes / least_of_three(lambda: cpu_seconds(lambda: read_with_ours(packed))), 2),
    }
    text = xml.read_text(encoding="utf-8")
    if "<siteinfo" not in text:
        xml.write_text(re.sub(r"(<mediawiki[^>]*>)", lambda match: match[0] + "\n" + SITEINFO.replace("><", ">\n<") + "\n", text, count=1))
    extracted = folder / "extracted"
    seconds = least_of_three(lambda: run_wikiextractor(command, xml, extracted))
    theirs, headings = read_extracted(extracted), headings_of(xml)
    record["wikiextractor"] = measure_lines(theirs) | {"megabytes_per_second": round(megabytes / seconds, 2)}
    prose = {title: [line for line in lines if line.strip() not in headings.get(title, ())] for title, lines in theirs.items()}
    record["recall_of_theirs_in_ours"] = round(recall(prose, ours), 2)
    record["recall_of_ours_in_theirs"] = round(recall(ours, theirs), 2)
    if truth is not None:
        record["recall_of_the_truth"] = {"ours": round(recall(truth, ours), 2), "wikiextractor": round(recall(truth, theirs), 2)}
        record["precision_by_the_truth"] = {"ours": round(recall(ours, truth), 2), "wikiextractor": round(recall(prose, truth), 2)}
    return record


def dress(lines: list[str], title: str, rng: random.Random) -> tuple[str, list[str]]:
    """The markup of a page whose prose is `lines`, and what should come out: the prose, its glosses, the items of its lists."""
    markup = [
        f"{{{{인물 정보\n| 이름 = {{{{lang|ko|{title}}}}}\n| 그림 = [[파일:{title}.jpg|200px]]\n| 설명 = {{{{작게|설명}}}}<br />둘째\n}}}}",
        f"[[파일:{title}.jpg|섬네일|오른쪽|[[{title}]]의 사진.<ref>《사진집》</ref> 뒤에 [[산|뒷산]]이 보인다.]]",
    ]
    truth = []
    for number, line in enumerate(lines):
        words, shown = zip(*(dress_word(word, number, rng) for word in line.split(" ")), strict=True)
        text = "&nbsp;".join(words) if rng.random() < 0.02 else " ".join(words)
        if rng.random() < 0.3:
            text += f'<ref name="{number}">{{{{웹 인용|url=https://example.com/?a=1&b=2|제목=제목 {number}}}}}</ref><ref name="{number}" />'
        if rng.random() < 0.1:
            markup.append(f"== {title} {number} ==")
        if rng.random() < 0.1:
            markup.append(A_TABLE)
        if rng.random() < 0.05:
            markup.append(GALLERY)
        if rng.random() < 0.002:  # on one page in a hundred
            markup.append(rng.choice(FORGOTTEN))
        markup.append(rng.choice((*("",) * 9, "* ", "# ", ": ")) + text)
        truth.append(" ".join(shown))
    markup += [
        "== 각주 ==\n{{각주}}\n<references />",
        f"{{{{둘러보기 상자|제목={title}|목록=* [[가]]\n* [[나]]}}}}",
        f"[[분류:{title}]] [[en:River]]",
    ]
    return "\n\n".join(markup), truth


def dress_word(word: str, number: int, rng: random.Random) -> tuple[str, str]:
    """A word of the line `number`: in markup, and what should come out."""
    if word.isalnum():
        way = rng.random()
        for share, markup, shown in DRESSED_WORDS:
            if way < share:
                return markup.replace("№", str(number)).replace("○", word), shown.replace("○", word)
    return word, word


def write_dressed(source: Path, target: Path) -> Pages:
    """A dump of the same articles in thick markup; returns what its pages say."""
    rng, truths = random.Random(0), {}

    def pages() -> Iterator[str]:
        header = source.read_text(encoding="utf-8").partition("<page>")[0]
        yield header
        for number, (title, lines) in enumerate(read_with_ours(source).items(), 1):
            markup, truths[title] = dress(lines, title, rng)
            yield f"<page>\n<title>{escape(title)}</title>\n<ns>0</ns>\n<id>{number}</id>\n<revision>\n<id>{number}</id>\n"
            yield f'<text xml:space="preserve">{escape(markup)}</text>\n</revision>\n</page>\n'
        yield "</mediawiki>\n"

    target.write_text("".join(pages()), encoding="utf-8")
    return truths


def show(record: dict) -> str:
    lines = [f"{record['dump']}: {record['megabytes']} MB of XML"]
    for name in ("ours", "wikiextractor"):
        tool = record[name]
        lines.append(
            f"  {name:14}{tool['lines']:7} lines {tool['words']:8} words  leftover in {tool['leftover_lines_per_1000']:7.2f} of 1,000 lines"
            f"  {tool['megabytes_per_second']:6.2f} MB/s  {tool['leftover_kinds']}"
        )
    lines.append(
        f"  theirs in ours {record['recall_of_theirs_in_ours']} %, ours in theirs {record['recall_of_ours_in_theirs']} %"
        f"; ours from .bz2 {record['ours']['megabytes_per_second_from_bz2']} MB/s"
    )
    if "recall_of_the_truth" in record:
        lines.append(f"  recall of what was put in {record['recall_of_the_truth']}, precision {record['precision_by_the_truth']}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dumps", nargs="*", type=Path)
    parser.add_argument("--wikiextractor", default="wikiextractor", help="the command (default: the one on the PATH)")
    parser.add_argument("--output", type=Path, help="where the record goes, as JSON")
    arguments = parser.parse_args()
    records = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(
            [sys.executable, "-m", "data_tools.world", "--output-dir", str(folder / "world")], check=True, stdout=subprocess.DEVNULL
        )
        world, dressed = folder / "world" / "wiki.xml", folder / "dressed.xml"
        truth = write_dressed(world, dressed)
        for dump in [*arguments.dumps, world, dressed]:
            records.append(compare(dump, arguments.wikiextractor, folder, truth if dump == dressed else None))
            print(show(records[-1]), flush=True)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
