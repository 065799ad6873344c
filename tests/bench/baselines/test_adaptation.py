"""Protects adaptation during use: what learns, from what, when, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bench.baselines import adaptation, load_baseline
from bench.baselines.adaptation import AdaptablePredictor, Adapted, dense_labels
from bench.baselines.sam import SegmentAnything
from bench.models import published_row
from bench.noc import main
from skipclick import Click, Predictor
from skipclick.checkpoint import save_checkpoint
from skipclick.evaluation.results import read_results
from skipclick.model import SkipClick, enlarge_logits
from tests.support.bench_models import write_davis
from tests.support.sam_models import tiny
from tests.support.small_models import SMALL

PHOTO = np.random.default_rng(0).integers(0, 255, (50, 90, 3), np.uint8)
CLICKS = [Click(60, 20), Click(10, 40, positive=False)]
KINDS = ("ours", "sam", "sam-hq", "sam2")


def build(kind: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "ours":
            side = 4 * SMALL.size_multiple
            return Predictor(SkipClick(SMALL).eval(), (side, side))
        return SegmentAnything(kind, *tiny(kind), name="tiny")


def network(model: Any) -> torch.nn.Module:
    found: torch.nn.Module = model.model if isinstance(model, Predictor) else model._model
    return found


def changed(model: Any, before: dict[str, torch.Tensor]) -> set[str]:
    """The parts of the network that differ from what they were."""
    now = network(model).state_dict()
    return {name.partition(".")[0] for name in now if not torch.equal(now[name], before[name])}


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network(model).state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_clicks_pull_the_answer_towards_them_and_only_the_decoder_learns(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptation, "LEARNING_RATE", 1e-3)
    model = build(kind)
    before = state(model)
    adapted = Adapted(model, "clicks")
    features = adapted.encode(PHOTO)
    plain = model.click(features, CLICKS[:1], None)
    found = []
    for _ in range(8):
        logits, (height, width) = adapted._model.trainable_logits(features, CLICKS, plain)
        places = torch.tensor([[[[c.x / 90 * 2 * width - 1, c.y / 50 * 2 * height - 1] for c in CLICKS]]])
        found.append(F.grid_sample(logits, places, padding_mode="border", align_corners=False).flatten().tolist())
        assert adapted.click(features, CLICKS, plain).shape == (50, 90)
    margins = [positive - negative for positive, negative in found]
    assert margins[-1] > margins[0]
    parts = {"mixer", "pyramid", "decoder"} if kind == "ours" else {"mask_decoder"}
    assert changed(model, before)
    assert changed(model, before) <= parts


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_learnt_from_when_the_next_photo_comes(kind: str) -> None:
    """One step for each object, from its last mask; clicks alone change nothing then."""
    model = build(kind)
    before = state(model)
    adapted = Adapted(model, "masks")
    features = adapted.encode(PHOTO)
    mask = None
    for count in (1, 2):
        mask = adapted.click(features, CLICKS[:count], mask)
        adapted.click(features, [Click(5, 5), *CLICKS][:count], mask if count > 1 else None)
    assert changed(model, before) == set()
    assert len(adapted._answers) == 2
    adapted.encode(PHOTO[:30])
    assert changed(model, before)
    after = state(model)
    adapted.encode(PHOTO[:30])  # nobody clicked on the photo before
    assert changed(model, after) == set()


def test_of_clicks_alone_masks_teach_nothing() -> None:
    model = build("ours")
    adapted = Adapted(model, "clicks")
    adapted.click(adapted.encode(PHOTO), CLICKS[:1], None)
    before = state(model)
    adapted.encode(PHOTO)
    assert changed(model, before) == set()


def test_what_learns_is_what_answers() -> None:
    """The logits with gradients are those of the click."""
    predictor = build("ours")
    features = predictor.encode(PHOTO)
    previous = predictor.click(features, CLICKS[:1])
    logits, _ = AdaptablePredictor(predictor).trainable_logits(features, CLICKS, previous)
    assert logits.requires_grad is False  # until `Adapted` lets the decoder learn
    whole = enlarge_logits(logits, predictor.resolution).sigmoid()
    found = F.interpolate(whole, (50, 90), mode="bilinear", align_corners=True)[0, 0].numpy()
    np.testing.assert_allclose(found, predictor.click(features, CLICKS, previous), atol=1e-4)
    for kind in ("sam", "sam2"):
        sam = build(kind)
        photo = sam.encode(PHOTO)
        expected, part = sam.trainable_logits(photo, CLICKS, None)
        sam.click(photo, CLICKS, None)
        torch.testing.assert_close(expected, photo.logits[tuple(CLICKS)])
        assert part == ((71 / 128, 1) if kind == "sam" else (1, 1))


def test_a_mask_says_nothing_near_its_outline() -> None:
    mask = np.zeros((200, 300), np.bool_)
    mask[50:150, 100:200] = True
    points, labels = dense_labels(mask)
    for (x, y), label in zip(points.astype(int), labels, strict=True):
        around = mask[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
        assert around.all() if label else not around.any()
    assert 0 < labels.mean() < 0.5
    everything, ones = dense_labels(np.ones((3, 2), np.bool_))
    assert len(everything) == 6
    assert ones.all()


def test_what_cannot_learn_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be adapted: --adapt is for models of ours and of SAM's family"):
        Adapted(load_baseline("grabcut"), "both")
    with pytest.raises(ValueError, match="in float32"):
        Adapted(Predictor(SkipClick(SMALL).eval(), (56, 56), dtype="bfloat16"), "both")


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    return write_davis(tmp_path / "davis", num_photos=3)


@pytest.mark.slow
def test_the_benchmark_adapts_and_each_run_begins_anew(davis: Path, tmp_path: Path) -> None:
    checkpoint, ious = tmp_path / "small.safetensors", []
    save_checkpoint(build("ours").model, checkpoint, version="small", provenance={})
    command = ["--model", str(checkpoint), "--dataset", f"DAVIS={davis}", "--num-clicks", "3"]
    for extra in (["--adapt", "both"], ["--adapt", "both"], []):
        output = tmp_path / "noc.json"
        assert main([*command, *extra, "--output", str(output)]) == 0
        (run,) = read_results(output).runs
        ious.append([one.ious for one in run.measurements[0].objects])
        assert run.version == ("small, adapted to clicks and masks" if extra else "small")
    assert ious[0] == ious[1]


def test_adapted_models_have_rows_of_their_own() -> None:
    assert published_row("sam:x", 2, adapted=True) == "SAM + Schön et al."
    assert published_row("sam-hq:x", 3, adapted=True) == "HQ-SAM + Schön et al."
    assert published_row("sam:x", 5, adapted=True) is None
    assert published_row("bundled", 2, adapted=True) is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--protocol", "serve"], "--adapt is not of the server"),
        (["--jobs", "2"], "omit --jobs and --batch"),
        (["--model", "grabcut"], "cannot be adapted"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    options: list[str], sentence: str, davis: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--model", "bundled", "--dataset", f"DAVIS={davis}", "--adapt", "both", *options]
    assert main(command) == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]
