"""How this server authenticates to Label Studio: the Authorization header, sent to its host alone.

The kind of a key is recognized by its form. A JSON web token with the claim `token_type: refresh` is a personal access
token; Label Studio exchanges it for access tokens that live five minutes. Anything without dots is a legacy token.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from threading import Lock
from typing import Any, Literal
from urllib.parse import SplitResult, urljoin, urlsplit

import requests

from backend.http_client import DeadlineAdapter, connection_advice, content_of, new_session
from backend.settings import Settings, revealed

_RENEW_BEFORE = 30.0  # seconds before the end of an access token's life
_RETRY_AFTER = 3.0  # seconds after an attempt that got no answer
_MAX_BYTES = 1 << 20  # of an answer with a token
_ASSUMED_LIFE = 240.0  # seconds, for a token that does not say when it expires

_DEFAULT_PORTS = {"http": 80, "https": 443}
_LOGIN = re.compile(r"/(log-?in|sign[-_]?in|sso|saml2?|oauth2?|oidc|openid-connect|authorize)(/|\Z)", re.IGNORECASE)


KeyKind = Literal["personal access token", "legacy token", "access token"]


class AuthorizationError(ValueError):
    """Label Studio did not accept the key; the message says which setting to change."""


class NoAnswerError(AuthorizationError):
    """Label Studio could not be asked whether it accepts the key."""


@dataclass(frozen=True)
class _AccessToken:
    text: str
    renew_at: float


class LabelStudioAuth:
    """Builds the header; caches the current access token. Thread-safe: one thread renews while others wait."""

    def __init__(self, url: str, api_key: str | None, timeout: float, clock: Callable[[], float] = time.time) -> None:
        self.url = url.rstrip("/")
        self._key = api_key
        self._timeout = timeout
        self._clock = clock
        self._access: _AccessToken | None = None
        self._silent: tuple[float, str] | None = None  # until when Label Studio is not asked again, and why
        self._lock = Lock()

    @property
    def has_key(self) -> bool:
        return self._key is not None

    @property
    def key_kind(self) -> KeyKind | None:
        """The kind of the key, by its form; None without a key."""
        if self._key is None:
            return None
        kind = _claims(self._key).get("token_type") if self._key.count(".") == 2 else None
        if kind is None:
            return "legacy token"
        return "access token" if kind == "access" else "personal access token"

    def is_own(self, url: str) -> bool:
        """Whether a URL, in the form of `as_called`, is Label Studio's: same scheme, host and port."""
        return origin(urlsplit(url)) == origin(urlsplit(as_called(self.url)))

    def header(self, refused: str | None = None) -> str | None:
        """The value of the Authorization header, or None without a key.

        `refused` is a header that was just answered with 401: the access token is then renewed (once, even if several
        threads pass the same refused header). Raises `AuthorizationError` if that fails.
        """
        kind = self.key_kind
        if self._key is None or kind is None:
            return None
        if kind == "legacy token":
            return f"Token {self._key}"
        if kind == "access token":
            return f"Bearer {self._key}"
        if not self._lock.acquire(timeout=self._timeout):
            raise NoAnswerError(f"{self.url} did not renew the access token within {self._timeout:g} seconds")
        try:
            current = self._access
            if current is None or self._clock() >= current.renew_at or refused == f"Bearer {current.text}":
                current = self._access = self._renewed(self._key)
            return f"Bearer {current.text}"
        finally:
            self._lock.release()

    def _renewed(self, refresh_token: str) -> _AccessToken:
        """A new access token. Threads that waited for an attempt without an answer do not try again: one after the
        other they would wait for minutes."""
        now = time.monotonic()
        if self._silent is not None and now < self._silent[0]:
            raise NoAnswerError(self._silent[1])
        try:
            token = self._renew(refresh_token)
        except NoAnswerError as error:
            self._silent = time.monotonic() + _RETRY_AFTER, str(error)
            raise
        self._silent = None
        return token

    def _renew(self, refresh_token: str) -> _AccessToken:
        url = f"{self.url}/api/token/refresh/"
        try:
            with (
                new_session(DeadlineAdapter.within(self._timeout)) as session,
                session.post(
                    url,
                    json={"refresh": refresh_token},
                    timeout=self._timeout,
                    allow_redirects=False,
                    auth=as_is,
                    stream=True,
                ) as answer,
            ):
                content = content_of(answer, _MAX_BYTES)
        except (OSError, ValueError) as error:  # all of requests' errors, and missing certificate files
            advice = connection_advice(error) or "check LABEL_STUDIO_URL"
            raise NoAnswerError(f"tried POST {url}: {type(error).__name__}; {advice}") from None
        if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise NoAnswerError(f"tried POST {url}: status {answer.status_code}; see Label Studio's log")
        if answer.is_redirect:
            target = urljoin(url, answer.headers["Location"])
            raise AuthorizationError(
                redirect_trouble(self.url, url, target)
                or f"tried POST {url}: it redirects to {target[:200]}; check LABEL_STUDIO_URL"
            )
        access = _json(content).get("access")
        if answer.status_code != 200 or not isinstance(access, str):
            raise AuthorizationError(
                f"tried POST {url} with the personal access token: status {answer.status_code}; "
                "make a new one in Label Studio (Account & Settings) and set LABEL_STUDIO_API_KEY"
            )
        ends = _claims(access).get("exp")
        life = ends - self._clock() if isinstance(ends, (int, float)) else _ASSUMED_LIFE
        # A clock that runs ahead of Label Studio's must not renew on every request: 401 renews in any case.
        return _AccessToken(access, self._clock() + max(life - _RENEW_BEFORE, _RENEW_BEFORE))


