"""Protects the adapter for MobileSAM's package, against a stand-in with the same calls."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.baselines import load_baseline
from bench.models import load_model, network_size, published_row
from bench.noc import main
from skipclick import Click
from tests.support.bench_models import write_davis

CHECKOUTS = Path(__file__).resolve().parents[2] / "support" / "checkouts"
PHOTO = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
CLICKS = [Click(20, 10), Click(40, 30), Click(24, 10, positive=False)]


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of the stand-in, which lies on the path as a user's checkout does, and is gone afterwards."""
    path = tmp_path / "mobile_sam.pt"
    path.write_text("8")
    monkeypatch.syspath_prepend(str(CHECKOUTS))
    yield path
    load_model.cache_clear()
    sys.modules.pop("mobile_sam", None)


def test_the_best_of_three_masks_then_one_that_goes_on_from_it(checkpoint: Path) -> None:
    model = load_baseline(f"mobile-sam:{checkpoint}")
    features = model.encode(PHOTO)
    masks = [model.click(features, CLICKS[:count], None) for count in (1, 2, 3)]
    assert masks[0].dtype == np.float32
    assert masks[0].shape == (40, 60)
    assert (masks[0][10, 27], masks[0][10, 30]) == (1, 0)  # radius 8, of 4, 8 and 16
    assert (masks[1][10, 27], masks[1][30, 40]) == (1, 1)
    assert (masks[2][10, 24], masks[2][30, 40]) == (0, 1)


def test_photos_and_objects_take_turns(checkpoint: Path) -> None:
    model = load_baseline(f"mobile-sam:{checkpoint}")
    photos = [model.encode(PHOTO), model.encode(np.ascontiguousarray(PHOTO[:30, :50]))]
    other = [Click(10, 20), Click(30, 20)]
    turns = [
        model.click(photos[0], CLICKS[:1], None),
        model.click(photos[1], other[:1], None),
        model.click(photos[0], CLICKS[:2], None),
        model.click(photos[1], other, None),
    ]
    again = load_baseline(f"mobile-sam:{checkpoint}")  # knows nothing of the clicks before
    np.testing.assert_array_equal(turns[2], again.click(again.encode(PHOTO), CLICKS[:2], None))
    assert turns[3].shape == (30, 50)


def test_without_feedback_clicks_are_all_it_gets(checkpoint: Path) -> None:
    model = load_baseline(f"mobile-sam:{checkpoint}", mask_feedback=False)
    features = model.encode(PHOTO)
    for count in (1, 2):
        mask = model.click(features, CLICKS[:count], None)
    assert (mask[10, 20], mask[30, 40]) == (0, 1)
    assert model.version.endswith("clicks alone")


def test_its_figures_stand_in_its_row(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"mobile-sam:{checkpoint}"
    assert published_row(name, 5) == "MobileSAM"
    assert network_size(name, (672, 672), None) is None
    davis = write_davis(tmp_path / "davis")
    options = ["--dataset", f"DAVIS={davis}", "--table", "5", "--no-mask-feedback"]
    assert main(["--model", name, *options]) == 0
    lines = capsys.readouterr().out.partition("### Table 5")[2].splitlines()
    row = next(place for place, line in enumerate(lines) if line.startswith("| MobileSAM, published"))
    assert lines[row + 1].startswith(f"| `{name}` |")


@pytest.mark.parametrize(("content", "message"), [("no number", "cannot read"), (None, "PYTHONPATH")])
def test_what_cannot_be_loaded_is_said(
    content: str | None, message: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is None:
        monkeypatch.setattr(sys, "path", [one for one in sys.path if one != str(CHECKOUTS)])
    else:
        checkpoint.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_baseline(f"mobile-sam:{checkpoint}")
