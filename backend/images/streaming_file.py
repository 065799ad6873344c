"""A download that is read while it arrives, so that decoding does not wait for its end."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, BinaryIO


def streaming_file(chunks: Iterator[bytes]) -> BinaryIO:
    """A seekable binary file over chunks of bytes. Received bytes are kept, further ones are fetched when they are
    read.

    The network keeps filling its buffers while the reader computes, so that the two overlap without a thread. Errors
    raised by `chunks` reach the reader.
    """
    return io.BufferedReader(_StreamingFile(chunks))


class _StreamingFile(io.RawIOBase):
    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._held = bytearray()
        self._place = 0
        self._at_end = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        self._fetch(self._place + 1)
        found = self._held[self._place : self._place + len(buffer)]
        buffer[: len(found)] = found
        self._place += len(found)
        return len(found)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_END:
            self._fetch(None)
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: len(self._held)}[whence]
        self._place = max(0, start + offset)
        return self._place

    def _fetch(self, end: int | None) -> None:
        """Wait until the bytes before `end` are there; None for all."""
        while not self._at_end and (end is None or len(self._held) < end):
            chunk = next(self._chunks, b"")
            self._at_end = not chunk
            self._held += chunk
