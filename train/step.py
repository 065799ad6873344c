"""One optimisation step over a global batch, divided over processes and, where it is accumulated, over time."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from skipclick.atomic_io import atomic_write
from skipclick.model import SkipClick
from train.checkpoints import TrainingState
from train.config import TrainConfig
from train.dataset import Batch
from train.distributed import Group, without_averaging
from train.objective import Graded, object_generators

BATCH_TENSORS = ("image", "target", "positives", "negatives")


@dataclass(frozen=True)
class Part:
    """The part of a global batch in one pass through the network."""

    positions: range  # of its photos in the data set's sequence
    batch: Batch


@dataclass(frozen=True)
class StepResult:
    """The outcome of a global batch; the figures are means over the group, the same in all processes."""

    loss: float
    iou: float  # of the last answers, over the objects that are not empty
    grad_norm: float  # before clipping
    learning_rate: float
    stop: bool  # whether any process was asked to stop
    shown: Graded  # this process's last part


def new_state(model: SkipClick, config: TrainConfig, device: torch.device) -> TrainingState:
    """A state at step 0. Raises `ValueError` if the device does not support the precision."""
    if config.precision == "float16" and device.type != "cuda":
        raise ValueError(f"float16 trains on CUDA only, not on {device.type}: use --precision bfloat16 or float32")
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = None
    if config.ema_decay is not None:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)  # type: ignore[no-untyped-call]
    # Pretrained weights keep their batch-norm statistics: a few photos must not change them.
    model.backbone.fixed_statistics = config.backbone_weights is not None
    groups = parameter_groups(model, config)
    # Without weight decay, as in the paper's recipe, this is plain Adam.
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
    return TrainingState(model, average, optimizer, scaler)


def parameter_groups(model: SkipClick, config: TrainConfig) -> list[dict[str, Any]]:
    """The trained parameters: matrices, then vectors, which do not decay; `rate` is relative to the schedule's learning
    rate.

    A backbone with a learning rate of its own comes last, in groups of its own.
    """
    head, backbone = list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in model.named_parameters():
        is_separate = config.backbone_learning_rate is not None and name.startswith("backbone.")
        if parameter.requires_grad:
            (backbone if is_separate else head).append(parameter)
    rates = [(head, 1.0)]
    if config.backbone_learning_rate is not None:
        rates.append((backbone, config.backbone_learning_rate / config.learning_rate))
    return [
        {"params": [p for p in group if (p.ndim > 1) == matrices], "weight_decay": decay, "rate": rate}
        for group, rate in rates
        for matrices, decay in ((True, config.weight_decay), (False, 0.0))
    ]


def compile_parts(model: SkipClick) -> None:
    """Let torch.compile make kernels for the network's parts, in place; names of weights stay as they are."""
    for part in (model.backbone, model.prompts, model.mixer, model.pyramid, model.decoder):
        part.compile()


def train_step(
    state: TrainingState,
    objective: nn.Module,
    parts: Sequence[Part],
    config: TrainConfig,
    group: Group,
    failures: Path,
    asked_to_stop: bool = False,
) -> StepResult:
    """One step with the mean gradient of all parts of all processes.

    Raises `FloatingPointError` if the loss or its gradient is not finite, after writing the part in question
    to the folder `failures`; the weights are still those before the step.
    """
    learning_rate = config.learning_rate_at(state.step)
    for parameters in state.optimizer.param_groups:
        parameters["lr"] = learning_rate * parameters["rate"]
    state.optimizer.zero_grad()
    # The mean over processes that follows gives each photo the same weight, however many a part has.
    fractions = [config.batch_size / (len(part.positions) * group.size) for part in parts]
    graded = [
        _backward(state, objective, part, config, fraction, last=part is parts[-1])
        for part, fraction in zip(parts, fractions, strict=True)
    ]
    losses, ious = [one.loss.item() for one in graded], [_mean_iou(one) for one in graded]
    shares = [
        sum(value / fraction for value, fraction in zip(values, fractions, strict=True)) for values in (losses, ious)
    ]
    loss, iou, stop = group.mean([*shares, float(asked_to_stop)])
    if not math.isfinite(loss):
        broken = [part for part, loss in zip(parts, losses, strict=True) if not math.isfinite(loss)]
        raise FloatingPointError(_explain_divergence("loss", broken, state.step, config, group, failures))
    state.scaler.unscale_(state.optimizer)
    grad_norm = float(torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_norm or float("inf")))
    # The scaler of float16 tries large scales, skips the steps in which they overflow, and halves them.
    if not math.isfinite(grad_norm) and state.scaler.get_scale() <= 1:
        broken = [part for part in parts if not _has_finite_gradient(state, objective, part, config)]
        raise FloatingPointError(_explain_divergence("gradient", broken, state.step, config, group, failures))
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.average:
        state.average.update_parameters(state.model)
    state.step += 1
    return StepResult(loss, iou, grad_norm, learning_rate, stop > 0, graded[-1])


