"""Protects what the person who starts the server is told."""

from __future__ import annotations

import socket

import pytest

from backend.commands import serve as module
from backend.commands.serve import listening_trouble, warnings, welcome
from backend.label_studio.labeling_config import check_labeling_config, parse_labeling_config
from backend.settings import Settings


@pytest.mark.parametrize("url", ["http://localhost:8080", "http://127.0.0.1:8080", "http://[::1]:8080"])
def test_localhost_inside_a_container_is_warned_of(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    settings = Settings(label_studio_url=url, label_studio_api_key="key")
    monkeypatch.setattr(module, "in_container", lambda: False)
    assert warnings(settings) == []
    monkeypatch.setattr(module, "in_container", lambda: True)
    (warning,) = warnings(settings)
    assert f"LABEL_STUDIO_URL={url} means this container itself" in warning
    assert warnings(Settings(label_studio_url="http://label-studio:8080", label_studio_api_key="key")) == []


def test_a_missing_key_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "in_container", lambda: False)
    assert "LABEL_STUDIO_API_KEY is not set" in warnings(Settings())[0]


def test_a_server_for_everybody_without_a_password_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "in_container", lambda: False)
    assert Settings().host == "127.0.0.1"
    key = {"label_studio_api_key": "key"}
    password = {"basic_auth_user": "me", "basic_auth_pass": "secret"}
    for host in ("0.0.0.0", "::", "198.41.0.4", "annotate.example.org"):
        (warning,) = warnings(Settings(host=host, **key))
        assert f"HOST={host} without a password" in warning
        assert warnings(Settings(host=host, **key, **password)) == []
    for host in ("127.0.0.1", "::1", "10.0.0.5", "localhost"):
        assert warnings(Settings(host=host, **key)) == []


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://localhost:1234"),
        ("::", "http://localhost:1234"),
        ("::1", "http://[::1]:1234"),
        ("[::1]", "http://[::1]:1234"),
        ("0:0:0:0:0:0:0:0", "http://localhost:1234"),
        ("10.0.0.5", "http://10.0.0.5:1234"),
        ("annotate.example.org", "http://annotate.example.org:1234"),
    ],
)
def test_the_welcome_names_the_address_to_connect(host: str, url: str) -> None:
    settings = Settings.from_environment({"HOST": host, "PORT": "1234"})
    assert f"Connect Model: {url}, " in welcome(settings)


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "localhost"])
def test_it_can_listen(host: str) -> None:
    assert listening_trouble(Settings(host=host, port=0)) is None


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "no-such-host.invalid"])
def test_an_address_of_another_machine(host: str) -> None:
    trouble = listening_trouble(Settings(host=host, port=0))
    assert trouble is not None
    assert trouble.startswith(f"HOST={host} is not an address of this machine (")
    assert "HOST=0.0.0.0" in trouble


def test_a_port_in_use_may_be_free_in_a_moment() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert listening_trouble(Settings(host="127.0.0.1", port=other.getsockname()[1])) is None


def test_the_welcome_shows_a_usable_config() -> None:
    text = welcome(Settings(port=1234))
    assert "http://localhost:1234" in text
    assert "doctor" in text
    check_labeling_config(parse_labeling_config(text[text.index("<View>") :]))
