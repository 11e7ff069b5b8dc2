"""Input files as a stream of documents. A file's format is told from its content, never from its name.

Formats: MediaWiki XML dump; WikiExtractor's `<doc>` output; JSON lines with "text" (WikiExtractor's included); plain text, one
paragraph a line, a blank line between documents. Each plain or compressed by bzip2, gzip or xz.
"""

import codecs
import html
import io
import json
import os
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO
from xml.etree import ElementTree

from data_tools.compression import DAMAGES, open_decompressed
from data_tools.errors import UserError
from data_tools.wikitext import DEFAULT_NAMESPACES, Namespaces

HEAD_BYTES = 65536
# So many paragraphs without a blank line are taken for a list of lines, which becomes documents of LINES_TOGETHER lines each.
MAX_PARAGRAPHS, LINES_TOGETHER = 10_000, 100
_DOC_START = re.compile(r"<doc\b.*>\s*$")
_DOC_TITLE = re.compile(r'\btitle="(.*)"[^"]*>\s*$')  # WikiExtractor escapes nothing in it
# Files that come with a dump, or saved web pages: we would read them as lines of text, but they are not prose.
_NO_PROSE = {
    "an SQL dump": re.compile(r"-- (MySQL|MariaDB|PostgreSQL|phpMyAdmin)\b.*dump", re.IGNORECASE),
    "the index of a multistream dump": re.compile(r"\d+:\d+:\S"),
    "HTML": re.compile(r"<(!doctype html|html)\b", re.IGNORECASE),
}
_REDIRECT = re.compile(r"\s*#\s*(redirect|넘겨주기)\b", re.IGNORECASE)


class Document(NamedTuple):
    """One article, not yet split. `position` counts the bytes of the input files, as they are on disk, that were read so far."""

    title: str
    text: str  # paragraphs, one a line; or MediaWiki markup
    is_wikitext: bool
    position: int
    namespaces: Namespaces = DEFAULT_NAMESPACES  # of the dump that the markup is from


def list_files(paths: list[Path], besides: Path | None = None) -> list[Path]:
    """The files under `paths` in sorted order, hidden ones and those in the folder `besides` left out.

    Raises UserError when a path is missing or holds no file, or a link points to nothing, OSError for a folder that cannot be read.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_file():
            files.append(path)
        elif path.is_dir():
            found = [file for file in _walk(path) if not _is_hidden(file.relative_to(path)) and _is_there(file)]
            if besides and besides.resolve().is_relative_to(path.resolve()):
                found = [file for file in found if not file.resolve().is_relative_to(besides.resolve())]
            if not found:
                raise UserError(f"--input {path}: expected text files, found a directory without files; name another")
            files += sorted(found, key=lambda file: file.relative_to(path).as_posix())
        elif path.exists():
            raise UserError(f"--input {path}: expected a file or a directory, found a pipe or a device; write it to a file first")
        else:
            raise UserError(f"--input {path}: expected a file or a directory, found nothing there; check the path")
    return files


def _walk(path: Path) -> Iterator[Path]:
    """The files in a folder and the folders below it, those that links lead to included, each folder once."""
    seen = set()

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(path, followlinks=True, onerror=refuse):
        # which of two ways into a folder is taken must not depend on the file system
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(folder, name) for name in names)


def _is_there(file: Path) -> bool:
    if file.is_symlink() and not file.exists():
        raise UserError(f"--input: {file} is a link to nothing; remove it, or mount what it points to")
    return file.is_file()


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def read_documents(path: Path, start: int = 0) -> Iterator[Document]:
    """The documents of one file, before which `start` bytes of others were read.

    Raises UserError when it is damaged, cut short or not text.
    """
    with open(path, "rb") as raw:
        try:
            stream = open_decompressed(raw)
            head = stream.peek(HEAD_BYTES)[:HEAD_BYTES]
            for document in _parse(stream, head, path):
                yield document._replace(position=start + raw.tell())
        except DAMAGES as error:
            raise UserError(f"{path}: expected a whole compressed file, found it cut short or damaged ({error}); fetch it again") from error
        except UnicodeDecodeError as error:
            raise UserError(
                f"{_place_of_bad_bytes(path)}: expected UTF-8 text (or a MediaWiki dump), found the bytes "
                f"0x{error.object[error.start : error.end + 1].hex()}; convert the file or leave it out"
            ) from error
        except ElementTree.ParseError as error:
            raise UserError(f"{path}: expected well-formed XML to the end, found: {error}; the dump is cut short or damaged") from error
        except (ValueError, LookupError) as error:  # XML that declares an encoding the parser does not know
            raise UserError(
                f"{path}: expected UTF-8 or UTF-16, found an encoding that cannot be read ({error}); convert the file"
            ) from error
        except OSError as error:  # bz2 reports damage like this
            raise UserError(f"{path}: cannot be read to the end: {error}; fetch it again or leave it out") from error


def _place_of_bad_bytes(path: Path) -> str:
    """The first line that is not UTF-8; the file alone where there is none (UTF-16)."""
    with open(path, "rb") as raw:
        for number, line in enumerate(open_decompressed(raw), 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"{path}, line {number}"
    return str(path)


def _parse(stream: io.BufferedReader, head: bytes, path: Path) -> Iterator[Document]:
    """The documents, in the format that `head`, the file's beginning, shows. Their positions are not known yet."""
    utf16 = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if utf16 else "utf-8-sig"
    start = codecs.getincrementaldecoder(encoding)("replace").decode(head)
    first_line = next((line for line in start.splitlines() if line.strip()), "")
    if re.match(r"\s*(<\?xml\b[^>]*>\s*)?(<!--(?:(?!-->).)*-->\s*)*<mediawiki\b", start, re.DOTALL):
        return _parse_mediawiki(stream)
    if "\0" in start:
        raise UserError(f"{path}: expected text, found binary data (a zero byte near the start); leave the file out")
    if first_line.lstrip().startswith("<?xml"):
        raise UserError(f"{path}: expected a MediaWiki dump, found XML of another kind; convert it to plain text or JSON lines")
    for kind, sign in _NO_PROSE.items():
        if sign.match(first_line.strip()):
            raise UserError(f"{path}: expected prose, found {kind}; leave the file out, or convert it to plain text or JSON lines")
    lines = io.TextIOWrapper(stream, encoding=encoding)
    if _DOC_START.match(first_line.strip()):
        return _parse_doc_elements(lines, path)
    if re.match(r'\s*\{\s*"', first_line):
        return _parse_json_lines(lines, path)
    if re.match(r'\s*(\[\s*(\{|$|"[^"]*"\s*[],])|\{\s*\}?\s*$)', first_line):
        raise UserError(
            f"{path}: expected JSON, an object a line, found an array, or an object over several lines; rewrite the file or leave it out"
        )
    return _parse_plain(lines)


