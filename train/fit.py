"""The training loop.

python -m train fit --data DIR --recipe tiny --steps 12000 --output runs/tiny
torchrun --nproc-per-node 2 -m train fit ...          the same global batch, shared by two processes
python -m train fit --data DIR --recipe tiny-finish --init runs/tiny/last.pt --steps 3000 --output runs/finish
python -m train export runs/finish/last.pt skipclick-tiny.safetensors --version skipclick-tiny
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm

from skipclick.checkpoint import build_model
from skipclick.config import ModelConfig
from skipclick.files import replaced_atomically
from skipclick.model import SkipClick
from train.config import TrainConfig
from train.dataset import Batch, ObjectDataset, collate, list_photos
from train.distributed import Group, average_gradients, joined_group
from train.losses import LOSSES
from train.step import training_loss

SAVE_EVERY_SECONDS = 120.0
LOG_EVERY_STEPS = 20


@dataclass
class TrainingState:
    """All that a checkpoint holds: what continues a run exactly where it stopped."""

    model: SkipClick
    average: AveragedModel | None  # exponential moving average of the weights
    optimizer: torch.optim.Optimizer
    step: int = 0  # every random number of a step derives from (seed, step), so there is no generator to save

    def state_dict(self, config: TrainConfig) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "config": json.dumps({**asdict(config), "model": config.model.to_dict()}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def fit(
    config: TrainConfig,
    data: Path,
    output: Path,
    *,
    device: torch.device,
    num_workers: int = 1,
    init: Path | None = None,
    resume: bool = False,
) -> Path:
    """Train and return the path of the last checkpoint. `init` starts from its weights, `resume` continues `output`."""
    last = output / "last.pt"
    torch.manual_seed(config.seed)
    with joined_group(device) as group:
        state = _new_state(config, device)
        if resume:
            state.load_state_dict(read_state(last))
        elif init:
            state.model.load_state_dict(read_state(init)["model"])
        batches = _batches(config, data, state.step, num_workers, group)
        output.mkdir(parents=True, exist_ok=True)
        log = _Log(output / "log.jsonl", state.step, config) if group.is_main else None
        saved = time.monotonic()
        for batch in batches:
            loss, grad_norm, iou = _optimise(state, batch.to(device), config, group)
            state.step += 1
            if log:
                log.add(state.step, loss, grad_norm, iou, config.learning_rate_at(state.step - 1))
                if time.monotonic() - saved > SAVE_EVERY_SECONDS:
                    save_state(state, config, last)
                    saved = time.monotonic()
        if log:
            log.close()
            save_state(state, config, last)
    return last


def _new_state(config: TrainConfig, device: torch.device) -> TrainingState:
    model = SkipClick(config.model, pretrained=config.pretrained).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = None
    if config.ema_decay is not None:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)  # type: ignore[no-untyped-call]
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    return TrainingState(model, average, optimizer)


def _batches(config: TrainConfig, data: Path, first_step: int, num_workers: int, group: Group) -> DataLoader[Batch]:
    """This process's share of every global batch from `first_step` on."""
    if config.batch_size % group.size:
        raise ValueError(f"a batch of {config.batch_size} photos cannot be shared by {group.size} processes")
    dataset = ObjectDataset(
        list_photos(data, "train", config.exclude_kinds),
        num_objects=config.num_objects,
        augment_config=config.augment,
        sampler_config=config.sampler,
        seed=config.seed,
    )
    share = config.batch_size // group.size
    starts = (step * config.batch_size + group.rank * share for step in range(first_step, config.steps))
    return DataLoader(
        dataset,
        batch_sampler=[list(range(start, start + share)) for start in starts],
        num_workers=num_workers,
        collate_fn=collate,
    )


def _optimise(state: TrainingState, batch: Batch, config: TrainConfig, group: Group) -> tuple[float, float, float]:
    """One optimisation step; returns loss, gradient norm and mean IoU of this process's share."""
    for parameters in state.optimizer.param_groups:
        parameters["lr"] = config.learning_rate_at(state.step)
    rng = np.random.default_rng((config.seed, state.step, group.rank))  # simulated clicks
    torch.manual_seed(int(rng.integers(2**63)))  # dropout
    num_next_clicks = int(np.random.default_rng((config.seed, state.step)).integers(config.max_num_next_clicks + 1))
    loss, probability = training_loss(state.model, batch, LOSSES[config.loss], num_next_clicks, rng, config.bfloat16)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss.item()} at step {state.step}; lower the learning rate")
    state.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    average_gradients(state.model.parameters(), group)
    grad_norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_norm or float("inf"))
    state.optimizer.step()
    if state.average:
        state.average.update_parameters(state.model)
    return loss.item(), float(grad_norm), float(_batch_iou(probability, batch.target))


def _batch_iou(probability: Tensor, target: Tensor) -> Tensor:
    predicted, wanted = (probability > 0.5) & (target >= 0), target == 1
    overlap = (predicted & wanted).sum(dim=(1, 2)) / (predicted | wanted).sum(dim=(1, 2)).clamp(min=1)
    return overlap[wanted.any(dim=2).any(dim=1)].mean().nan_to_num()


def save_state(state: TrainingState, config: TrainConfig, path: Path) -> None:
    with replaced_atomically(path) as temporary:
        torch.save(state.state_dict(config), temporary)


def read_state(path: Path) -> dict[str, Any]:
    """A training checkpoint, read without executing anything from it."""
    if not path.is_file():
        raise ValueError(f"training checkpoint {path} does not exist")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def trained_model(state: dict[str, Any]) -> SkipClick:
    """The model of a training checkpoint, with the averaged weights where there is an average."""
    config = ModelConfig.from_dict(json.loads(state["config"])["model"])
    prefix = "module."
    average = state["average"] or {}
    averaged = {key.removeprefix(prefix): value for key, value in average.items() if key.startswith(prefix)}
    return build_model(config, averaged or state["model"], version="in training")


class _Log:
    """Progress bar, and a JSON line every few steps with means since the line before."""

    def __init__(self, path: Path, first_step: int, config: TrainConfig) -> None:
        self._file = path.open("a" if first_step else "w")
        self._bar = tqdm(total=config.steps, initial=first_step, unit="step", mininterval=5.0)
        self._images_per_step = config.batch_size
        self._rows: list[tuple[float, float, float]] = []
        self._since = time.monotonic()

    def add(self, step: int, loss: float, grad_norm: float, iou: float, learning_rate: float) -> None:
        self._rows.append((loss, grad_norm, iou))
        self._bar.update()
        if len(self._rows) < LOG_EVERY_STEPS:
            return
        mean_loss, mean_norm, mean_iou = np.mean(self._rows, axis=0).tolist()
        seconds = time.monotonic() - self._since
        speed = len(self._rows) * self._images_per_step / seconds
        self._bar.set_postfix(loss=f"{mean_loss:.3f}", iou=f"{mean_iou:.3f}", images_per_s=f"{speed:.1f}")
        line = {
            "step": step,
            "loss": mean_loss,
            "grad_norm": mean_norm,
            "iou": mean_iou,
            "learning_rate": learning_rate,
            "images_per_second": speed,
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._rows.clear()
        self._since = time.monotonic()

    def close(self) -> None:
        self._bar.close()
        self._file.close()
