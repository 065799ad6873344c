"""Protects `docker run`: both images build from this checkout, serve without a network, learn, and stop when told.

Each image is built once; each container is started once and looked at from several sides.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.serving.loopback import free_port
from skipclick import brush_rle
from skipclick.evaluation.datasets import open_dataset

from .drive import CLICKS, HEIGHT, WIDTH
from .running import Running, command_of, sealed, started
from .storage import CPU, FULL, Image, Storage, build_base, build_image, storage

pytestmark = pytest.mark.image

STOPS_WITHIN = 10.0  # seconds that `docker stop` waits before it kills


@pytest.fixture(scope="module")
def store() -> Iterator[Storage]:
    """A storage for both images."""
    with storage() as made:
        yield made


@pytest.fixture(scope="module", params=[CPU, FULL], ids=["cpu", "full"])
def image(request: pytest.FixtureRequest, store: Storage) -> Image:
    """An image that the storage holds."""
    made: Image = request.param
    if not store.has_image(made.base.name):
        build_base(store, made.base)
    build_image(store, made)
    return made


@dataclass(frozen=True)
class Visit:
    """What was seen of one container between its start and its end."""

    answers: dict[str, Any]
    user: str
    process_ids: list[int]  # of the command, in this machine's process namespace and in the container's
    healthy: int | None  # exit status of the image's own health check while it ran; None if it was not asked
    exit_status: int
    seconds_to_stop: float
    log: str


def visit(running: Running, health_check: list[str] | None = None) -> Visit:
    answers = running.drive()
    user, process_ids = running.status("Uid"), [int(number) for number in running.status("NSpid").split()]
    healthy = None if health_check is None else subprocess.run(health_check, check=False).returncode
    exit_status, seconds = running.stop()
    return Visit(answers, user, process_ids, healthy, exit_status, seconds, running.log.read_text())


@pytest.fixture(scope="module")
def plain(store: Storage, image: Image, tmp_path_factory: pytest.TempPathFactory) -> Visit:
    """The container as `buildah run` starts it."""
    port = free_port()
    check = store.image_config(image.name)["Healthcheck"]["Test"]
    assert check[0] == "CMD"
    with started(store, image, tmp_path_factory.mktemp("plain") / "log", port) as running:
        run = store.command(
            "run", "--isolation", "chroot", "--env", f"PORT={port}", running.container, "--", *check[1:]
        )
        return visit(running, run)


@pytest.fixture(scope="module")
def shut_in(store: Storage, image: Image, tmp_path_factory: pytest.TempPathFactory) -> Visit:
    """The container with a read-only root and no network, its command as process 1."""
    data = tmp_path_factory.mktemp("data")
    data.chmod(0o777)
    with sealed(store, image, tmp_path_factory.mktemp("sealed") / "log", data) as running:
        return visit(running)


@pytest.fixture(params=["plain", "shut_in"])
def seen(request: pytest.FixtureRequest, image: Image) -> Visit:
    seen: Visit = request.getfixturevalue(request.param)
    return seen


def test_it_answers_health_and_setup(seen: Visit) -> None:
    assert seen.answers["health"]["status"] == "UP"
    assert seen.answers["setup"]["model_version"] == "skipclick-lite"


def test_clicks_give_a_mask_of_what_was_clicked(seen: Visit) -> None:
    (region,) = seen.answers["predict"]["results"][0]["result"]
    mask = brush_rle.decode(region["value"]["rle"], HEIGHT, WIDTH) > 0
    assert [bool(mask[y, x]) for x, y, _ in CLICKS] == [positive for _, _, positive in CLICKS]


def test_a_training_gets_as_far_as_label_studio(seen: Visit) -> None:
    """Its process has all that it imports, may write to /data, and finds nobody to ask in here."""
    job = seen.answers["training"]
    assert job["state"] == "failed"
    assert "tried GET http://localhost:8080/api/projects/1/" in job["reason"]


def test_sigterm_ends_it_well_and_in_time(seen: Visit) -> None:
    assert seen.exit_status == 0, seen.log
    assert seen.seconds_to_stop < STOPS_WITHIN
    assert "Traceback" not in seen.log


def test_it_is_not_root(seen: Visit) -> None:
    assert seen.user.split() == ["1000"] * 4


def test_the_command_is_process_1_and_gets_the_signal_itself(shut_in: Visit) -> None:
    assert shut_in.process_ids[-1] == 1


def test_its_own_health_check_agrees(plain: Visit) -> None:
    assert plain.healthy == 0


def test_the_start_is_told(seen: Visit) -> None:
    assert "skipclick-lite" in seen.log
    assert "http://localhost:8080" in seen.log


def test_a_head_learns(store: Storage, image: Image) -> None:
    """With this image's own torch; four steps halve the clicks that a drawn square takes."""
    with store.container(image.name) as container:
        learn = ["python3", "-c", Path(__file__).with_name("learn.py").read_text()]
        report = json.loads(store.buildah("run", "--isolation", "chroot", container, "--", *learn))
    assert report["num_objects"] == 10
    (_, before), (step, after) = report["curve"]
    assert step == 4
    assert after < before


def test_what_the_image_says_of_itself(store: Storage, image: Image) -> None:
    config = store.image_config(image.name)
    assert command_of(config) == ["python3", "-m", "backend"]
    assert set(config["ExposedPorts"]) == {"9090/tcp"}
    assert set(config["Volumes"]) == {"/data"}


def test_nothing_is_inside_that_only_building_or_testing_needs(store: Storage, image: Image) -> None:
    with store.container(image.name) as container:
        top = Path(store.buildah("mount", container))
        places = [top / "packages", *(top / "packages").iterdir(), top / "usr/lib/python3/dist-packages"]
        names = {path.name for place in places if place.is_dir() for path in place.iterdir()}
        assert {"torch", "flask", "openvino"} <= names
        assert ({"timm", "torchvision"} <= names) == (image is FULL)
        assert not names & {"pytest", "hypothesis", "mypy", "ruff", "uv", "label_studio_sdk"}
        assert not (top / "packages" / "pip").exists()
        assert {path.name for path in (top / "app").iterdir()} == {"backend", "skipclick", "train"}
        photos = open_dataset("folder", top / "app" / "skipclick" / "evaluation" / "check_set")
        assert len(photos.photos) == 18
        assert not (top / "etc" / "pip.conf").exists()
        assert not any((top / "run" / "secrets").glob("*"))
        assert not (top / "build").exists()
        changeable = ["find", "/app", "/packages", "-writable", "-print", "-quit"]
        run = ["run", "--isolation", "chroot", "--user", "1000:1000", container, "--", *changeable]
        assert store.buildah(*run) == ""


LAYERS = {
    "cpu": ["base image", "Debian's torch", "user and /data", "other packages", "SkipClick"],
    "full": ["base image", "user and /data", "torch and NVIDIA's libraries", "other packages", "SkipClick"],
}


def test_the_layers_are_few_and_the_heavy_one_changes_seldom(store: Storage, image: Image) -> None:
    """Prints a table of docs/docker.md."""
    if store.driver == "vfs":
        pytest.skip("without overlays the image is built as one layer")
    sizes = dict(zip(LAYERS[image.target], store.layer_bytes(image.name), strict=True))
    for name, size in sizes.items():
        print(f"| {name} | {size / 1e6:,.1f} MB |")
    print(f"| together | {sum(sizes.values()) / 1e6:,.1f} MB |")
    assert "torch" in max(sizes, key=lambda name: sizes[name])
    assert sizes["SkipClick"] < 60e6  # what an update of the backend alone brings along
    if image is CPU:
        assert sum(sizes.values()) < 1e9
