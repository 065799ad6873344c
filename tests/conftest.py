"""Checks that a run leaves nothing behind. Fixtures of the backend's tests: an app around a predictor of discs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, settings
from pydantic import SecretStr

from backend.annotator import Annotator
from backend.executor import DeviceExecutor
from backend.heads import Head, Heads
from backend.settings import Settings
from backend.web.app import create_app
from skipclick.cache import ByteLru, SharedCache
from skipclick.checkpoint import save_checkpoint
from tests.support import annotation_bodies as bodies
from tests.support.fake_label_studio import PERSONAL, FakeLabelStudio, fake_label_studio
from tests.support.fakes import DiscPredictor, FlatImages
from tests.support.small_models import bundled_at_160_pixels
from tests.support.traces import Traces, processor_shares
from tests.support.tuned_models import base_model

# What is slow on a busy machine is not wrong, and a run fails by a change, not by luck: each tries the same examples.
# `pytest --hypothesis-profile default` looks for others.
settings.register_profile("repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")

TRACES = pytest.StashKey[Traces]()
LEFT_BEHIND = pytest.StashKey[dict[str, list[str]]]()

# Programs that tests start use this checkout's packages too, whatever another checkout has installed.
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
# Servers that tests start need not make OpenVINO's graphs first; `RUNTIME=openvino pytest ...` runs them with it.
os.environ.setdefault("RUNTIME", "torch")
# The cache that torch's compiler makes when an optimiser is first made is not left behind by a run: it is everybody's.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / "torchinductor"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of modules that start processes, each of which takes seconds to import torch; they come first.

    They take longest, so several workers (pytest-xdist) have about as much to do.
    """
    for item in items:
        imported = vars(item.module) if isinstance(item, pytest.Function) else {}
        if {"subprocess", "multiprocessing", "ProcessPoolExecutor"} & imported.keys():
            item.add_marker("process")
    items.sort(key=lambda item: item.get_closest_marker("process") is None)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist starts its workers
def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):  # which workers of pytest-xdist have
        # The tests' own files stay where they always are, so that those of a failed test can be looked at.
        session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        session.stash[TRACES] = Traces()


@pytest.hookimpl(trylast=True)  # after its workers have ended
def pytest_sessionfinish(session: pytest.Session) -> None:
    if TRACES in session.stash and (found := session.stash[TRACES].end()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.stash[LEFT_BEHIND] = found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = terminalreporter._session.stash.get(LEFT_BEHIND, None)
    if found:
        terminalreporter.section("left behind", red=True)
        terminalreporter.line(f"the tests left behind: {found}", red=True)


@pytest.fixture(scope="session", autouse=True)
def _keeps_its_share_of_the_processor() -> Iterator[None]:
    before = processor_shares()
    yield
    assert processor_shares() == before


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """File of a small network with random weights, which loads and answers at once: `base_model`."""
    path = tmp_path_factory.mktemp("checkpoints") / "small.safetensors"
    save_checkpoint(base_model(), path, version="tiny")
    return str(path)


@pytest.fixture(scope="session")
def checkpoint_at_160_pixels(tmp_path_factory: pytest.TempPathFactory) -> str:
    """File of the bundled weights for 160 x 160 pixels, see `bundled_at_160_pixels`."""
    path, model = tmp_path_factory.mktemp("checkpoints") / "bundled-160.safetensors", bundled_at_160_pixels()
    save_checkpoint(model, path, version=model.version, half=True)
    return str(path)


@pytest.fixture
def predictor() -> DiscPredictor:
    return DiscPredictor()


@pytest.fixture
def images() -> FlatImages:
    return FlatImages()


@pytest.fixture
def make_annotator(predictor: DiscPredictor, images: FlatImages) -> Iterator[Callable[..., Annotator]]:
    """Annotators of version "discs-1" that are closed at the end; keyword arguments replace the defaults.

    `feature_bytes` is the budget of the features' only tier, unless `features` gives a cache.
    """
    made: list[Annotator] = []

    def make(*, feature_bytes: int = 1 << 20, **changes: Any) -> Annotator:
        parts = {"predictor": predictor, "images": images, "executor": DeviceExecutor(), "version": "discs-1"}
        parts |= {"features": SharedCache("features", ByteLru(feature_bytes)), "memo_bytes": 8 << 20}
        parts |= changes
        parts.setdefault("heads", Heads(Head(parts.pop("version"), parts.pop("predictor"))))
        annotator = Annotator(**{name: part for name, part in parts.items() if name not in ("predictor", "version")})
        made.append(annotator)
        return annotator

    yield make
    for annotator in made:
        annotator.close()


@pytest.fixture
def annotator(make_annotator: Callable[..., Annotator]) -> Annotator:
    return make_annotator()


@pytest.fixture
def app(annotator: Annotator) -> Flask:
    return create_app(Settings(), annotator)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def studio() -> Iterator[FakeLabelStudio]:
    """A Label Studio without tasks."""
    with fake_label_studio() as running:
        running.label_config = bodies.CONFIG
        yield running


@pytest.fixture(name="settings")
def settings_of_studio(studio: FakeLabelStudio, tmp_path: Path) -> Settings:
    """Of a server of `studio` that keeps what it learns in the test's folder."""
    return Settings(
        label_studio_url=studio.url, label_studio_api_key=SecretStr(PERSONAL), model_dir=tmp_path, device="cpu"
    )
