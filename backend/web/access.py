"""Access control: the password, and protection against pages of other web sites.

A browser on the same network may have any web page open, and that page can send requests here. It cannot hide this: a
browser sends the page's origin with every cross-site request. Label Studio, CVAT, Prometheus and load balancers are not
browsers and send none.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import urlsplit

from flask import Flask, Response, request

from backend.settings import Settings, host_matches, revealed
from backend.web.http import error_response

_FORM_TYPES = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data")
"""Bodies that a page may send to another site without a preflight request."""

_LOCAL_NAMES = ("localhost", "*.localhost", "*.local", "*.lan", "*.internal", "*.home.arpa", "*.svc", "*.cluster.local")
"""Names that cannot be pointed here from outside the network."""


def restrict_access(app: Flask, settings: Settings) -> None:
    """Refuse requests from pages of other sites, and those without the password if one is set, on all routes but
    /health.

    A page that points its own name at this server cannot know the password: if there is one, any host name is allowed.
    """
    is_right = None
    if settings.basic_auth_user is not None and settings.basic_auth_pass is not None:
        is_right = password_check(settings.basic_auth_user, revealed(settings.basic_auth_pass) or "")

    @app.before_request
    def check() -> Response | None:
        if request.path == "/health":
            return None
        trouble = foreign_page(dict(request.headers), settings.allowed_hosts)
        if trouble is None and is_right is None:
            trouble = unknown_host(request.host, settings.allowed_hosts)
        if trouble is not None:
            return error_response(HTTPStatus.FORBIDDEN, trouble)
        given = request.authorization
        is_basic = given is not None and given.type == "basic"
        if is_right is None or (given and is_basic and is_right(given.username or "", given.password or "")):
            return None
        refusal = error_response(HTTPStatus.UNAUTHORIZED, "this server requires BASIC_AUTH_USER and BASIC_AUTH_PASS")
        refusal.headers["WWW-Authenticate"] = 'Basic realm="skipclick"'
        return refusal


def password_check(user: str, password: str) -> Callable[[str, str], bool]:
    """A function that compares a user and a password with these, in constant time."""
    expected = f"{user}:{password}".encode()
    return lambda given_user, given: hmac.compare_digest(f"{given_user}:{given}".encode(), expected)


def foreign_page(headers: Mapping[str, str], allowed: tuple[str, ...]) -> str | None:
    """Why a request, by its headers, comes from another site's page; None if it does not.

    allowed: hosts whose pages may send requests besides this server's own; `*` alone stands for none. A proxy under
    another name sends its name in X-Forwarded-Host.
    """
    origin = headers.get("Origin")
    if origin is not None and not _is_own(origin, headers, allowed):
        return f"this request comes from a page of {origin[:200]}, and only pages of this server may send any"
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind in _FORM_TYPES:
        return f"the body is {kind}, as forms of web pages send it: send Content-Type: application/json"
    return None


def unknown_host(host: str, allowed: tuple[str, ...]) -> str | None:
    """Why a request may come from a page that points its own name at this machine's address (DNS rebinding); None if
    the name is allowed.

    host: the request's Host, with or without a port. allowed: names besides IP addresses, names without a dot and those
    of private networks; `*` stands for any.
    """
    name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    if (
        "." not in name
        or _is_address(name)
        or any(host_matches(name, pattern) for pattern in (*_LOCAL_NAMES, *allowed))
    ):
        return None
    return f"{name[:200]} is not a known name of this server: set ALLOWED_HOSTS={name[:200]}, or a password"


def _is_own(origin: str, headers: Mapping[str, str], allowed: tuple[str, ...]) -> bool:
    try:
        page = urlsplit(origin)
    except ValueError:  # not an address
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
