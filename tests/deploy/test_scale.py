"""Protects what scales: the compose file, HAProxy's settings and the samples of training speak of the same things."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from backend.settings import Settings
from bench.scaling.balancer import KEEP_BUFFERS
from train.__main__ import _parser

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
HAPROXY = (DEPLOY / "haproxy.cfg").read_text()
DEFAULTS = dict(re.findall(r'"\$\{(\w+)-([^}]*)\}"', HAPROXY))


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    text = (DEPLOY / "compose.scale.yaml").read_text()
    filled = re.sub(r"\$\{LABEL_STUDIO_URL:[^}]*\}", "http://label-studio.example:8080", text)
    parsed: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{LABEL_STUDIO_API_KEY:[^}]*\}", "key", filled))["services"]
    return parsed


def test_haproxy_finds_the_services_by_their_names(services: dict[str, Any]) -> None:
    for name in ("REPLICAS", "TRAINER"):
        host, _, port = DEFAULTS[name].partition(":")
        assert host in services
        assert int(port) == Settings().port
    (published,) = services["balancer"]["ports"]
    assert published.endswith(DEFAULTS["BIND"])
    assert services["balancer"]["volumes"][0].startswith("./haproxy.cfg:")


def test_haproxy_keeps_its_buffers_wherever_it_is_started(services: dict[str, Any]) -> None:
    assert services["balancer"]["environment"] == KEEP_BUFFERS
    assert all(f"{name}={value}" in HAPROXY for name, value in KEEP_BUFFERS.items())


def test_one_trains_the_others_follow_and_all_see_the_same_folder(services: dict[str, Any]) -> None:
    settings = {name: Settings.from_environment(services[name]["environment"]) for name in ("replica", "trainer")}
    assert {name: one.finetune for name, one in settings.items()} == {"replica": "follow", "trainer": "auto"}
    assert services["replica"]["volumes"] == services["trainer"]["volumes"] == ["models:/data"]
    for name, one in settings.items():
        assert int(services[name]["stop_grace_period"].removesuffix("s")) > one.shutdown_timeout


def test_haproxy_waits_for_a_mask_longer_than_label_studio_does() -> None:
    (seconds,) = re.findall(r"timeout server (\d+)s", HAPROXY)
    assert int(seconds) > Settings().request_timeout
    (buffer,) = re.findall(r"tune.bufsize (\d+)", HAPROXY)
    assert int(buffer) > 3_000_000


@pytest.mark.parametrize("script", ["train-nodes.sh", "train.sbatch"])
def test_the_shell_reads_the_samples(script: str) -> None:
    done = subprocess.run(["bash", "-n", DEPLOY / script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_samples_give_options_that_there_are(tmp_path: Path) -> None:
    """What the shell sample hands to torchrun, with the arguments of the others."""
    service, job = yaml.safe_load_all((DEPLOY / "train-job.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    (container,) = pod["containers"]
    assert container["args"][0].split(".")[0] == f"{job['metadata']['name']}-0"
    slurm = (DEPLOY / "train.sbatch").read_text().replace("\\\n", "").splitlines()[-1]
    after = [*shlex.split(slurm[slurm.index("deploy/train-nodes.sh") :])[1:-1], "--data=a", "--output=b"]
    for arguments in (container["args"], after):
        echo = tmp_path / "torchrun"
        echo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        echo.chmod(0o755)
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "GPUS": "2"}
        done = subprocess.run(
            [DEPLOY / "train-nodes.sh", *arguments], env=environment, capture_output=True, text=True, check=True
        )
        words = done.stdout.splitlines()
        assert words[:6] == ["--log-dir", "/dev/null", "--nnodes", "1:4", "--nproc-per-node", "2"]
        options = _parser().parse_args(words[words.index("train") + 1 :])
        assert options.elastic
        assert (options.precision, options.workers) == ("bfloat16", 7)
