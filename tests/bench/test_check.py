"""`make bench-check` is an alarm that works: silent for the bundled checkpoint, loud for a damaged one."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.models import checkpoint_sha256
from skipclick import load_checkpoint
from skipclick.checkpoint import save_checkpoint
from skipclick.evaluation.check_set.draw_scenes import NUM_SCENES, draw_scene
from skipclick.evaluation.datasets import open_dataset
from skipclick.evaluation.datasets.image_mask_folders import instance_ids
from skipclick.evaluation.results import read_results

ROOT = Path(__file__).resolve().parents[2]
CHECK_SET = ROOT / "skipclick" / "evaluation" / "check_set"


def bench_check(model: str | Path, num_photos: int) -> subprocess.CompletedProcess[str]:
    """Run the command of `make bench-check MODEL=model`, on the first photos only, with this Python."""
    make = ["make", "--dry-run", "--always-make", "bench-check", f"MODEL={model}"]
    recipe = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    [command] = [line for line in recipe.splitlines() if "bench/noc.py" in line]
    words = shlex.split(command)
    arguments = words[words.index("bench/noc.py") :]
    return subprocess.run(
        [sys.executable, *arguments, "--limit", str(num_photos)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_every_picture_can_be_measured_and_its_source_is_named() -> None:
    photos = open_dataset("folder", CHECK_SET)
    samples = [photos.load(index) for index in range(len(photos))]
    assert len(samples) == 18
    assert sum(len(sample.targets) for sample in samples) == 39
    readme = (CHECK_SET / "README.md").read_text(encoding="utf-8")
    for sample in samples:
        assert f"`{sample.name}`" in readme or sample.name in {f"scene{number}" for number in range(NUM_SCENES)}
    assert sum(path.stat().st_size for path in CHECK_SET.rglob("*.*g")) < 1_500_000


@pytest.mark.parametrize("seed", range(0, NUM_SCENES, 3))
def test_the_script_draws_the_scenes_that_lie_there(seed: int) -> None:
    """The picture but for JPEG's losses, the mask exactly."""
    photos = open_dataset("folder", CHECK_SET, keep=lambda name: name == f"scene{seed}")
    scene, ids = draw_scene(seed)
    assert np.abs(photos.load(0).image.astype(int) - scene).mean() < 4
    drawn = {object_id: np.where(ids == object_id, 1, np.where(ids == 128, -1, 0)) for object_id in (1, 2)}
    for object_id, target in instance_ids(CHECK_SET / "masks" / f"scene{seed}.png").items():
        assert np.array_equal(target, drawn[object_id])


def test_the_baseline_was_measured_with_the_bundled_checkpoint() -> None:
    [run] = read_results(ROOT / "bench" / "check" / "baseline.json").runs
    assert run.checkpoint_sha256 == checkpoint_sha256("bundled"), "the bundled weights are new: make bench-baseline"
    assert sum(len(measurement.objects) for measurement in run.measurements) == 39


@pytest.mark.slow
def test_the_bundled_checkpoint_passes() -> None:
    done = bench_check("bundled", num_photos=6)
    assert done.returncode == 0, done.stderr
    assert "Worse by more than 0.5 clicks: nowhere." in done.stdout


@pytest.mark.slow
def test_a_damaged_checkpoint_fails(tmp_path: Path) -> None:
    """Noise in the decoder's kernels, twice as strong as the weights themselves."""
    model = load_checkpoint("bundled")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for kernel in (one for one in model.decoder.parameters() if one.ndim > 1):
            kernel += 2 * kernel.std() * torch.randn(kernel.shape, generator=generator)
    damaged = tmp_path / "damaged.safetensors"
    save_checkpoint(model, damaged, version="damaged")
    done = bench_check(damaged, num_photos=6)
    assert done.returncode == 1, done.stderr
    assert "Worse by more than 0.5 clicks: folder NoC@85" in done.stdout
