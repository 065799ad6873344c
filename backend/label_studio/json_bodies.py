"""JSON as JavaScript reads it, at the speed of orjson for everything that is ordinary.

RFC 8259 knows neither NaN nor lone surrogates, and orjson refuses a whole body for one of them, in whatever field it
stands. Python, and so Label Studio, writes both. What cannot be a value becomes null (NaN, infinities, numbers too
large for a double), half a surrogate pair becomes U+FFFD, as a browser shows it.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

_STRING_OR_NUMBER = re.compile(
    r'"(?:[^"\\]|\\.)*+(?:"|\Z)'  # a string that is not closed ends the search, not only this match
    r"|-?(?:NaN|Infinity)"
    r"|-?[0-9]++(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?",
    re.DOTALL,
)
_ESCAPE = re.compile(
    r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|\\(u[dD][89a-fA-F])[0-9a-fA-F]{2}|\\.", re.DOTALL
)
_MAX_REPAIRED = 16 << 20
"""Bytes of a text that is repaired: it takes 0.2 s per MB, and a body without its masks has less than one."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def loads(raw: bytes) -> Any:
    """The value of a JSON text. Raises `orjson.JSONDecodeError`, a `ValueError`."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if len(raw) > _MAX_REPAIRED:
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
