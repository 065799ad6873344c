"""Protects what the person who starts the server is told."""

from __future__ import annotations

import pytest

from backend.commands import serve as module
from backend.commands.serve import warnings, welcome
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


def test_the_welcome_shows_a_usable_config() -> None:
    text = welcome(Settings(port=1234))
    assert "http://localhost:1234" in text
    assert "doctor" in text
    check_labeling_config(parse_labeling_config(text[text.index("<View>") :]))
