"""Image references as browsers read them, by the rules of the URL standard.

The editor hands a reference to an `img` element, so what a browser overlooks (blanks around, line breaks inside, the
case of a scheme) must not matter here either.
"""

from __future__ import annotations

import re

_AROUND = "".join(map(chr, range(0x21)))  # C0 control characters and the blank
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_BACKSLASHED = ("", "http:", "https:")
"""Schemes whose addresses may have backslashes for slashes; without one, an address is Label Studio's."""


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
