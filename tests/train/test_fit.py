"""Protects the training loop: it learns, resumes exactly, survives being killed, shares batches over processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skipclick import Predictor, load_checkpoint
from skipclick.checkpoint import read_metadata
from skipclick.config import Preset, preset
from skipclick.evaluation.datasets.coco import Reason
from skipclick.evaluation.datasets.sample import NO_OBJECT
from tests.support.photo_folder import write_coco
from tests.support.small_runs import QUICK, run
from tests.support.training_process import SMALL_VIT
from train.__main__ import main
from train.augment import AugmentConfig
from train.checkpoints import read_state, trained_model
from train.dataset import NO_USABLE
from train.distributed import Group
from train.fit import fit, global_batches
from train.log import read_log
from train.sources import open_sources
from train.step import read_batch

ROOT = Path(__file__).parents[2]
CUDA = [pytest.mark.requires_cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_state(path)["model"]  # type: ignore[no-any-return]


def losses(output: Path) -> list[float]:
    return [line["loss"] for line in read_log(output / "log.jsonl") if "loss" in line]


def assert_same_weights(one: Path, other: Path) -> None:
    others = weights(other)
    for key, tensor in weights(one).items():
        assert torch.equal(tensor, others[key]), key


def test_it_learns_to_find_discs(photo_folder: Path, tmp_path: Path) -> None:
    fit(replace(QUICK, steps=60), run(photo_folder, tmp_path, log_every=20))
    first, *_, last = read_log(tmp_path / "log.jsonl")
    assert last["loss"] < 0.7 * first["loss"]
    assert last["iou"] > 0.6
    assert last["images_per_second"] > 0
    assert last["peak_memory_bytes"] > 1e7


def test_a_run_ends_well_where_half_of_the_photos_cannot_be_used(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says at its end what it left out, of training and of validation, with a count for each reason."""
    write_coco(tmp_path / "coco", photo_folder, bad={*range(21)} - {7})  # of those held out 11 and 13, but not 7
    (tmp_path / "coco" / "images" / "photo39.jpg").unlink()
    (tmp_path / "coco" / "images" / "photo38.jpg").unlink()
    (tmp_path / "coco" / "images" / "photo38.jpg").write_bytes(b"no picture")
    settings = run(tmp_path / "coco", tmp_path / "run", validate_every=1000, validate_limit=50)
    fit(replace(QUICK, steps=30), settings)
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if "train: left out: " in line]
    found = {line.partition("× ")[2].partition(", for example")[0]: line for line in lines}
    assert set(found) == {
        Reason.NOT_FOUND,
        Reason.NO_MASK,
        Reason.RUNS_DAMAGED,
        NO_OBJECT,
        NO_USABLE,
        "the file cannot be read as a picture",
    }
    assert f"left out: 1 × {Reason.NOT_FOUND}, for example photo39.jpg" in found[Reason.NOT_FOUND]
    assert f"left out: 20 × {Reason.RUNS_DAMAGED}" in found[Reason.RUNS_DAMAGED], "each photo once, however often drawn"


def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one(photo_folder: Path, tmp_path: Path) -> None:
    constant = replace(QUICK, schedule="constant")
    fit(replace(constant, steps=3), run(photo_folder, tmp_path / "parts"))
    parts = fit(constant, run(photo_folder, tmp_path / "parts", resume=True))
    unbroken = fit(constant, run(photo_folder, tmp_path / "unbroken", num_workers=1))
    assert_same_weights(unbroken, parts)
    assert losses(tmp_path / "parts") == losses(tmp_path / "unbroken")
    whole = fit(QUICK, run(photo_folder, tmp_path / "whole"))
    assert any(not torch.equal(t, weights(whole)[k]) for k, t in weights(parts).items())  # the schedule matters


