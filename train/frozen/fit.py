"""The training loop of the head alone."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from skipclick.atomic_io import atomic_write
from skipclick.config import ModelConfig
from skipclick.head import backbone_digest, head_state
from skipclick.metrics import mask_iou, noc
from skipclick.model import SkipClick
from skipclick.simulation import TRAINING_THRESHOLD
from train.frozen.rollout import Place, advanced, answers, new_place, place_in, still_clicked
from train.frozen.store import list_views, read_about, read_view
from train.losses import LOSSES
from train.signals import stop_requests

FORMAT = "skipclick-head-training-1"
CLICKS_MEASURED = 8
CALIBRATION_STEPS = 20
LOOK_FOR_VIEWS_EVERY = 50  # steps: another process may be adding views
LOG_EVERY = 20  # steps


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """What is learnt, and how."""

    steps: int = 20_000
    batch_size: int = 4  # objects
    learning_rate: float = 5e-4
    warmup_steps: int = 100
    decay_steps: int = 0  # the last steps, in which the learning rate falls linearly to a hundredth
    weight_decay: float = 0.02  # on matrices and kernels
    clip_norm: float = 1.0
    ema_decay: float = 0.995
    loss: Literal["nfl", "focal", "bce_dice"] = "bce_dice"
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the head's matrix products; weights and loss stay float32
    seed: int = 0

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of optimisation step `step`, counted from 0."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        left = min(1.0, (self.steps - step) / max(1, self.decay_steps))
        return self.learning_rate * warm * max(0.01, left)


@dataclass
class HeadState:
    """The state of a training; the backbone stays the same."""

    model: SkipClick
    average: dict[str, Tensor]  # of the head's weights, exponential
    optimizer: torch.optim.Optimizer
    step: int = 0
    drawn: int = 0  # objects so far
    history: list[dict[str, Any]] = field(default_factory=list)  # the runs that led here, oldest first


@dataclass(frozen=True)
class HeadRun:
    """Where a training of a head finds its views and what it writes."""

    views: Path
    output: Path
    held_out: Path | None = None  # views to measure on
    measure_every: int = 1000  # steps
    num_measured: int = 100  # objects
    save_every_seconds: float = 120.0
    command: tuple[str, ...] = ()  # for the record


def new_state(model: SkipClick, config: HeadConfig) -> HeadState:
    model.eval().to(memory_format=torch.channels_last)
    model.backbone.requires_grad_(False)
    weights = list(head_weights(model).values())
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=True)
    average = {name: weight.detach().clone() for name, weight in head_weights(model).items()}
    return HeadState(model, average, optimizer)


def head_weights(model: SkipClick) -> dict[str, nn.Parameter]:
    """All weights but the backbone's, in place, by name."""
    return {name: weight for name, weight in model.named_parameters() if not name.startswith("backbone.")}


