"""Who may ask: whoever knows the password, and no page of another web site.

A browser on the same network may have any web page open, and that page can send requests here. It cannot hide that it
does: a browser names the page's origin with every request that crosses sites. Label Studio, CVAT, Prometheus and load
balancers are no browsers and name none.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from backend.settings import host_matches

_FORM_TYPES = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data")
"""Bodies that a page may send to another site without asking that site first."""

_LOCAL_NAMES = ("localhost", "*.localhost", "*.local", "*.lan", "*.internal", "*.home.arpa", "*.svc", "*.cluster.local")
"""Names that nobody outside can point here."""


def password_check(user: str, password: str) -> Callable[[str, str], bool]:
    """A function that tells whether a user and a password are these; how long it takes tells nothing of them."""
    expected = f"{user}:{password}".encode()
    return lambda given_user, given: hmac.compare_digest(f"{given_user}:{given}".encode(), expected)


def foreign_page(headers: Mapping[str, str], allowed: tuple[str, ...]) -> str | None:
    """Why a request is one of another site's page, by its headers; None if it is not.

    allowed: hosts of pages besides this server's own, where `*` alone stands for none; a proxy that gives this server
    another name names its own in X-Forwarded-Host.
    """
    origin = headers.get("Origin")
    if origin is not None and not _is_own(origin, headers, allowed):
        return f"this request comes from a page of {origin[:200]}, and only pages of this server may send any"
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind in _FORM_TYPES:
        return f"the body is {kind}, as forms of web pages send it: send Content-Type: application/json"
    return None


def unknown_host(host: str, allowed: tuple[str, ...]) -> str | None:
    """Why a request may be meant for another site: a page can let its own name point to this machine's address.

    host: the request's Host, with or without a port. allowed: names besides addresses, names without a dot and those of
    private networks; `*` stands for anything. None if the name is in order.
    """
    name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    if (
        "." not in name
        or _is_address(name)
        or any(host_matches(name, pattern) for pattern in (*_LOCAL_NAMES, *allowed))
    ):
        return None
    return f"this server does not know itself as {name[:200]}: set ALLOWED_HOSTS={name[:200]}, or a password"


def _is_own(origin: str, headers: Mapping[str, str], allowed: tuple[str, ...]) -> bool:
    try:
        page = urlsplit(origin)
    except ValueError:  # no address at all
        return False
    own = {headers.get("Host", "").lower(), headers.get("X-Forwarded-Host", "").lower()} - {""}
    return page.netloc.lower() in own or any(
        host_matches(page.hostname or "", pattern) for pattern in allowed if pattern != "*"
    )


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