def _backward(
    state: TrainingState, objective: nn.Module, part: Part, config: TrainConfig, fraction: float, *, last: bool
) -> Graded:
    """Adds a part's share, 1 / `fraction`, to the gradients; after the last part they are averaged over the group."""
    rngs = object_generators(config.seed, part.positions, config.num_objects)
    with without_averaging(objective, skip=not last):
        graded: Graded = objective(part.batch, config.num_next_clicks_at(state.step), rngs)
        state.scaler.scale(graded.loss / fraction).backward()  # type: ignore[no-untyped-call]
    return graded._replace(loss=graded.loss.detach())


def _mean_iou(graded: Graded) -> float:
    target = graded.batch.target
    predicted, wanted = (graded.probability > 0.5) & (target >= 0), target == 1
    overlap = (predicted & wanted).sum(dim=(1, 2)) / (predicted | wanted).sum(dim=(1, 2)).clamp(min=1)
    return float(overlap[wanted.any(dim=2).any(dim=1)].mean().nan_to_num())


def _has_finite_gradient(state: TrainingState, objective: nn.Module, part: Part, config: TrainConfig) -> bool:
    """Whether a part alone gives finite gradients, which replace those of the step: sums over parts and means over
    processes do not tell which part is to blame."""
    state.optimizer.zero_grad()
    _backward(state, objective, part, config, 1, last=False)
    gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
    return math.isfinite(torch.nn.utils.get_total_norm(gradients))


def _explain_divergence(
    what: str, broken: Sequence[Part], step: int, config: TrainConfig, group: Group, failures: Path
) -> str:
    """The message for a loss or gradient that is not finite; the first of this process's parts with one is written to
    `failures`."""
    if not broken:
        return f"the {what} is not finite at step {step}, but none of this process's photos alone makes it so"
    path = failures / f"not-finite-step-{step:08}-rank-{group.rank}.pt"
    save_part(broken[0], step, config, path)
    return (
        f"the {what} is not finite at step {step}; its batch was saved to {path}: look at it with "
        f"`python -m train show {path} batch.png`, and lower the learning rate or clip gradients if it looks right"
    )


def save_part(part: Part, step: int, config: TrainConfig, path: Path) -> None:
    """A part as a file of plain tensors, numbers and strings."""
    content: dict[str, Tensor | int | str | list[int]] = {n: getattr(part.batch, n).cpu() for n in BATCH_TENSORS}
    content |= {"step": step, "positions": list(part.positions), "num_next_clicks": config.num_next_clicks_at(step)}
    content |= {"seed": config.seed, "precision": config.precision, "model": json.dumps(config.model.to_dict())}
    with atomic_write(path) as temporary:
        torch.save(content, temporary)


def read_batch(path: Path) -> Batch:
    """The batch that `save_part` wrote. Raises `ValueError` if it is not one."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return Batch(**{name: content[name] for name in BATCH_TENSORS})
    except Exception as error:  # torch and pickle raise nearly everything on other files
        raise ValueError(f"{path} is not a batch that training saved ({type(error).__name__})") from None
