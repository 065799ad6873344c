"""Protects the server from pages of other web sites: a browser on the same network must not click or train here."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from backend.annotator import Annotator
from backend.settings import Settings
from backend.web.access import foreign_page, password_check, unknown_host
from backend.web.app import create_app

OWN = {"Host": "skipclick:9090"}


@pytest.mark.parametrize(
    "headers",
    [
        OWN,  # Label Studio, CVAT, Prometheus: no browsers
        OWN | {"Content-Type": "application/json"},
        OWN | {"Content-Type": "application/json; charset=utf-8", "Origin": "http://skipclick:9090"},
        OWN | {"Origin": "http://SKIPCLICK:9090"},
        OWN | {"Origin": "https://annotate.example.org", "X-Forwarded-Host": "annotate.example.org"},
        OWN | {"Origin": "https://tools.example.com"},  # see the test
        {"Host": "[::1]:9090", "Origin": "http://[::1]:9090"},
    ],
)
def test_own_pages_and_programs_may_ask(headers: dict[str, str]) -> None:
    assert foreign_page(headers, ("*.example.com",)) is None


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://skipclick:8080", "null", "http://localhost", "x", "http://["]
)
def test_pages_of_others_may_not(origin: str) -> None:
    for allowed in ((), ("*",)):  # that any name is this server's makes nobody's page its own
        assert "only pages of this server" in str(foreign_page(OWN | {"Origin": origin}, allowed))


@pytest.mark.parametrize(
    "kind", ["text/plain", "Text/Plain;charset=UTF-8", "application/x-www-form-urlencoded", "multipart/form-data; b=x"]
)
def test_bodies_of_forms_are_refused(kind: str) -> None:
    assert "send Content-Type: application/json" in str(foreign_page(OWN | {"Content-Type": kind}, ()))


@pytest.mark.parametrize(
    "host",
    [
        "localhost:9090", "127.0.0.1", "192.168.0.7:9090", "203.0.113.9:9090", "[::1]:9090", "[2001:db8::1]",
        "backend", "skipclick:9090", "host.docker.internal:9090", "skipclick.team.svc.cluster.local", "me.local.",
        "annotate.example.com",
    ],
)  # fmt: skip
def test_names_that_nobody_outside_can_point_here(host: str) -> None:
    assert unknown_host(host, ("*.example.com",)) is None


@pytest.mark.parametrize("host", ["evil.example:9090", "127.0.0.1.evil.example", "localhost.evil.example", "a.b"])
def test_names_that_anybody_can_point_here(host: str) -> None:
    assert "ALLOWED_HOSTS" in str(unknown_host(host, ("*.example.com",)))
    assert unknown_host(host, ("*",)) is None


def test_a_password_is_compared_as_a_whole() -> None:
    is_right = password_check("me", "a:b")
    assert is_right("me", "a:b")
    assert not any(is_right(user, password) for user, password in (("me", "a"), ("", ""), ("me", "ä"), ("m", "ea:b")))


def test_the_server_refuses_and_says_why(make_annotator: Callable[..., Annotator]) -> None:
    client = create_app(Settings(), make_annotator()).test_client()
    for method, path in (("POST", "/predict"), ("POST", "/webhook"), ("GET", "/status"), ("GET", "/")):
        answer = client.open(path, method=method, headers={"Origin": "https://evil.example"})
        assert answer.status_code == 403, path
        assert "https://evil.example" in answer.json["error"]
        answer = client.open(path, method=method, headers={"Host": "evil.example:9090"})
        assert "ALLOWED_HOSTS=evil.example" in answer.json["error"], path
    assert client.get("/health", headers={"Host": "evil.example"}).status_code == 200  # probes name whatever they like


def test_with_a_password_a_server_has_any_name(make_annotator: Callable[..., Annotator]) -> None:
    settings = Settings(basic_auth_user="me", basic_auth_pass="secret")
    client = create_app(settings, make_annotator()).test_client()
    named = {"Host": "skipclick.example.org"}
    assert client.get("/status", headers=named, auth=("me", "secret")).status_code == 200
    assert client.get("/status", headers=named).status_code == 401
    page = named | {"Origin": "https://evil.example"}  # a browser may know the password
    assert client.get("/status", headers=page, auth=("me", "secret")).status_code == 403