def test_resuming_with_other_settings_is_refused_in_a_line(photo_folder: Path, tmp_path: Path) -> None:
    fit(replace(QUICK, steps=1), run(photo_folder, tmp_path))
    other = replace(QUICK, steps=2, learning_rate=1.0, augment=AugmentConfig(crop=96, view="window"))
    with pytest.raises(ValueError, match=r"augment.crop \(then 64, now 96\); learning_rate .*; steps") as error:
        fit(other, run(photo_folder, tmp_path, resume=True))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"data \(then 37 photos, now 17 of"):
        fit(replace(QUICK, steps=1), run(ROOT / "skipclick" / "evaluation" / "check_set", tmp_path, resume=True))
    with pytest.raises(ValueError, match="holds a run"):
        fit(QUICK, run(photo_folder, tmp_path))
    with pytest.raises(ValueError, match="does not exist"):
        fit(QUICK, run(photo_folder, tmp_path / "nothing", resume=True))


def test_starting_from_a_checkpoint_takes_its_weights_only(photo_folder: Path, tmp_path: Path) -> None:
    first = fit(QUICK, run(photo_folder, tmp_path / "a"))
    frozen = replace(QUICK, steps=1, learning_rate=0.0)
    second = fit(frozen, run(photo_folder, tmp_path / "b", init=first))
    for name, parameter in trained_model(read_state(first) | {"average": None}).named_parameters():
        assert torch.equal(parameter, weights(second)[name]), name
    assert read_state(second)["step"] == 1
    with pytest.raises(ValueError, match="does not fit this network"):
        fit(SMALL_VIT, run(photo_folder, tmp_path / "c", init=first))


def test_an_accumulated_batch_is_the_batch(photo_folder: Path, tmp_path: Path) -> None:
    fit(SMALL_VIT, run(photo_folder, tmp_path / "whole"))
    fit(SMALL_VIT, run(photo_folder, tmp_path / "parts", accumulate=4))
    assert len(losses(tmp_path / "whole")) == SMALL_VIT.steps
    np.testing.assert_allclose(losses(tmp_path / "parts"), losses(tmp_path / "whole"), atol=1e-4)


@pytest.mark.parametrize("parts", [3, 5])
def test_parts_of_different_sizes_are_the_batch_too(photo_folder: Path, tmp_path: Path, parts: int) -> None:
    """As where three nodes are left of four."""
    fit(SMALL_VIT, run(photo_folder, tmp_path / "whole"))
    fit(SMALL_VIT, run(photo_folder, tmp_path / "parts", accumulate=parts))
    np.testing.assert_allclose(losses(tmp_path / "parts"), losses(tmp_path / "whole"), atol=1e-4)


def test_processes_and_parts_share_a_batch_without_overlap(photo_folder: Path, tmp_path: Path) -> None:
    sources, once = open_sources([str(photo_folder)]), run(photo_folder, tmp_path)
    [[whole], _] = global_batches(replace(QUICK, steps=4), once, sources, 2, Group(), set())
    assert whole.positions == range(8, 12)
    parts = [
        part
        for rank in (0, 1)
        for part in next(iter(global_batches(QUICK, replace(once, accumulate=2), sources, 2, Group(rank, 2), set())))
    ]
    assert [list(part.positions) for part in parts] == [[8], [9], [10], [11]]
    assert torch.cat([part.batch.image for part in parts]).equal(whole.batch.image)
    uneven = [next(iter(global_batches(QUICK, once, sources, 2, Group(rank, 3), set()))) for rank in range(3)]
    assert [list(part.positions) for [part] in uneven] == [[8], [9], [10, 11]]
    with pytest.raises(ValueError, match="at least 5"):
        global_batches(QUICK, once, sources, 0, Group(0, 5), set())


def test_a_loss_that_is_no_number_leaves_its_batch_behind(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FloatingPointError) as error:
        fit(replace(SMALL_VIT, learning_rate=1e38, clip_norm=None), run(photo_folder, tmp_path))
    [path] = tmp_path.glob("not-finite-*.pt")
    assert f"python -m train show {path}" in str(error.value)
    assert read_batch(path).target.shape == (16, 56, 56)
    assert main(["show", str(path), str(tmp_path / "batch.png")]) == 0
    assert (tmp_path / "batch.png").stat().st_size > 1000
    assert main(["show", str(photo_folder / "index.csv"), str(tmp_path / "batch.png")]) == 2


