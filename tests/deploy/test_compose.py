"""Protects `docker compose up`: the two services reach each other, and the backend understands its settings."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from backend.settings import Settings, revealed

ROOT = Path(__file__).resolve().parents[2]
CPU, GPU = ROOT / "docker-compose.yml", ROOT / "docker-compose.gpu.yml"
CVAT, SCALE = ROOT / "deploy" / "compose.cvat.yaml", ROOT / "deploy" / "compose.scale.yaml"
SECRETS = {
    "SKIPCLICK": "/skipclick",
    "LABEL_STUDIO_URL": "http://studio",
    "LABEL_STUDIO_API_KEY": "key",
    "LABEL_STUDIO_TOKEN": "0123456789abcdef",
    "LABEL_STUDIO_PASSWORD": "password",
}


def services(path: Path) -> dict[str, Any]:
    """The services of a compose file with `SECRETS` filled in."""

    def fill(match: re.Match[str]) -> str:
        name, _, default = match[1].partition(":-")
        return SECRETS[name.partition(":?")[0]] if ":?" in name else default

    parsed: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{([^}]+)\}", fill, path.read_text()))["services"]
    return parsed


def test_the_backend_asks_label_studio_with_a_token_that_it_knows() -> None:
    both = services(CPU)
    settings = Settings.from_environment(both["backend"]["environment"])
    address = urlsplit(settings.label_studio_url)
    assert address.hostname in both
    assert any(port.endswith(f":{address.port}") for port in both[address.hostname]["ports"])
    studio = both["label-studio"]["environment"]
    assert studio["LABEL_STUDIO_USER_TOKEN"] == revealed(settings.label_studio_api_key)
    assert studio["LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN"] == "true"


def test_label_studio_may_call_the_backend_s_private_address() -> None:
    studio = services(CPU)["label-studio"]["environment"]
    assert [studio[name] for name in ("ML_BLOCK_LOCAL_IP", "SSRF_PROTECTION_ENABLED")] == ["false", "false"]


def test_the_backend_is_shut_in() -> None:
    backend = services(CPU)["backend"]
    assert backend["read_only"] is True
    assert backend["tmpfs"] == ["/tmp"]
    assert backend["cap_drop"] == ["ALL"]
    assert backend["volumes"] == ["skipclick:/data"]
    assert backend["ports"] == ["127.0.0.1:9090:9090"]


def test_the_gpu_file_adds_a_gpu_and_the_full_image_and_nothing_else() -> None:
    (name, backend), *others = services(GPU).items()
    assert (name, others) == ("backend", [])
    assert set(backend) == {"build", "image", "environment", "deploy"}
    assert (backend["build"]["target"], backend["image"]) == ("full", "skipclick")
    (device,) = backend["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    both = services(CPU)["backend"]["environment"] | backend["environment"]
    assert Settings.from_environment(both).device == "cuda"


def test_both_services_of_cvat_call_this_server_and_nobody_else_does() -> None:
    every = services(CVAT)
    skipclick = every.pop("skipclick")
    settings = Settings.from_environment(skipclick["environment"])
    assert settings.cvat == "on"
    assert "ports" not in skipclick, "CVAT_ANY_ADDRESS is right only while the port is not published"
    assert skipclick["read_only"] is True
    assert set(every) == {"cvat_server", "cvat_worker_annotation"}
    for service in every.values():
        assert service["environment"] == {
            "CVAT_SERVERLESS": "1",
            "CVAT_NUCLIO_SCHEME": "http",
            "CVAT_NUCLIO_HOST": "skipclick",
            "CVAT_NUCLIO_PORT": str(settings.port),
            "CVAT_NUCLIO_INVOKE_METHOD": "dashboard",
        }


@pytest.mark.parametrize(("path", "name"), [(CPU, "backend"), (CVAT, "skipclick"), (SCALE, "replica")])
def test_the_small_image_is_used_where_no_gpu_is_asked_for(path: Path, name: str) -> None:
    service = services(path)[name]
    assert (service["build"]["target"], service["image"]) == ("cpu", "skipclick:cpu")
    assert "cpu" in re.findall(r"^FROM .* AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("files", [(CPU,), (CPU, GPU)], ids=["cpu", "gpu"])
def test_compose_accepts_the_files(files: tuple[Path, ...], tmp_path: Path) -> None:
    if not (program := shutil.which("docker-compose")):
        pytest.skip("docker-compose is not installed here")
    secrets = tmp_path / "env"
    secrets.write_text("".join(f"{name}={value}\n" for name, value in SECRETS.items()))
    named = [word for file in files for word in ("--file", str(file))]
    done = subprocess.run(
        [program, "--env-file", secrets, *named, "config"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "skipclick:/data" in done.stdout
