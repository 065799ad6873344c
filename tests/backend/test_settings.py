"""Protects the names and defaults that operators rely on, and that a bad value is told in one line."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from backend.commands.settings import settings_page
from backend.settings import Settings, parse_size, revealed, secret_names, size_text, variable_names


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
            "SHUTDOWN_TIMEOUT": "60",
            "LOG_LEVEL": "debug",
            "LOG_FORMAT": "json",
        }
    )
    assert revealed(found.label_studio_api_key) == "key"
    assert found.label_studio_url == "https://ls.example.com/prefix"
    assert found.resolution == (448, 672)
    assert found.feature_cache_bytes == 1536 << 20
    assert found.memo_cache_bytes == 256 << 20
    assert found.threads == 8
    assert found.log_level == "DEBUG"
    assert "secret" not in f"{found!r} {found} {found.model_dump()}"
    assert "'key'" not in f"{found!r} {found} {found.model_dump()}"
    with pytest.raises(ValidationError, match="frozen"):
        found.port = 1


def test_older_names_work_too_but_come_second() -> None:
    old = {"LABEL_STUDIO_HOST": "http://old:1", "LABEL_STUDIO_ACCESS_TOKEN": "old"}
    assert Settings.from_environment(old).label_studio_url == "http://old:1"
    assert Settings.from_environment(old).label_studio_api_key == SecretStr("old")
    both = Settings.from_environment(old | {"LABEL_STUDIO_URL": "http://new", "LABEL_STUDIO_API_KEY": "new"})
    assert (both.label_studio_url, both.label_studio_api_key) == ("http://new", SecretStr("new"))


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
        ("LABEL_STUDIO_HOST", "ftp://ls"),
        ("LOG_LEVEL", "LOUD"),
        ("LOG_FORMAT", "xml"),
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


def test_all_complaints_come_at_once_a_line_each() -> None:
    with pytest.raises(ValueError, match="PORT") as error:
        Settings.from_environment({"PORT": "http", "DEVICE": "gpu", "BASIC_AUTH_PASS": "secret", "THREAD": "8"})
    assert sorted(line.split()[0] for line in str(error.value).splitlines()) == [
        "DEVICE=gpu",
        "PORT=http",
        "THREAD",
        "set",
    ]


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="without password") as error:
        Settings.from_environment({"LABEL_STUDIO_URL": "http://me:secret@ls:8080"})
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("FEATURE_CACHE_BYTE", "FEATURE_CACHE_BYTES"),
        ("LABELSTUDIO_URL", "LABEL_STUDIO_URL"),
        ("LABEL_STUDIO_APIKEY", "LABEL_STUDIO_API_KEY"),
        ("BASIC_AUTH_PASSWORD", "BASIC_AUTH_PASS"),  # believed to protect, and would not
        ("LOGLEVEL", "LOG_LEVEL"),
    ],
)
def test_a_mistyped_name_is_refused(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is no setting of this server; did you mean {meant}"):
        Settings.from_environment({name: "1"})


def test_foreign_variables_are_nobodys_mistake() -> None:
    """What shells, Docker, Kubernetes and Label Studio put into the environment."""
    foreign = "PATH HOME HOSTNAME LANG OMP_NUM_THREADS PYTHON_VERSION LABEL_STUDIO_PORT LABEL_STUDIO_SERVICE_HOST "
    foreign += "LABEL_STUDIO_SERVICE_PORT SKIPCLICK_PORT LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT CUDA_VISIBLE_DEVICES "
    foreign += "LOCAL_FILES_SERVING_ENABLED LABEL_STUDIO_USERNAME LABEL_STUDIO_PASSWORD GPG_KEY port no_proxy _"
    assert Settings.from_environment(dict.fromkeys(foreign.split(), "tcp://10.0.0.1:80")) == Settings()


def test_secrets_from_files(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file\n")
    path = str(tmp_path / "key")
    assert secret_names() >= {"LABEL_STUDIO_API_KEY", "BASIC_AUTH_PASS"}
    assert revealed(Settings.from_environment({"LABEL_STUDIO_API_KEY_FILE": path}).label_studio_api_key) == "from-file"
    with pytest.raises(ValueError, match="not both"):
        Settings.from_environment({"LABEL_STUDIO_API_KEY_FILE": path, "LABEL_STUDIO_API_KEY": "x"})
    with pytest.raises(ValueError, match=r"^LABEL_STUDIO_API_KEY_FILE=/none cannot be read \(FileNotFoundError\)$"):
        Settings.from_environment({"LABEL_STUDIO_API_KEY_FILE": "/none"})


def test_settings_are_what_they_are_given_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1")
    assert Settings().port == 9090


@given(st.integers(0, 1 << 50))
def test_sizes_survive_being_written_and_read(size: int) -> None:
    assert parse_size(size_text(size)) == size


@effort(deadline=None)
@given(st.text(string.printable, max_size=12))
@example("//[^/]*@")  # urllib raises a sentence of its own
def test_any_value_gives_a_setting_or_one_clear_line(value: str) -> None:
    for field in Settings.model_fields:
        try:
            Settings.from_environment({variable_names(field)[0]: value})
        except ValueError as error:
            assert str(error).startswith((f"{variable_names(field)[0]}=", "set both BASIC_AUTH_USER"))  # noqa: PT017


def test_the_page_in_the_docs_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "settings.md"
    assert page.read_text(encoding="utf-8") == settings_page(), "run: python -m backend settings > docs/settings.md"


def test_the_page_lists_every_setting_with_a_meaning() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| .+ \| .+ \| .+ \|$", settings_page(), re.MULTILINE)
    assert rows == [variable_names(field)[0] for field in Settings.model_fields]
    assert all(field.description for field in Settings.model_fields.values())