def test_validation_keeps_the_best_checkpoint(photo_folder: Path, tmp_path: Path) -> None:
    fit(replace(QUICK, steps=30), run(photo_folder, tmp_path, validate_every=10, validate_limit=1))
    figures = [line["validation"]["NoC@90"] for line in read_log(tmp_path / "log.jsonl") if "validation" in line]
    assert len(figures) == 3
    best = read_state(tmp_path / "best.pt")
    assert best["best"] == best["validation"]["NoC@90"] == min(figures)
    assert best["step"] == 10 * (1 + figures.index(min(figures)))
    assert read_state(tmp_path / "last.pt")["best"] == min(figures)


def test_a_validation_that_a_stop_request_left_out_is_made_when_the_run_goes_on(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = {"validate_every": 3, "validate_limit": 1}
    stopped = run(photo_folder, tmp_path / "stopped", **often)
    asked = iter([False, False, True])  # in each step
    with monkeypatch.context() as patch:
        patch.setattr("train.fit.stop_requests", lambda: nullcontext(lambda: next(asked)))
        fit(QUICK, stopped)
    assert read_state(stopped.output / "last.pt")["step"] == 3
    assert not (stopped.output / "best.pt").exists()
    fit(QUICK, replace(stopped, resume=True))
    fit(QUICK, run(photo_folder, tmp_path / "whole", **often))
    validations = [
        [line for line in read_log(tmp_path / name / "log.jsonl") if "validation" in line]
        for name in ("stopped", "whole")
    ]
    assert [line["step"] for line in validations[0]] == [3, 6]
    assert validations[0] == validations[1]
    assert read_state(stopped.output / "best.pt")["step"] == read_state(tmp_path / "whole" / "best.pt")["step"]


def test_the_exported_checkpoint_is_served_and_says_where_it_comes_from(photo_folder: Path, tmp_path: Path) -> None:
    command = ("python", "-m", "train", "fit", "--data", str(photo_folder))
    last = fit(QUICK, run(photo_folder, tmp_path, validate_every=6, validate_limit=1, command=command))
    out = tmp_path / "out.safetensors"
    assert main(["export", str(last), str(out), "--version", "discs"]) == 0
    served, averaged = load_checkpoint(out), trained_model(read_state(last))
    for key, tensor in averaged.state_dict().items():
        torch.testing.assert_close(served.state_dict()[key], tensor, rtol=1e-3, atol=1e-4)  # float16 in the file
    assert Predictor(served).version == "discs"
    found = read_metadata(out)["provenance"]
    assert found["steps"] == 6
    assert set(found["validation"]) >= {"NoC@85", "NoC@90"}
    assert found["data"]["photos"] == len(open_sources([str(photo_folder)]))
    assert len(found["data"]["fingerprint"]) == 64
    assert found["command"] == [*command[:-1], photo_folder.name]
    assert found["software"]["torch"] == torch.__version__.partition("+")[0]
    assert found["software"]["commit"]
    assert found["training"]["steps"] == 6


@pytest.mark.requires_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_gpu_learns_the_same_at_every_precision(photo_folder: Path, tmp_path: Path, precision: str) -> None:
    fit(SMALL_VIT, run(photo_folder, tmp_path / "cpu"))
    config = replace(SMALL_VIT, precision=precision)  # type: ignore[arg-type]
    fit(config, run(photo_folder, tmp_path / "gpu", device=torch.device("cuda"), validate_every=8, validate_limit=1))
    np.testing.assert_allclose(losses(tmp_path / "gpu"), losses(tmp_path / "cpu"), rtol=0.1)


# Runs in processes of their own


def start_run(
    data: Path,
    output: Path,
    settings: dict[str, Any],
    options: dict[str, Any],
    processes: int = 1,
    joined: bool = False,
) -> subprocess.Popen[str]:
    """Several processes are joined by torchrun; a single one if asked."""
    arguments = [str(data), str(output), json.dumps(settings), json.dumps(options)]
    launcher = [sys.executable]
    if processes > 1 or joined:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        launcher += ["--log-dir", os.devnull]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = str(ROOT / "tests" / "support" / "training_process.py")
    return subprocess.Popen([*launcher, script, *arguments], env=environment, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> str:
    """What a run that ends well said on standard error."""
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return said


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def num_steps_said(output: Path) -> int:
    log = output / "log.jsonl"
    return len(read_log(log)) if log.exists() else 0


@pytest.mark.requires_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_nccl_joins_a_process_of_its_own(photo_folder: Path, tmp_path: Path) -> None:
    """As on a machine with one GPU, by `torchrun --nproc-per-node 1`."""
    finished(start_run(photo_folder, tmp_path / "joined", {}, {"device": "cuda"}, processes=1, joined=True))
    fit(SMALL_VIT, run(photo_folder, tmp_path / "alone", device=torch.device("cuda")))
    np.testing.assert_allclose(losses(tmp_path / "joined"), losses(tmp_path / "alone"), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(photo_folder: Path, tmp_path: Path, device: str) -> None:
    steps = {"steps": 400}
    killed = start_run(photo_folder, tmp_path / "killed", steps, {"save_every_seconds": 0, "device": device})
    wait_for(lambda: num_steps_said(tmp_path / "killed") > 5, killed)
    killed.kill()
    killed.wait()
    reached = read_state(tmp_path / "killed" / "last.pt")["step"]
    assert 3 < reached < 400
    total = reached + 12  # the rate is constant, so a run may be made shorter
    finished(start_run(photo_folder, tmp_path / "killed", {"steps": total}, {"resume": True, "device": device}))
    finished(start_run(photo_folder, tmp_path / "whole", {"steps": total}, {"device": device}))
    if device == "cpu":
        assert_same_weights(tmp_path / "killed" / "last.pt", tmp_path / "whole" / "last.pt")
        assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    else:  # a GPU's sums come in no fixed order
        np.testing.assert_allclose(losses(tmp_path / "killed"), losses(tmp_path / "whole"), atol=0.01)
    assert not list((tmp_path / "killed").glob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("row", ["skip", "baseline"])
def test_two_processes_learn_the_same_as_one(photo_folder: Path, tmp_path: Path, row: Preset) -> None:
    """The released baseline has weights, behind its tapped block, that never get a gradient."""
    options = {"accumulate": 2, "validate_every": 8, "validate_limit": 2}
    together = start_run(photo_folder, tmp_path / "two", {"preset": row}, options, processes=2)
    alone = run(photo_folder, tmp_path / "one", validate_every=8, validate_limit=2)
    fit(replace(SMALL_VIT, model=preset(row, SMALL_VIT.model)), alone)
    finished(together)
    assert len(losses(tmp_path / "one")) == SMALL_VIT.steps
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), atol=1e-4)
    validations = [read_log(tmp_path / name / "log.jsonl")[-1]["validation"] for name in ("one", "two")]
    assert validations[0] == pytest.approx(validations[1], rel=0.1)  # a click more or less by rounding


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_stop_request_saves_and_ends_well(photo_folder: Path, tmp_path: Path, processes: int) -> None:
    """With two processes only one is asked; both must end after the same step."""
    output = tmp_path / "run"
    process = start_run(photo_folder, output, {"steps": 4000}, {"save_every_seconds": 1000}, processes)
    wait_for(lambda: num_steps_said(output) > 2, process)
    os.kill(int(Path(f"{output}.pid{processes - 1}").read_text()), signal.SIGTERM)
    finished(process)
    reached = read_state(output / "last.pt")["step"]
    assert 2 < reached < 4000
    assert reached == read_log(output / "log.jsonl")[-1]["step"]
