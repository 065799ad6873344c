"""The log of a run: a progress bar, JSON lines, TensorBoard, a picture of the last batch.

RUN/log.jsonl         a line every few steps (means since the line before), one for each validation
RUN/samples.png       photo, clicks, ground truth, prediction of some objects
RUN/tensorboard/      the same for TensorBoard, where the package is installed
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

from skipclick.atomic_io import atomic_write
from train.config import Run, TrainConfig
from train.distributed import Group
from train.pictures import batch_picture
from train.step import StepResult

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@contextmanager
def opened_log(config: TrainConfig, run: Run, first_step: int, group: Group) -> Iterator[RunLog]:
    """The log of a run that starts or continues after `first_step` steps; only the main process writes to it."""
    log = RunLog(config, run, first_step, group)
    try:
        yield log
    finally:
        log.close()


class RunLog:
    """Collects the figures of steps and writes their means every `run.log_every` steps."""

    def __init__(self, config: TrainConfig, run: Run, first_step: int, group: Group) -> None:
        self._run = run
        self._device = group.device
        self._batch_size = config.batch_size
        self._is_main = group.is_main
        self._path = run.output / "log.jsonl"
        self._bar = tqdm(
            total=config.steps, initial=first_step, unit="step", mininterval=2.0, disable=not group.is_main
        )
        self._noc = ""
        self._rows: list[StepResult] = []
        self._started = self._since = time.monotonic()
        self._num_steps = 0
        self._board: SummaryWriter | None = None
        if group.is_main:
            run.output.mkdir(parents=True, exist_ok=True)
            _drop_later_lines(self._path, first_step)
            self._board = _tensorboard(run.output / "tensorboard", first_step)

    def step(self, step: int, result: StepResult) -> None:
        """Record step number `step`, counted from 1."""
        self._bar.update()
        self._num_steps += 1
        if not self._is_main:
            return
        self._rows.append(result)
        if len(self._rows) >= self._run.log_every:
            self._write_means(step)
        if step % self._run.picture_every == 0:
            self._write_samples(step, result)

    def validated(self, step: int, figures: Mapping[str, float]) -> None:
        """Record a validation, whose time does not count as training time."""
        self._since = time.monotonic()
        if not self._is_main:
            return
        self._noc = f", NoC@90 {figures['NoC@90']:.2f}"
        self._write({"step": step, "validation": dict(figures)})
        if self._board:
            for name, value in figures.items():
                self._board.add_scalar(f"validation/{name}", value, step)

    def close(self) -> None:
        seconds = time.monotonic() - self._started
        self._bar.close()
        if self._board:
            self._board.close()
        if self._is_main and self._num_steps:
            speed = self._num_steps * self._batch_size / seconds
            print(
                f"{self._num_steps} steps in {seconds:.0f} s, {speed:.1f} images/s (including saving and validation); "
                f"peak memory {peak_memory(self._device) / 1e9:.2f} GB on {self._device}"
            )

    def _write_means(self, step: int) -> None:
        rows, now = self._rows, time.monotonic()
        speed = len(rows) * self._batch_size / (now - self._since)
        line = {
            "step": step,
            "loss": float(np.mean([row.loss for row in rows])),
            "grad_norm": float(np.mean([row.grad_norm for row in rows])),
            "iou": float(np.mean([row.iou for row in rows])),
            "learning_rate": rows[-1].learning_rate,
            "images_per_second": speed,
            "peak_memory_bytes": peak_memory(self._device),
        }
        self._bar.set_postfix_str(
            f"loss {line['loss']:.3f}, IoU {line['iou']:.3f}{self._noc}, {speed:.1f} images/s", refresh=False
        )
        self._write(line)
        if self._board:
            for name, value in line.items():
                if name != "step":
                    self._board.add_scalar(f"train/{name}", value, step)
        self._rows, self._since = [], now

    def _write_samples(self, step: int, result: StepResult) -> None:
        picture = batch_picture(result.shown.batch, result.shown.probability)
        write_picture(picture, self._run.output / "samples.png")
        if self._board:
            self._board.add_image("photo, clicks, ground truth, prediction", picture, step, dataformats="HWC")

    def _write(self, line: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, without an unfinished last one. Raises `ValueError` if there is no log."""
    if not path.is_file():
        raise ValueError(f"{path.parent} has no log.jsonl: it is not the folder of a run")
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def write_picture(picture: np.ndarray[Any, np.dtype[np.uint8]], path: Path) -> None:
    """uint8 RGB (H, W, 3) to a PNG, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", picture[..., ::-1])[1].tobytes())


def peak_memory(device: torch.device) -> int:
    """Peak bytes: on CUDA those of tensors on the device, otherwise those of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _drop_later_lines(path: Path, last_step: int) -> None:
    """Remove lines after `last_step`: a killed run may have logged steps after its last checkpoint, to be repeated."""
    if not path.exists():
        return
    kept = [line for line in read_log(path) if line["step"] <= last_step]
    with atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


def _tensorboard(folder: Path, first_step: int) -> SummaryWriter | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("TensorBoard is not installed: `pip install -r requirements/train.txt` adds it", file=sys.stderr)
        return None
    return SummaryWriter(str(folder), purge_step=first_step + 1)
