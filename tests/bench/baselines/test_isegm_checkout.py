"""Protects the adapter for checkouts of the isegm code base and the example plugs, against stand-ins for their code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.baselines import load_baseline
from bench.baselines.isegm_checkout import METHODS
from bench.models import ModelSpec, load_model, network_size, published_row
from bench.noc import main
from skipclick import Click
from skipclick.evaluation.evaluate import Rules, simulate
from tests.support.bench_models import write_davis

ROOT = Path(__file__).resolve().parents[3]
CHECKOUTS = ROOT / "tests" / "support" / "checkouts"
PACKAGES = ("isegm", "demo", "mmcv", "mmseg", "segnext_plug", "interformer_plug")
PHOTO = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
CLICKS = [Click(20, 10), Click(40, 30), Click(24, 10, positive=False)]
PLUGS = ("segnext_plug:SegNext", "interformer_plug:InterFormer")


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of the stand-ins, which lie on the path as a user's checkout does, and gone afterwards."""
    path = tmp_path / "discs.pth"
    path.write_text("8")
    (tmp_path / "discs.py").write_text("")
    monkeypatch.setenv("SEGNEXT_CHECKPOINT", str(path))
    monkeypatch.setenv("INTERFORMER_CHECKPOINT", str(path))
    monkeypatch.syspath_prepend(str(CHECKOUTS))
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    yield path
    load_model.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]


def all_names(checkpoint: Path) -> list[str]:
    return [*(f"{method}:{checkpoint}" for method in METHODS), *PLUGS]


def session(model: Any, features: Any, clicks: list[Click]) -> NDArray[np.float32]:
    mask = None
    for count in range(1, len(clicks) + 1):
        mask = model.click(features, clicks[:count], mask)
    assert mask is not None
    return mask


@pytest.mark.parametrize("place", range(len(METHODS) + len(PLUGS)))
def test_each_object_has_its_own_history(place: int, checkpoint: Path) -> None:
    """Two objects of a photo and one of another by turns, whose first clicks are the same."""
    model = load_baseline(all_names(checkpoint)[place])
    features, other_photo = model.encode(PHOTO), model.encode(PHOTO[:30, :50])
    expected = session(model, model.encode(PHOTO), CLICKS)
    other = [Click(20, 10), Click(40, 30, positive=False), Click(45, 20)]
    mask: NDArray[np.float32] | None = None
    for count in range(1, len(CLICKS) + 1):
        mask = model.click(features, CLICKS[:count], mask)
        model.click(features, other[:count], None if count == 1 else np.zeros((40, 60), np.float32))
        model.click(other_photo, other[:count], None if count == 1 else np.zeros((30, 50), np.float32))
    np.testing.assert_array_equal(mask, expected)
    assert expected[30, 40] > expected[10, 24] == 0  # the second click is still remembered, the last one decides


@pytest.mark.parametrize("method", METHODS)
def test_all_clicks_at_once_are_answered_one_after_the_other(method: str, checkpoint: Path) -> None:
    model = load_baseline(f"{method}:{checkpoint}")
    np.testing.assert_array_equal(
        model.click(model.encode(PHOTO), CLICKS, None), session(model, model.encode(PHOTO), CLICKS)
    )


def test_an_object_can_begin_with_a_mask(checkpoint: Path) -> None:
    model = load_baseline(f"ritm:{checkpoint}")
    mask = model.click(model.encode(PHOTO), CLICKS[:1], np.ones((40, 60), np.float32))
    assert (mask[10, 20], mask[39, 59]) == (1, 0.5)


def test_each_method_is_asked_as_its_authors_evaluate_it(checkpoint: Path) -> None:
    """At the size for the data set: DAVIS, with 672 pixels for squares."""
    for method in METHODS:
        size = network_size(f"{method}:{checkpoint}", (672, 672), None)
        model = load_model(ModelSpec(f"{method}:{checkpoint}", size, "cpu", "float32", flip=True))
        session(model, model.encode(PHOTO), CLICKS[:1])
    crops = {"target_size": 600}
    squares = {"skip_clicks": -1, "target_size": (672, 672)}
    focal = {"infer_size": 384, "focus_crop_r": 1.4}
    assert sys.modules["isegm.inference.predictors"].asked == [
        {"mode": "NoBRS", "zoom_in": crops, "positions": None},
        {"mode": "FocalClick", "zoom_in": crops | {"expansion_ratio": 1.4}, "positions": None, **focal},
        {"mode": "NoBRS", "zoom_in": squares, "positions": (672, 672)},
        {"mode": "NoBRS", "zoom_in": squares | {"suppress": True}, "positions": None},
    ]


def test_they_stand_in_their_rows_and_have_the_size_of_the_data_set() -> None:
    assert [published_row(f"{method}:x.pth", 5) for method in METHODS] == [
        "RITM",
        "FocalClick",
        "SimpleClick",
        "SkipClick",
    ]
    assert published_row("ritm:x.pth", 3) is None
    assert network_size("ritm:x.pth", (448, 448), None) == (400, 400)
    assert network_size("simpleclick:x.pth", None, None) == (448, 448)
    assert network_size("simpleclick:x.pth", (448, 448), 896) == (896, 896)


def test_the_benchmark_runs_them(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    davis = write_davis(tmp_path / "davis", num_photos=2)
    names = [f"ritm:{checkpoint}", *PLUGS]
    assert main(["--model", *names, "--dataset", f"DAVIS={davis}", "--table", "5"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    row = next(place for place, line in enumerate(lines) if line.startswith("| RITM, published | 5.34 |"))
    assert lines[row + 1].startswith(f"| `ritm:{checkpoint}` | ")
    assert all(f"| `{plug}` | " in printed for plug in PLUGS)


def test_a_target_is_found_by_clicks(checkpoint: Path) -> None:
    target = np.zeros((40, 60), np.int8)
    target[5:22, 12:29] = 1
    model = load_baseline(f"simpleclick:{checkpoint}")
    ious, _, _ = simulate(model, model.encode(PHOTO), target, Rules(num_clicks=6))
    assert ious[0] > 0.6


def test_without_a_checkout_one_line_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ritm needs its authors' checkout on PYTHONPATH, see docs/baselines\.md"):
        load_baseline(f"ritm:{tmp_path / 'x.pth'}")


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file"), ("broken", "Error in loading")])
def test_a_checkpoint_that_cannot_be_read_is_one_line(content: str | None, reason: str, checkpoint: Path) -> None:
    checkpoint.unlink() if content is None else checkpoint.write_text(content)
    with pytest.raises(ValueError, match=reason) as error:
        load_baseline(f"simpleclick:{checkpoint}")
    assert "\n" not in str(error.value)
