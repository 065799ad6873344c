"""Protects a team's session: with eight threads, evictions and forgotten memos every mask equals the serial answer; and
the soak would notice if one did not."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.serving.annotators import MAX_OBJECT_CLICKS, drawn_photo, photos, session
from bench.serving.soak import ALLOWED_DIFFERENCE, ALLOWED_GROWTH, PackedAnswer, SoakReport, main, soak
from skipclick.masks import BoxMask
from skipclick.model import SkipClick
from skipclick.predictor import ClickRequest, Prediction, Predictor
from tests.support.commands import exit_status
from tests.support.small_models import SMALL_CONV


@pytest.fixture(scope="module")
def network() -> Iterator[Predictor]:
    """One thread: for so small a network more of them only get into each other's way on a busy machine."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Predictor(SkipClick(SMALL_CONV), resolution=(64, 64))
    torch.set_num_threads(threads)


def test_a_short_soak_is_clean(network: Predictor) -> None:
    report = soak(network, [drawn_photo(seed, (60, 80)) for seed in range(10)], 300, 8)
    assert report.different == 0
    assert report.errors == {}
    assert report.clicks == 300
    assert report.caches["features"].evictions > 0
    assert report.caches["memo"].evictions > 0
    assert "0 differ from the serial answer" in next(report.lines())


def test_in_batches_answers_differ_by_last_bits_at_most(network: Predictor) -> None:
    report = soak(network, [drawn_photo(seed, (60, 80)) for seed in range(4)], 200, 8, batch=4)
    assert report.errors == {}
    assert report.worst <= ALLOWED_DIFFERENCE


def test_outcomes_tell_masks_apart() -> None:
    mask = np.random.default_rng(0).random((30, 40)) > 0.5
    mask[:3] = False
    one = PackedAnswer.of(BoxMask.of(mask), 0.9)
    np.testing.assert_array_equal(one.full(), mask)
    assert one.difference(PackedAnswer.of(BoxMask.of(mask), 0.9)) == 0
    assert one.difference(PackedAnswer.of(BoxMask.of(mask), 0.8)) == pytest.approx(0.1)
    mask[20, 20] ^= True
    assert one.difference(PackedAnswer.of(BoxMask.of(mask), 0.9)) == pytest.approx(1 / 1200)
    nothing = PackedAnswer.of(BoxMask.of(np.zeros((30, 40), bool)), 0.0)
    assert not nothing.full().any()


class Unsteady:
    """A network that now and then adds to an answer what its request does not say."""

    def __init__(self, network: Predictor) -> None:
        self.network = network
        self.rng = random.Random(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def predict(self, requests: Sequence[ClickRequest]) -> list[Prediction]:
        answers = self.network.predict(requests)
        return [replace(a, score=np.nextafter(a.score, 2)) if self.rng.random() < 0.1 else a for a in answers]


def test_one_bit_is_noticed_and_so_are_errors_and_growth(network: Predictor) -> None:
    report = soak(Unsteady(network), [drawn_photo(0, (60, 80))], 50, 2, zoom=False)  # type: ignore[arg-type]
    assert 0 < report.different < 50
    assert not report.clean
    flat = [(number, 1000 << 20) for number in range(100)]
    rising = [(number, (1000 + number) << 20) for number in range(100)]
    clean = SoakReport(100, 0, 0.0, 1, {}, 1.0, flat)
    assert clean.clean
    assert replace(clean, memory=rising).growth > ALLOWED_GROWTH
    assert not replace(clean, memory=rising).clean
    assert not replace(clean, errors={"MemoryError": 1}).clean
    assert not replace(clean, different=1, worst=1e-9).clean
    assert replace(clean, different=1, worst=1e-9, batch=4).clean  # last bits may differ in batches, and nothing else
    assert not replace(clean, different=1, worst=0.01, batch=4).clean


def test_the_command(tmp_path: Path, small_checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(main, ["--images", str(tmp_path), "--photos", "2"]) == 2
    assert "holds 0 images" in capsys.readouterr().err
    for name in ("a.png", "b.jpg"):
        Image.fromarray(drawn_photo(1, (60, 80))).save(tmp_path / name)
    output = tmp_path / "soak.json"
    arguments = ["--images", str(tmp_path), "--photos", "2", "--clicks", "10", "--annotators", "2"]
    assert main([*arguments, "--model", small_checkpoint, "--output", str(output)]) == 0
    assert '"different": 0' in output.read_text()


def test_sessions_grow_objects_click_by_click() -> None:
    sizes = [(60, 80), (50, 40)]
    requests = list(islice(session(0, sizes), 500))
    assert requests == list(islice(session(0, sizes), 500))
    assert requests != list(islice(session(1, sizes), 500))
    for request in requests:
        height, width = sizes[request.image]
        assert 1 <= len(request.clicks) <= MAX_OBJECT_CLICKS
        assert request.clicks[0].positive
        assert all(0 <= click.x < width and 0 <= click.y < height for click in request.clicks)
    pairs = list(pairwise(requests))
    assert any(one == other for one, other in pairs)  # sent twice
    assert any(one.image == other.image and one.clicks == other.clicks[:-1] for one, other in pairs)
    others = set(islice(session(1, sizes), 500))
    assert others & set(requests)  # shared objects


def test_photos_are_brought_to_a_size(tmp_path: Path) -> None:
    Image.fromarray(drawn_photo(1, (60, 80))).save(tmp_path / "a.png")
    (photo,) = photos(tmp_path, 1, (30, 20))
    assert photo.shape == (30, 20, 3)
    assert len({photo.tobytes() for photo in photos(None, 3)}) == 3
