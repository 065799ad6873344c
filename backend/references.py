"""Image references as browsers read them: by the rules of the URL standard, and those for `data:` URIs.

The editor hands a reference to an `img` element, so what a browser overlooks (blanks around, line breaks inside, the
case of a scheme) must not matter here either.
"""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

_AROUND = "".join(map(chr, range(0x21)))  # C0 control characters and the blank
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_BASE64_MARK = re.compile(r"; *base64\Z", re.IGNORECASE)
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*")
_ASCII_BLANKS = b"\t\n\f\r "
_BACKSLASHED = ("", "http:", "https:")
"""Schemes whose addresses may have backslashes for slashes; without one, an address is Label Studio's."""


class DataUriError(ValueError):
    """A `data:` URI has no readable content; the message says why."""


def cleaned(reference: str) -> str:
    """A reference without what browsers overlook: equal texts mean the same place."""
    reference = reference.strip(_AROUND)
    for character in "\t\n\r":
        if character in reference:  # a data URI may have megabytes
            reference = reference.replace(character, "")
    found = _SCHEME.match(reference)
    scheme = found[0].lower() if found else ""
    rest = reference[len(scheme) :]
    if scheme in _BACKSLASHED and "\\" in rest:
        end = re.search(r"[?#]|\Z", rest)
        path = rest[: end.start()] if end else rest
        rest = path.replace("\\", "/") + rest[len(path) :]
    return scheme + rest


def data_uri_content(uri: str, max_bytes: int) -> bytes:
    """The bytes of a cleaned `data:` URI. Raises `DataUriError`."""
    head, comma, payload = uri.partition(",")
    if not comma:
        raise DataUriError("is no data URI: it has no comma")
    payload = payload.partition("#")[0]
    raw = unquote_to_bytes(payload) if "%" in payload else payload.encode()
    if _BASE64_MARK.search(head.rstrip(_AROUND)):
        raw = _from_base64(raw, max_bytes)
    if len(raw) > max_bytes:
        raise DataUriError(f"is larger than IMAGE_MAX_BYTES={max_bytes} allows")
    return raw


def _from_base64(raw: bytes, max_bytes: int) -> bytes:
    """As browsers do: blanks anywhere, and padding either complete or left out."""
    raw = raw.translate(None, _ASCII_BLANKS)
    if len(raw) * 3 // 4 > max_bytes + 2:
        raise DataUriError(f"is larger than IMAGE_MAX_BYTES={max_bytes} allows")
    if len(raw) % 4 == 0:
        raw = raw.removesuffix(b"=").removesuffix(b"=")
    if not _BASE64.fullmatch(raw) or len(raw) % 4 == 1:
        raise DataUriError("is not base64")
    try:
        return base64.b64decode(raw + b"=" * (-len(raw) % 4))
    except binascii.Error:
        raise DataUriError("is not base64") from None
