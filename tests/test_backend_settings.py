"""Protects the names and defaults that operators rely on, and that a bad value is told in one line."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from backend import settings as module
from backend.settings import Settings


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Settings.from_environment({}) == Settings()
    assert Settings.from_environment({"PORT": "", "BASIC_AUTH_USER": " "}) == Settings()
    assert Settings().port == 9090


def test_everything_can_be_set() -> None:
    found = Settings.from_environment(
        {
            "LABEL_STUDIO_URL": "https://ls.example.com/prefix/",
            "LABEL_STUDIO_API_KEY": "key",
            "CHECKPOINT": "model.safetensors",
            "DEVICE": "cuda:1",
            "DTYPE": "bfloat16",
            "RESOLUTION": "448x672",
            "FEATURE_CACHE_BYTES": "1.5GB",
            "MEMO_CACHE_BYTES": "256 MiB",
            "IMAGE_MAX_BYTES": "1000",
            "IMAGE_MAX_PIXELS": "1000000",
            "IMAGE_TIMEOUT": "2.5",
            "BASIC_AUTH_USER": "me",
            "BASIC_AUTH_PASS": "secret",
            "MODEL_DIR": "/models",
            "WORKERS": "2",
            "THREADS": "8",
            "HOST": "127.0.0.1",
            "PORT": "8000",
            "LOG_LEVEL": "DEBUG",
        }
    )
    assert all(getattr(found, field.name) != field.default for field in fields(found))
    assert found.label_studio_url == "https://ls.example.com/prefix"
    assert found.resolution == (448, 672)
    assert found.feature_cache_bytes == 1536 << 20
    assert found.memo_cache_bytes == 256 << 20
    assert "secret" not in repr(found)
    assert "'key'" not in repr(found)


def test_older_names_work_too_but_come_second() -> None:
    old = {"LABEL_STUDIO_HOST": "http://old:1", "LABEL_STUDIO_ACCESS_TOKEN": "old"}
    assert Settings.from_environment(old).label_studio_url == "http://old:1"
    assert Settings.from_environment(old).label_studio_api_key == "old"
    both = Settings.from_environment(old | {"LABEL_STUDIO_URL": "http://new", "LABEL_STUDIO_API_KEY": "new"})
    assert (both.label_studio_url, both.label_studio_api_key) == ("http://new", "new")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "65536"),
        ("THREADS", "0"),
        ("WORKERS", "-1"),
        ("DEVICE", "gpu"),
        ("DTYPE", "float8"),
        ("RESOLUTION", "448x"),
        ("RESOLUTION", "0"),
        ("FEATURE_CACHE_BYTES", "lots"),
        ("MEMO_CACHE_BYTES", "-1"),
        ("IMAGE_TIMEOUT", "0"),
        ("IMAGE_TIMEOUT", "nan"),
        ("LABEL_STUDIO_URL", "localhost:8080"),
        ("LOG_LEVEL", "LOUD"),
    ],
)
def test_a_bad_value_is_named_in_one_line(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}={re.escape(value)} is not") as error:
        Settings.from_environment({name: value})
    assert "\n" not in str(error.value)


def test_half_a_login_is_refused_without_showing_it() -> None:
    with pytest.raises(ValueError, match="both BASIC_AUTH_USER and BASIC_AUTH_PASS") as error:
        Settings.from_environment({"BASIC_AUTH_PASS": "secret"})
    assert "secret" not in str(error.value)


def test_the_table_lists_every_setting() -> None:
    documented = set(re.findall(r"^\| (.*?) \|", module.__doc__ or "", re.MULTILINE))
    names = {name.lower() for cell in documented for name in re.findall(r"`([A-Z_]+)`", cell)}
    assert names == {field.name for field in fields(Settings)}
