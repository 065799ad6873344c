"""Protects an object whose clicks are answered by several servers: whoever saw the earlier ones, and whatever version
comes meanwhile, each mask is the one that a single server would have given, to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path

import pytest

from backend.annotator import Annotator
from backend.executor import DeviceExecutor
from backend.factory import build_heads, build_training, feature_cache
from backend.finetune.versions import Versions
from backend.settings import Settings
from tests.support.project_heads import PROJECT, Counting, OnePhoto, asked, assert_answered_by, model


@contextmanager
def replicas(settings: Settings, count: int = 2) -> Iterator[list[tuple[Annotator, Counting]]]:
    """Servers that share their folders and nothing else, and their predictors, which count."""
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            predictor, executor = Counting(model(None)), DeviceExecutor()
            heads = build_heads(settings, model(None), predictor, executor)
            features = feature_cache(settings, predictor, executor)
            annotator = Annotator(heads, OnePhoto(), executor, features=features, memo_bytes=8 << 20)
            stack.callback(annotator.close)
            made.append((annotator, predictor))
        yield made


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    versions = Versions(tmp_path)
    versions.write(PROJECT, model(1), model(None), about={}, report={})
    return versions


@pytest.mark.parametrize("servers", [(0, *later) for later in product((0, 1), repeat=2)], ids=str)  # they are alike
@pytest.mark.parametrize("promoted_before", [1, 2, 3, None])
def test_clicks_move_between_servers_and_meet_a_new_version(
    tmp_path: Path, versions: Versions, servers: tuple[int, ...], promoted_before: int | None
) -> None:
    number = None
    with replicas(Settings(model_dir=tmp_path, finetune="follow")) as both:
        for count, server in enumerate(servers, start=1):
            if count == promoted_before:
                number = 1
                versions.promote(PROJECT, number)
            assert_answered_by(number, asked(both[server][0], count), count)


def test_a_follower_answers_by_what_was_learnt_and_learns_nothing(tmp_path: Path, versions: Versions) -> None:
    settings = Settings(model_dir=tmp_path, finetune="follow")
    versions.promote(PROJECT, 1)
    with replicas(settings, 1) as ((annotator, _),):
        assert_answered_by(1, asked(annotator))
    assert build_training(settings) is None
    assert [path.name for path in tmp_path.iterdir()] == ["versions"]


def test_a_shared_folder_spares_the_second_server_the_encode(tmp_path: Path) -> None:
    settings = Settings(model_dir=tmp_path / "models", finetune="follow", feature_cache_dir=tmp_path / "features")
    with replicas(settings, 1) as ((first, counting),):
        assert_answered_by(None, asked(first, 2), 2)
        assert len(counting.encoded) == 1
        first._features.close()  # what is copied in the background is there now
        with replicas(settings, 1) as ((second, counting),):
            assert_answered_by(None, asked(second, 3), 3)
            assert counting.encoded == []
    assert not list((tmp_path / "features").rglob("*.tmp"))