def _parse_mediawiki(stream: BinaryIO) -> Iterator[Document]:
    """Articles (namespace 0) that are not redirects, in their last revision."""
    pages = ElementTree.iterparse(stream, events=("start", "end"))
    _, root = next(pages)
    namespaces = DEFAULT_NAMESPACES
    for event, element in pages:
        if event == "start":
            continue
        name = element.tag.rpartition("}")[2]
        if name == "siteinfo":
            found = element.iterfind("{*}namespaces/{*}namespace")
            namespaces = Namespaces.of_dump([(each.get("key", ""), each.text or "") for each in found])
        elif name == "page":
            if article := _read_page(element, namespaces):
                yield article
            root.clear()  # or the whole dump stays in memory


def _read_page(page: ElementTree.Element, namespaces: Namespaces) -> Document | None:
    """The last revision of a page; None for a redirect and for what is not an article."""
    title = page.findtext("{*}title") or ""
    number = page.findtext("{*}ns")  # which old exports lack
    is_article = namespaces.has_article(title) if number is None else number.strip() == "0"
    if not is_article or page.find("{*}redirect") is not None:
        return None
    texts = [revision.findtext("{*}text") for revision in page.iterfind("{*}revision")]
    text = (texts or [""])[-1] or ""
    return None if _REDIRECT.match(text) else Document(title, text, True, 0, namespaces)


def _parse_doc_elements(lines: TextIO, path: Path) -> Iterator[Document]:
    """WikiExtractor: `<doc id= url= title=>`, the title again, the article, `</doc>`; <, > and & are escaped."""
    paragraphs: list[str] | None = None
    title = ""
    for line in lines:
        line = line.rstrip("\n")
        if paragraphs is None:
            if _DOC_START.match(line):
                paragraphs = []
                found = _DOC_TITLE.search(line)
                title = html.unescape(found.group(1)) if found else ""
            elif line.strip():
                raise UserError(f'{path}: expected "<doc ...>" of WikiExtractor output, found {line[:60]!r}; run the extractor again')
        elif line.strip() == "</doc>":
            if paragraphs and html.unescape(paragraphs[0]).strip() == title.strip():
                paragraphs = paragraphs[1:]
            yield Document(title, html.unescape("\n".join(paragraphs)), False, 0)
            paragraphs = None
        elif _DOC_START.match(line):
            raise UserError(f'{path}: expected "</doc>" before the next "<doc ...>", found none in {title!r}; extract the file again')
        else:
            paragraphs.append(line)
    if paragraphs is not None:
        raise UserError(f'{path}: expected "</doc>" at the end, found none in {title!r}: the file is cut short; extract it again')


def _parse_json_lines(lines: TextIO, path: Path) -> Iterator[Document]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            article = json.loads(line)
        except (ValueError, RecursionError) as error:  # not only JSONDecodeError: a number may have thousands of digits
            raise UserError(f"{path}, line {number}: expected one JSON object a line, found {line[:60]!r} ({error})") from error
        text = article.get("text") if isinstance(article, dict) else None
        if not isinstance(text, str):
            raise UserError(f'{path}, line {number}: expected an object with a string "text", found {line[:60]!r}; fix the line')
        is_wikiextractor = "curid=" in str(article.get("url"))  # WikiExtractor writes such addresses, and escapes <, > and &
        yield Document(str(article.get("title", "")), html.unescape(text) if is_wikiextractor else text, False, 0)


def _parse_plain(lines: TextIO) -> Iterator[Document]:
    """Documents separated by blank lines; a list of lines becomes documents of at most LINES_TOGETHER lines."""
    together: list[str] = []
    is_list = False
    for line in chain(lines, ["\n"]):
        blank = not line.strip()
        if not blank:
            together.append(line.rstrip("\n"))
        is_list = not blank and (is_list or len(together) == MAX_PARAGRAPHS)
        if together and (blank or (is_list and len(together) >= LINES_TOGETHER)):
            for start in range(0, len(together), LINES_TOGETHER if is_list else len(together)):
                yield Document("", "\n".join(together[start : start + LINES_TOGETHER] if is_list else together), False, 0)
            together = []


def relative_name(file: Path, paths: list[Path]) -> str:
    """A file's name as the manifest gives it: below the input it came from, so that it does not depend on the machine."""
    for path in paths:
        if path.is_dir() and file.is_relative_to(path):
            return f"{path.resolve().name}/{file.relative_to(path).as_posix()}"
    return os.path.basename(file)