def as_called(url: str) -> str:
    """An http address exactly as requests will call it. Raises `ValueError` if that is impossible.

    Decisions are based on this form because parsers disagree about strange addresses: in http://evil\\@label-studio/
    some see the host `evil`, others `label-studio`.
    """
    prepared = requests.Request("GET", url).prepare().url or ""
    _ = urlsplit(prepared).port  # raises for an invalid one, which urlsplit does not
    return prepared


def origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    """Scheme, host and port of a URL."""
    return parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)


def under(name: str, address: str) -> str | None:
    """The part of an address, in the form of `as_called`, below Label Studio's address `name`, such as
    `/data/upload/1/a.png`; None if it lies elsewhere. http and https count as the same place on default ports."""
    base, parts = urlsplit(name), urlsplit(address)
    if parts.scheme not in _DEFAULT_PORTS or not _is_same_place(base, parts):
        return None
    prefix, path = base.path.rstrip("/"), parts.path or "/"
    if not f"{path}/".startswith(f"{prefix}/"):
        return None
    return (path[len(prefix) :] or "/") + f"?{parts.query}" * bool(parts.query)


def _is_same_place(one: SplitResult, other: SplitResult) -> bool:
    """Whether two addresses have the same host and port, where the default ports of http and https count as one."""
    places = [origin(one), origin(other)]
    hosts = {(host or "").lower().rstrip(".") for _, host, _ in places}
    ports = {port for *_, port in places}
    return len(hosts) == 1 and (len(ports) == 1 or all(_DEFAULT_PORTS.get(place[0]) == place[2] for place in places))


def redirect_trouble(url: str, asked: str, target: str) -> str | None:
    """What is wrong if the Label Studio at `url`, asked for the address `asked`, redirects to `target`; None if that
    does not indicate a wrong setting. The key is not sent to another origin, so following would be useless."""
    old, new = urlsplit(asked), urlsplit(target)
    if _LOGIN.search(new.path) and not _LOGIN.search(old.path):
        return (
            f"Label Studio at {url} redirects to a login page ({_shown(new)}): it does not accept "
            "LABEL_STUDIO_API_KEY, or a proxy in front of it requires its own login; set LABEL_STUDIO_API_KEY to a "
            "personal access token (Account & Settings), and LABEL_STUDIO_URL to an address without such a login"
        )
    if origin(old) == origin(new):
        return None
    path = (under(url, asked) or old.path).partition("?")[0]
    same_file = new.path.endswith(path) and new.query == old.query
    if not same_file and (new.hostname != old.hostname or new.scheme == old.scheme):
        return None
    base = f"{new.scheme}://{new.netloc.rpartition('@')[2]}" + (new.path.removesuffix(path) if same_file else "")
    if (old.scheme, new.scheme) == ("https", "http"):
        return (
            f"LABEL_STUDIO_URL={url} redirects to {base}, where the key would travel unencrypted; have what stands in "
            "front of Label Studio redirect to https"
        )
    return f"LABEL_STUDIO_URL={url} redirects to {base}; set LABEL_STUDIO_URL={base}"


def _shown(parts: SplitResult) -> str:
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:200]


def as_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """An `auth` that adds nothing; without one, requests would add credentials from a .netrc file."""
    return request


def _claims(token: str) -> dict[str, Any]:
    """The claims of a JSON web token, unverified: only Label Studio can verify them, and it does."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError, RecursionError, binascii.Error):
        return {}
    return claims if isinstance(claims, dict) else {}


def _json(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def build_auth(settings: Settings) -> LabelStudioAuth:
    """This server's credentials at Label Studio."""
    return LabelStudioAuth(settings.label_studio_url, revealed(settings.label_studio_api_key), settings.image_timeout)
