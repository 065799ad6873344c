"""Fixtures: a check that a run leaves nothing behind; for the backend's tests an app around a predictor of discs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import settings
from pydantic import SecretStr

from backend.annotator import Annotator
from backend.app import create_app
from backend.executor import DeviceExecutor
from backend.heads import Head, Heads
from backend.settings import Settings
from skipclick.cache import ByteLru, SharedCache
from tests.support import annotation_bodies as bodies
from tests.support.fake_label_studio import PERSONAL, FakeLabelStudio, fake_label_studio
from tests.support.fakes import DiscPredictor, FlatImages
from tests.support.traces import no_traces

# What is slow on a busy machine is not wrong, and a run fails by a change, not by luck: each tries the same examples.
# `pytest --hypothesis-profile default` looks for others.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


# Programs that tests start use this checkout's packages too, whatever another checkout has installed.
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
# Servers that tests start need not make OpenVINO's graphs first; `RUNTIME=openvino pytest ...` runs them with it.
os.environ.setdefault("RUNTIME", "torch")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of modules that start processes, each of which takes seconds to import torch."""
    for item in items:
        imported = vars(item.module) if isinstance(item, pytest.Function) else {}
        if {"subprocess", "multiprocessing", "ProcessPoolExecutor"} & imported.keys():
            item.add_marker("process")


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    tmp_path_factory.getbasetemp()  # stays where it always is, so that the files of a failed test can be looked at
    with no_traces():
        yield


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
