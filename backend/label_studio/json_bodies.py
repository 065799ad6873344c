"""JSON as JavaScript reads it, at the speed of orjson for ordinary texts.

RFC 8259 allows neither NaN nor lone surrogates, and orjson refuses a whole body for one of them in any field. Python,
and so Label Studio, writes both. NaN, infinities and numbers too large for a double become null, half a surrogate pair
becomes U+FFFD, as a browser shows it.
"""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import orjson

_STRING_OR_NUMBER = re.compile(
    r'"(?:[^"\\]|\\.)*+(?:"|\Z)'  # an unclosed string ends the search, not only this match
    r"|-?(?:NaN|Infinity)"
    r"|-?[0-9]++(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?",
    re.DOTALL,
)
_ESCAPE = re.compile(
    r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|\\(u[dD][89a-fA-F])[0-9a-fA-F]{2}|\\.", re.DOTALL
)
_MAX_REPAIRED = 4 << 20
"""Bytes of a text that may be repaired: that takes 0.2 s per MB, and a body without its masks has less than one MB."""
MAX_CONTAINERS = 500_000
"""Opening brackets of a text. The interpreter builds all lists and objects without letting another thread run."""
MAX_VALUES = 1_000_000
"""Commas of a text, for the same reason; lists under an "rle" key are removed before."""
_PIECE = 1 << 20  # bytes searched before another thread may run
_BIG = 1 << 20
_SHORT = 0.02  # seconds, after which nobody needs a pause
_turn = Lock()
_SURROGATE = re.compile("[\ud800-\udfff]")


@contextmanager
def turn(num_bytes: int) -> Iterator[None]:
    """For whoever works on a text of so many bytes: one text above 1 MB at a time.

    Parsing lets no other thread run, and while one text is parsed after the other, whoever answers anything else would
    wait for many of them. So the interpreter belongs to others afterwards, for as long as it was taken. Meanwhile no
    garbage is looked for: a text makes none, but so many objects that the whole process would be searched, several
    times.
    """
    if num_bytes <= _BIG:
        yield
        return
    with _turn:
        begin, is_collecting = time.thread_time(), gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if is_collecting:
                gc.enable()
            taken = time.thread_time() - begin
            if taken > _SHORT:
                time.sleep(taken)


def loads(raw: bytes, is_trusted: bool = False) -> Any:
    """The value of a JSON text; call it in a `turn`. Raises `orjson.JSONDecodeError`, a `ValueError`, also for more
    than `MAX_CONTAINERS` or `MAX_VALUES`, unless the text comes from somebody trusted."""
    if not is_trusted:
        _check_size(raw)
    return _parsed(raw)


def count(raw: bytes, wanted: bytes) -> int:
    """How often `wanted` occurs in a text; other threads may run meanwhile."""
    more = _PIECE + len(wanted) - 1
    return sum(raw.count(wanted, start, start + more) for start in range(0, len(raw), _PIECE))


def find(raw: bytes, wanted: bytes, position: int) -> int:
    """As `bytes.find`; other threads may run meanwhile."""
    more = _PIECE + len(wanted) - 1
    places = (raw.find(wanted, start, start + more) for start in range(position, len(raw), _PIECE))
    return next((place for place in places if place >= 0), -1)


def _check_size(raw: bytes) -> None:
    """Brackets and commas inside strings count too: the bound need not be exact, and this check never blocks the
    interpreter for long."""
    containers = values = 0
    for start in range(0, len(raw), _PIECE):
        end = start + _PIECE
        containers += raw.count(b"[", start, end) + raw.count(b"{", start, end)
        values += raw.count(b",", start, end)
        if containers > MAX_CONTAINERS or values > MAX_VALUES:
            sentence = f"more than {MAX_CONTAINERS:,} lists and objects, or {MAX_VALUES:,} values"
            raise orjson.JSONDecodeError(sentence, "", 0)


def _parsed(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if len(raw) > _MAX_REPAIRED or "depth" in error.msg:  # no repair reduces the depth
            raise
        try:
            text = raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise error from None
        return orjson.loads(_STRING_OR_NUMBER.sub(_repaired, _SURROGATE.sub("\ufffd", text)))


def _repaired(token: re.Match[str]) -> str:
    text = token[0]
    if text.startswith('"'):
        return _ESCAPE.sub(_unpaired, text) if "\\u" in text else text
    if text[-1] in "Ny":
        return "null"
    is_large = len(text) > 300 or "e" in text or "E" in text
    return "null" if is_large and float(text) in (float("inf"), float("-inf")) else text


def _unpaired(escape: re.Match[str]) -> str:
    return "\\ufffd" if escape[3] else escape[0]
