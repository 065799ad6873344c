"""Image references as browsers read them, by the rules of the URL standard.

The editor passes a reference to an `img` element, so what a browser ignores (surrounding blanks, line breaks, the case
of a scheme) must not matter here either.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

_AROUND = "".join(map(chr, range(0x21)))  # C0 control characters and the blank
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_BACKSLASHED = ("", "http:", "https:")
"""Schemes whose addresses may have backslashes instead of slashes; without a scheme, an address is Label Studio's."""


def cleaned(reference: str) -> str:
    """A reference without what browsers ignore, so that equal texts mean the same place."""
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


_IMAGE_PATH = re.compile(
    r"/(data/|storage-data/|static/|media/|(tasks|projects)/\d+/(resolve|presign)/)"
    r"|.*\.(jpe?g|jfif|png|webp|gif|bmp|avif|tiff?)\Z",
    re.IGNORECASE | re.DOTALL,
)


def serves_images(path: str) -> bool:
    """Whether a path at Label Studio's address may serve an image: uploads, resolved storage addresses, or a file with
    an image's extension. Everything else there is its API and its pages."""
    decoded = unquote(path.partition("?")[0]).replace("\\", "/")
    return ".." not in decoded.split("/") and _IMAGE_PATH.match(decoded) is not None
