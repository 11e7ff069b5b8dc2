"""The contents of files, plain or compressed by bzip2, gzip or xz, as their first bytes tell."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

BUFFER_BYTES = 65536
DAMAGES = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile)
"""What reading a file that is cut short or damaged raises. Other damage to bzip2 files raises an OSError without a number."""


def open_decompressed(raw: BinaryIO) -> io.BufferedReader:
    """The contents of a file that is open at its beginning."""
    magic = raw.read(6)
    raw.seek(0)
    stream: Any = raw
    if magic.startswith(b"BZh"):
        stream = _Streams(raw, bz2.BZ2Decompressor)
    elif magic.startswith(b"\x1f\x8b"):
        stream = gzip.GzipFile(fileobj=raw)
    elif magic.startswith(b"\xfd7zXZ\x00"):
        stream = _Streams(raw, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ))
    return io.BufferedReader(stream, buffer_size=BUFFER_BYTES)


class _Streams(io.RawIOBase):
    """Compressed streams one after another, perhaps with zero bytes between them (xz's stream padding). Python's own readers silently stop
    at anything that does not begin a stream, so that one damaged byte would cost the rest of the file."""

    def __init__(self, raw: BinaryIO, new: Callable[[], Any]) -> None:
        self._raw, self._new = raw, new
        self._decompressor: Any = None  # of the stream that has begun
        self._data = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the whole buffer, over the ends of streams, so that the first read shows the beginning of the file however short its first
        stream is. Raises EOFError where a stream breaks off, LZMAError or OSError where there is something other than a stream."""
        filled = 0
        while filled < len(buffer) and (found := self._read(len(buffer) - filled)):
            buffer[filled : filled + len(found)] = found
            filled += len(found)
        return filled

    def _read(self, most: int) -> bytes:
        while True:
            if self._decompressor is None:
                self._data = self._data.lstrip(b"\0")
                if not self._data and not self._more():
                    return b""
                if self._data.lstrip(b"\0"):
                    self._decompressor = self._new()
                continue
            if self._decompressor.needs_input and not self._data and not self._more():
                raise EOFError("the end of a compressed stream is missing")
            found: bytes = self._decompressor.decompress(self._data, most)
            self._data = b""
            if self._decompressor.eof:
                self._data, self._decompressor = self._decompressor.unused_data, None
            if found:
                return found

    def _more(self) -> bool:
        self._data = self._raw.read(BUFFER_BYTES)
        return bool(self._data)