@torch.no_grad()
def calibrate(model: SkipClick, views: Path, batch_size: int, seed: int) -> None:
    """Set the batch-norm statistics of a fresh head, which has none yet, to those of some batches."""
    norms = [module for module in model.pyramid.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for step in range(CALIBRATION_STEPS):
        rngs = [np.random.default_rng((seed, step, place)) for place in range(batch_size)]
        answers(model, [new_place(list_views(views), rng) for rng in rngs], LOSSES["bce_dice"])
    for norm in norms:
        norm.momentum = 0.1
        norm.eval()


def fit_head(model: SkipClick, run: HeadRun, config: HeadConfig, resume: Path | None = None) -> Path:
    """Train the head of `model` in place, and return the checkpoint's path; SIGTERM and Ctrl+C end it after a step.

    resume: checkpoint of a training to continue. The objects it was working on are dropped and others drawn, so the
    result is not bit for bit that of an uninterrupted training. Raises `ValueError` if views or checkpoint do not fit.
    """
    about = read_about(run.views)
    if about["backbone"] != backbone_digest(model):
        raise ValueError(f"{run.views} holds views of another backbone than this model's: encode them again")
    last = run.output / "head.pt"
    if last.exists() and resume != last:
        raise ValueError(f"{run.output} holds a training: continue it with --resume {last}, or name another --output")
    state = new_state(model, config)
    if resume is not None:
        load_state(state, read_head(resume))
    run.output.mkdir(parents=True, exist_ok=True)
    first_step = state.step
    record = {"command": list(run.command), "config": asdict(config), "views": about, "from_step": first_step}
    figures: list[dict[str, float]] = []
    saved = begin = time.monotonic()
    with stop_requests() as asked_to_stop, (run.output / "log.jsonl").open("a") as log:
        for step in fit_steps(state, run.views, config):
            figures.append(step)
            if state.step % LOG_EVERY == 0:
                means = {name: float(np.mean([one[name] for one in figures])) for name in step}
                means["seconds_per_step"] = (time.monotonic() - begin) / (state.step - first_step)
                _write_line(log, state, means)
                figures = []
            if run.held_out is not None and state.step % run.measure_every == 0:
                _write_line(log, state, summary(measure(averaged(state), run.held_out, run.num_measured)))
            if time.monotonic() - saved > run.save_every_seconds:
                save_state(state, record, last)
                saved = time.monotonic()
            if asked_to_stop():
                break
    save_state(state, record, last)
    return last


def _write_line(log: Any, state: HeadState, figures: dict[str, float]) -> None:
    figures = {name: round(value, 6) for name, value in figures.items()}
    print(json.dumps({"step": state.step, "drawn": state.drawn, **figures}), file=log, flush=True)


def fit_steps(state: HeadState, views: Path, config: HeadConfig) -> Iterator[dict[str, float]]:
    """Train in place, one optimisation step per iteration; yields its figures.

    Raises `FloatingPointError` if the loss or its gradient is not finite; the weights are then those before the step.
    """
    model, grade, weights = state.model, LOSSES[config.loss], head_weights(state.model)
    known, places = list_views(views), list[Place]()
    with ThreadPoolExecutor(1) as pool:  # reads and decodes the next view in the meantime

        def next_place() -> Future[Place]:
            rng = np.random.default_rng((config.seed, state.drawn))
            state.drawn += 1
            return pool.submit(new_place, known, rng)

        coming = [next_place() for _ in range(config.batch_size)]
        while state.step < config.steps:
            if state.step % LOOK_FOR_VIEWS_EVERY == 0:
                known = list_views(views)
            while len(places) < config.batch_size:
                places.append(coming.pop(0).result())
                coming.append(next_place())
            rate = config.learning_rate_at(state.step)
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            graded = answers(model, places, grade, getattr(torch, config.dtype))
            loss = graded.loss.mean()
            state.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            norm = float(torch.nn.utils.clip_grad_norm_(list(weights.values()), config.clip_norm))
            if not np.isfinite(norm):
                raise FloatingPointError(f"the loss or its gradient is not finite at step {state.step}")
            state.optimizer.step()
            decay = min(config.ema_decay, (1 + state.step) / (10 + state.step))
            torch._foreach_lerp_(list(state.average.values()), [w.detach() for w in weights.values()], 1 - decay)
            state.step += 1
            masks = graded.probability > TRAINING_THRESHOLD
            ious = [mask_iou(mask, place.target) for mask, place in zip(masks, places, strict=True)]
            yield {"loss": loss.item(), "iou": float(np.mean(ious)), "norm": norm, "rate": rate}
            places = still_clicked(places, graded.probability)


def averaged(state: HeadState) -> SkipClick:
    """A separate model with the averaged weights."""
    model = copy.deepcopy(state.model)
    model.load_state_dict(state.average, strict=False)
    return model.eval()


@torch.no_grad()
def measure(model: SkipClick, views: Path, num_objects: int) -> list[list[float]]:
    """IoUs after the first clicks on each object: at most one object of each view, the same ones in every call."""
    curves: list[list[float]] = []
    for number, path in enumerate(list_views(views)):
        place = place_in(read_view(path), np.random.default_rng((9, number)))
        if place is None or len(curves) == num_objects:
            continue
        place = replace(place, remaining=CLICKS_MEASURED)
        curve: list[float] = []
        while place is not None:
            [answer] = answers(model, [place], LOSSES["bce_dice"]).probability
            curve.append(mask_iou(answer > TRAINING_THRESHOLD, place.target))
            place = advanced(place, answer)
        curves.append(curve + [curve[-1]] * (CLICKS_MEASURED - len(curve)))
    return curves


def summary(curves: Sequence[Sequence[float]]) -> dict[str, float]:
    """Of the curves of `measure`: mean IoU after some numbers of clicks, and mean NoC, at most `CLICKS_MEASURED`."""
    ious = np.array(curves)
    figures = {f"mIoU@{count}": float(ious[:, count - 1].mean()) for count in (1, 2, 3, 5, 8)}
    nocs = {p: [noc(curve, p / 100, CLICKS_MEASURED) for curve in curves] for p in (85, 90)}
    return figures | {f"NoC@{percent}": float(np.mean(counts)) for percent, counts in nocs.items()}


def save_state(state: HeadState, record: dict[str, Any], path: Path) -> None:
    """All that is needed to continue, except the backbone; to save space, the optimiser's moments are in bfloat16."""
    moments = {
        key: {name: value.bfloat16() if value.ndim else value for name, value in one.items()}
        for key, one in state.optimizer.state_dict()["state"].items()
    }
    content = {
        "format": FORMAT,
        "model": json.dumps(state.model.config.to_dict()),
        "backbone": backbone_digest(state.model),
        "history": json.dumps([*state.history, {**record, "to_step": state.step, "objects": state.drawn}]),
        "head": {name: tensor.detach() for name, tensor in head_state(state.model).items()},
        "average": state.average,
        "optimizer": moments,
        "step": state.step,
        "drawn": state.drawn,
    }
    with atomic_write(path) as temporary:
        torch.save(content, temporary)


def read_head(path: Path) -> dict[str, Any]:
    """What `save_state` wrote, read without executing anything from it. Raises `ValueError` if it is not one."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        known = saved["format"] == FORMAT
    except Exception:  # torch and pickle raise nearly everything on other files
        known = False
    if not known:
        raise ValueError(f"{path} is not a checkpoint of `fit-head`: give the head.pt of its --output")
    return {**saved, "history": json.loads(saved["history"])}


def load_state(state: HeadState, saved: dict[str, Any]) -> None:
    """Restore a checkpoint. Raises `ValueError` if it belongs to another network."""
    config = ModelConfig.from_dict(json.loads(saved["model"]))
    if saved["backbone"] != backbone_digest(state.model) or config != state.model.config:
        raise ValueError("the head was trained on another network than this one")
    state.model.load_state_dict(saved["head"], strict=False)
    for name, tensor in saved["average"].items():
        state.average[name].copy_(tensor)
    moments = {key: {name: value.float() for name, value in one.items()} for key, one in saved["optimizer"].items()}
    state.optimizer.load_state_dict({**state.optimizer.state_dict(), "state": moments})
    state.step, state.drawn, state.history = saved["step"], saved["drawn"], saved["history"]


def trained_head(saved: dict[str, Any], backbone: SkipClick) -> SkipClick:
    """The averaged weights of a checkpoint with the backbone of `backbone`. `ValueError` if that is not theirs."""
    if saved["backbone"] != backbone_digest(backbone):
        raise ValueError("the head was trained on another backbone than this one")
    model = SkipClick(ModelConfig.from_dict(json.loads(saved["model"])))
    model.backbone.load_state_dict(backbone.backbone.state_dict())
    model.load_state_dict({**saved["head"], **saved["average"]}, strict=False)
    return model.eval()
