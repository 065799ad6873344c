"""The content of `data:` URIs as browsers read them, by the Fetch standard."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

_ASCII_BLANKS = "\t\n\f\r "
_BASE64_MARK = re.compile(r"; *base64\Z", re.IGNORECASE)
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*={0,2}")
_PIECE = 1 << 18  # characters; a multiple of 4, as base64 has them


class DataUriError(ValueError):
    """A `data:` URI has no readable content; the message says why."""


def data_uri_content(uri: str, max_bytes: int) -> bytes:
    """The bytes of a cleaned `data:` URI. Raises `DataUriError`."""
    head, comma, payload = uri.partition(",")
    if not comma:
        raise DataUriError("is not a data URI: it has no comma")
    payload = payload.partition("#")[0]
    raw = b"".join(map(unquote_to_bytes, _pieces(payload))) if "%" in payload else payload.encode()
    if _BASE64_MARK.search(head.rstrip(_ASCII_BLANKS)):
        raw = _from_base64(raw, max_bytes)
    if len(raw) > max_bytes:
        raise DataUriError(f"is larger than IMAGE_MAX_BYTES={max_bytes} allows")
    return raw


def _pieces(payload: str) -> Iterator[str]:
    """A text in pieces that no escape crosses: unquoting takes fifty times the bytes of what it is given, and lets no
    other thread run meanwhile."""
    begin = 0
    while begin < len(payload):
        end = begin + _PIECE
        escape = payload.rfind("%", end - 2, end)
        if escape >= 0:
            end = escape
        yield payload[begin:end]
        begin = end


def _from_base64(raw: bytes, max_bytes: int) -> bytes:
    """As browsers do: blanks anywhere, and padding either complete or left out."""
    raw = raw.translate(None, _ASCII_BLANKS.encode())
    if len(raw) * 3 // 4 > max_bytes + 2:
        raise DataUriError(f"is larger than IMAGE_MAX_BYTES={max_bytes} allows")
    if len(raw) % 4 == 0:
        raw = raw.removesuffix(b"=").removesuffix(b"=")
    if b"=" in raw or len(raw) % 4 == 1:
        raise DataUriError("is not base64")
    raw += b"=" * (-len(raw) % 4)
    # In pieces: no other thread runs while one is decoded.
    return b"".join(_piece_from_base64(raw[start : start + _PIECE]) for start in range(0, len(raw), _PIECE))


def _piece_from_base64(raw: bytes) -> bytes:
    if not _BASE64.fullmatch(raw):
        raise DataUriError("is not base64")
    try:
        return base64.b64decode(raw)
    except binascii.Error:
        raise DataUriError("is not base64") from None
