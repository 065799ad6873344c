"""Protects a run over several nodes, for each of which a torchrun of its own stands: it goes on when a node is lost,
and when one joins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.serving.loopback import free_port
from tests.support.processes import descendants
from tests.support.training_process import SMALL_VIT
from train.checkpoints import read_state
from train.config import Run
from train.fit import check_same_step, fit
from train.log import read_log
from train.signals import StoppedError

ROOT = Path(__file__).parents[2]
ENDLESS = {"steps": 1_000_000}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
QUICKLY = "join_timeout=600,last_call_timeout=1"


@contextmanager
def node(port: int, data: Path, output: Path, *, is_host: bool = False) -> Iterator[subprocess.Popen[str]]:
    """One node of a run that needs one or two.

    The host keeps the rendezvous and has to stay. By itself torchrun takes for it whoever has the endpoint's address
    and is first, which on one machine is any of them.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1"]
    command += ["--log-dir", os.devnull]  # else torchrun leaves a folder for them
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test"]
    command += ["--rdzv-conf", f"{QUICKLY},is_host={is_host}", "--max-restarts", "100"]
    command += [str(ROOT / "tests" / "support" / "training_process.py"), str(data), str(output)]
    command += [json.dumps(ENDLESS), json.dumps({"elastic": True, "save_every_seconds": 0})]
    environment = {**ENVIRONMENT, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # deploy/train-nodes.sh says why
    environment["TMPDIR"] = str(output.parent)  # multiprocessing's folder stays when its process is killed
    with (output.parent / "nodes.log").open("a") as log:
        process = subprocess.Popen(command, env=environment, stderr=log, text=True)
        try:
            yield process
        finally:
            lose(process)


def lose(process: subprocess.Popen[str]) -> None:
    """A node's end without a word: its launcher and what it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGSTOP)  # so that it starts nothing new meanwhile
        for pid in [*descendants(process.pid), process.pid]:
            os.kill(pid, signal.SIGKILL)
        process.wait()


def steps_said(output: Path) -> list[int]:
    log = output / "log.jsonl"
    return [line["step"] for line in read_log(log) if "loss" in line] if log.exists() else []


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, f"it ended with status {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_more(output: Path, process: subprocess.Popen[str]) -> None:
    now = len(steps_said(output))
    wait_for(lambda: len(steps_said(output)) > now + 5, process)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds a node's processes in Linux's /proc")
def test_a_run_goes_on_when_a_node_is_lost_and_when_one_joins(photo_folder: Path, tmp_path: Path) -> None:
    port = free_port()
    output, second_process = tmp_path / "run", tmp_path / "run.pid1"
    with node(port, photo_folder, output, is_host=True) as first:
        with node(port, photo_folder, output) as second:
            wait_for(second_process.exists, first)
            wait_for_more(output, first)
            lose(second)
        second_process.unlink()
        wait_for_more(output, first)
        assert not second_process.exists()
        alone_until = len(steps_said(output))
        with node(port, photo_folder, output) as third:
            wait_for(second_process.exists, third)
            wait_for(lambda: len(steps_said(output)) > alone_until + 5, third)
            wait_for_more(output, third)
            for one in (first, third):
                one.terminate()
            for one in (first, third):
                one.wait(300)
    steps = steps_said(output)
    assert steps == list(range(1, len(steps) + 1))  # none lost, none twice
    assert read_state(output / "last.pt")["step"] == len(steps)
    alone = tmp_path / "alone"
    fit(
        replace(SMALL_VIT, steps=6),
        Run(data=(str(photo_folder),), output=alone, log_every=1, validate_every=0, num_workers=0),
    )
    together, expected = ([line["loss"] for line in read_log(run / "log.jsonl")][:6] for run in (output, alone))
    np.testing.assert_allclose(together, expected, atol=1e-4)


@pytest.mark.slow
def test_a_stopped_process_ends_with_its_loader_and_says_that_there_is_more_to_do(
    photo_folder: Path, tmp_path: Path
) -> None:
    """torchrun waits for it before it starts the run anew."""
    options = json.dumps({"elastic": True, "num_workers": 1})
    script, output = str(ROOT / "tests" / "support" / "training_process.py"), tmp_path / "run"
    command = [sys.executable, script, str(photo_folder), str(output), json.dumps(ENDLESS), options]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(steps_said(output)) > 2, process)
    process.terminate()
    _, said = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "StoppedError: stopped after step" in said


def test_an_elastic_run_begins_and_goes_on_and_is_not_done_when_stopped(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = Run(data=(str(photo_folder),), output=tmp_path, num_workers=0, validate_every=0, log_every=1, elastic=True)
    fit(replace(SMALL_VIT, steps=2), once)
    monkeypatch.setattr("train.fit.stop_requests", asked_at_once)
    with pytest.raises(StoppedError, match="after step 3 of 4"):
        fit(replace(SMALL_VIT, steps=4), once)
    monkeypatch.undo()
    fit(replace(SMALL_VIT, steps=4), once)
    assert steps_said(tmp_path) == [1, 2, 3, 4]


@contextmanager
def asked_at_once() -> Iterator[Callable[[], bool]]:
    yield lambda: True


def test_nodes_without_a_common_folder_are_told(tmp_path: Path) -> None:
    run = Run(data=(), output=tmp_path / "mine")
    check_same_step([7, 7], run)
    with pytest.raises(ValueError, match=r"the steps 0, 7: --output .*mine must be one folder that all nodes share"):
        check_same_step([0, 7], run)
