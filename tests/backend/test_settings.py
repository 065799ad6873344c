"""Protects the names and defaults that operators rely on, and that a bad value is told in one line."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest
from gunicorn.util import parse_address
from hypothesis import example, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from backend.commands.settings import settings_page
from backend.settings import Settings, host_and_port, parse_size, revealed, secret_names, size_text, variable_names


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


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "8.8.8.8", "server.example"])
def test_cvat_s_door_does_not_open_to_everybody_by_accident(host: str) -> None:
    with pytest.raises(ValueError, match=f"^CVAT=on with HOST={host} lets everybody") as error:
        Settings.from_environment({"CVAT": "on", "HOST": host})
    assert "CVAT_ANY_ADDRESS=true" in str(error.value)
    password = {"BASIC_AUTH_USER": "a", "BASIC_AUTH_PASS": "b"}
    for allowed in ({"CVAT_ANY_ADDRESS": "true"}, password, {"CVAT": "off"}):
        Settings.from_environment({"CVAT": "on", "HOST": host} | allowed)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "10.0.0.5", "172.18.0.3"])
def test_cvat_s_door_opens_to_private_networks(host: str) -> None:
    assert Settings.from_environment({"CVAT": "on", "HOST": host}).cvat == "on"


def test_all_complaints_come_at_once_a_line_each() -> None:
    with pytest.raises(ValueError, match="PORT") as error:
        Settings.from_environment({"PORT": "http", "DEVICE": "gpu", "BASIC_AUTH_PASS": "secret", "THREAD": "8"})
    assert sorted(line.split()[0] for line in str(error.value).splitlines()) == [
        "DEVICE=gpu",
        "PORT=http",
        "set",
        "unknown",
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
        ("IMAGE_REVALIDATE", "IMAGE_REVALIDATE_SECONDS"),
    ],
)
def test_a_mistyped_name_is_refused(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"^unknown setting {name}; did you mean {meant}"):
        Settings.from_environment({name: "1"})


def test_foreign_variables_are_nobodys_mistake() -> None:
    """What shells, Docker, Kubernetes and Label Studio put into the environment."""
    foreign = "PATH HOME HOSTNAME LANG OMP_NUM_THREADS PYTHON_VERSION LABEL_STUDIO_PORT LABEL_STUDIO_SERVICE_HOST "
    foreign += "LABEL_STUDIO_SERVICE_PORT SKIPCLICK_PORT LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT CUDA_VISIBLE_DEVICES "
    foreign += "LOCAL_FILES_SERVING_ENABLED LABEL_STUDIO_USERNAME LABEL_STUDIO_PASSWORD GPG_KEY port no_proxy _"
    assert Settings.from_environment(dict.fromkeys(foreign.split(), "tcp://10.0.0.1:80")) == Settings()


def kubernetes(service: str, address: str = "10.0.0.7", protocol: str = "tcp") -> dict[str, str]:
    """What a pod finds in its environment for a service of its namespace."""
    name = service.upper().replace("-", "_")
    bracketed = f"[{address}]" if ":" in address else address
    port = f"{name}_PORT_80_{protocol.upper()}"
    return {
        f"{name}_SERVICE_HOST": address,
        f"{name}_SERVICE_PORT": "80",
        f"{name}_SERVICE_PORT_HTTP": "80",
        f"{name}_PORT": f"{protocol}://{bracketed}:80",
        port: f"{protocol}://{bracketed}:80",
        f"{port}_PROTO": protocol,
        f"{port}_PORT": "80",
        f"{port}_ADDR": address,
    }


@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_services_of_kubernetes_do_not_stop_the_start(protocol: str) -> None:
    """Whatever a service is called: like a setting, the start of one, or this server."""
    names = {variable for field in Settings.model_fields for variable in variable_names(field)}
    starts = {"_".join(name.split("_")[:count]) for name in names for count in range(1, name.count("_") + 2)}
    for service in sorted(starts | {"SKIPCLICK", "LABEL_STUDIO", "LABELSTUDIO", "FINETUNE_WORKER", "IMAGE_MAX"}):
        for address in ("10.0.0.7", "fd00::7"):
            assert Settings.from_environment(kubernetes(service, address, protocol)) == Settings()


def test_links_of_docker_do_not_stop_the_start() -> None:
    linked = {"FINETUNE_PORT": "tcp://172.17.0.5:80", "FINETUNE_NAME": "/web/finetune", "FINETUNE_ENV_PATH": "/bin"}
    linked |= {"FINETUNE_PORT_80_TCP": "tcp://172.17.0.5:80", "FINETUNE_PORT_80_TCP_PORT": "80"}
    assert Settings.from_environment(linked) == Settings()


@pytest.mark.parametrize("name", ["FINETUNE_PORT", "FINETUNE_NAME", "FINETUNE_HOST", "FEATURE_CACHE_PORT"])
def test_names_of_no_service_are_still_mistakes(name: str) -> None:
    with pytest.raises(ValueError, match=f"^unknown setting {name}"):
        Settings.from_environment({name: "80"})


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("::", "::"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("[::]", "::"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("FD00::A", "fd00::a"),
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost"),
        ("my_host-1.example.org", "my_host-1.example.org"),
    ],
)
def test_hosts_to_listen_on(text: str, host: str) -> None:
    assert Settings.from_environment({"HOST": text}).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::1", "fd00::a", "localhost"])
def test_gunicorn_reads_the_address_that_it_is_given(host: str) -> None:
    assert parse_address(host_and_port(host, 9195)) == (host, 9195)


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0:9090",
        "[::]:9090",
        "[::1]:9090",
        "localhost:9090",
        ":9090",
        "http://0.0.0.0",
        "http://[::1]:9090/",
        "tcp://10.0.0.7:80",
        "[127.0.0.1]",
        "[localhost]",
        "[::1",
        "::1]",
        "[[::1]]",
        "[]",
        "fe80::1%eth0",
        ":::",
        "1::2::3",
        "256.0.0.1",
        "1.2.3",
        "9090",
        "*",
        "a b",
        "a/b",
        "a..b",
        "unix:/tmp/socket",
        "10.0.0.1,10.0.0.2",
    ],
)
def test_a_host_that_cannot_work_comes_with_the_way_to_write_it(host: str) -> None:
    with pytest.raises(ValueError, match=r"is not an address of this machine such as 0\.0\.0\.0 .* :: or ::1") as error:
        Settings.from_environment({"HOST": host})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("port", ["-1", "65536", "http", "9090.5", "0.0.0.0:9090", "tcp://10.0.0.7:80", "٣.٥"])
def test_a_port_that_cannot_work(port: str) -> None:
    with pytest.raises(ValueError, match="is not a whole number from 0 to 65535"):
        Settings.from_environment({"PORT": port})


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("2.5", 2.5), ("60", 60)])
def test_the_time_until_a_photo_is_asked_for_again(text: str, seconds: float) -> None:
    assert Settings.from_environment({"IMAGE_REVALIDATE_SECONDS": text}).image_revalidate_seconds == seconds
    for bad in ("-1", "nan", "inf", "soon"):
        with pytest.raises(ValueError, match="IMAGE_REVALIDATE_SECONDS"):
            Settings.from_environment({"IMAGE_REVALIDATE_SECONDS": bad})


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


@effort(deadline=None, max_examples=30)  # each for every setting
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
