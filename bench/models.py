"""The models that `--model` names, built for the network size of one data set."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import torch

from bench.baselines import load_baseline
from bench.baselines.adaptation import Adapted, Labels
from bench.baselines.isegm_checkout import published_side
from bench.published import ABLATION, TABLES
from skipclick import Predictor, load_checkpoint
from skipclick.checkpoint import checkpoint_file
from skipclick.config import PRESETS, ConvNetConfig, preset
from skipclick.evaluation.evaluate import ClickModel
from skipclick.model import SkipClick
from skipclick.openvino_runtime import graphs_folder

ISEGM = {"ritm": "RITM", "focalclick": "FocalClick", "simpleclick": "SimpleClick", "skipclick-release": "SkipClick"}
METHODS = {"sam": "SAM", "sam-hq": "HQ-SAM", "mobile-sam": "MobileSAM"} | ISEGM
"""Names of baselines, those of one code base apart, and their rows in the paper."""


@dataclass(frozen=True)
class ModelSpec:
    """What to measure and how, small enough to send to a worker process."""

    name: str
    """"bundled", a checkpoint file or a baseline of `bench.baselines`."""
    resolution: tuple[int, int] | None
    """(H, W) that the network works at; None: the model's own. Of baselines, those of isegm have one."""
    device: str
    dtype: str
    flip: bool
    runtime: str = "torch"
    adapt: Labels | None = None
    """What the decoder learns from while it is used."""
    mask_feedback: bool = True
    """Of SAM's family: whether a click is given the low-resolution mask of the click before."""


def is_checkpoint(name: str) -> bool:
    """Whether a model's name stands for weights of this project, or of the paper's authors, and not for a baseline."""
    looks_like_weights = Path(name).suffix in (".safetensors", ".pth") and ":" not in name  # sam:FILE.pth does not
    return name == "bundled" or looks_like_weights or Path(name).is_file()


def network_size(name: str, published: tuple[int, int] | None, asked: int | None) -> tuple[int, int] | None:
    """The (H, W) for a model on a data set: the side asked for, else the published size, else the model's own.

    None: baselines but those of isegm have one of their own. Published sizes are for ViTs: a ConvNet such as the
    bundled one was trained at one size and stays there.
    """
    if not is_checkpoint(name) and name.partition(":")[0] not in ISEGM:
        return None
    if asked is not None:
        return asked, asked
    if not is_checkpoint(name):
        side = published_side(name.partition(":")[0], published[0] if published else 448)
        return side, side
    config = _checkpoint(name).config
    return config.resolution if published is None or isinstance(config.backbone, ConvNetConfig) else published


def published_row(name: str, table: int, *, adapted: bool = False) -> str | None:
    """The row of a table of the paper that a model belongs to, by its kind or, of a checkpoint, its architecture."""
    if adapted and is_checkpoint(name):
        return None
    if not is_checkpoint(name):
        method = METHODS.get(name.partition(":")[0], "") + (" + Schön et al." if adapted else "")
        return method if method in TABLES[table].rows else None
    config = _checkpoint(name).config
    if isinstance(config.backbone, ConvNetConfig):  # the paper's are vision transformers
        return None
    row = next((row for row in PRESETS for tap in ("released", "paper") if preset(row, config, tap) == config), None)
    if "dinov3" in config.backbone.name:
        return "DINOv3" if row == "skip" and "DINOv3" in TABLES[table].rows else None
    if row is None or table in (1, 4):
        return ABLATION.get(row or "")
    if row != "skip":
        return None
    return "SkipClick" if "SkipClick" in TABLES[table].rows else f"depth {config.mixer_depth}"


@functools.lru_cache(maxsize=1)
def load_model(spec: ModelSpec) -> ClickModel[Any]:
    """The model; the last one is cached. Raises ValueError, in one sentence, if it cannot be loaded."""
    if spec.adapt:
        return Adapted(load_model.__wrapped__(replace(spec, adapt=None)), spec.adapt)
    if spec.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {spec.device!r} was asked for, but torch finds no CUDA device: use --device cpu")
    if not is_checkpoint(spec.name):
        side = spec.resolution[0] if spec.resolution else 448
        return load_baseline(spec.name, spec.device, side, mask_feedback=spec.mask_feedback)
    return Predictor(
        _checkpoint(spec.name),
        spec.resolution,
        spec.device,
        spec.dtype,
        flip=spec.flip,
        runtime=spec.runtime,
        graphs=(graphs_folder(spec.name),) if spec.runtime == "openvino" else (),
    )


@functools.lru_cache(maxsize=1)
def _checkpoint(name: str) -> SkipClick:
    return load_checkpoint(name)


def checkpoint_sha256(name: str) -> str | None:
    """Of the checkpoint's file, hexadecimal; None for baselines."""
    if not is_checkpoint(name):
        return None
    return _sha256(checkpoint_file(name))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def use_deterministic_kernels(device: str) -> None:
    """The same bits each time, for this process: one thread on the CPU, no kernels chosen by timing on the GPU."""
    if device.startswith("cuda"):
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = False  # "float32" is to be float32
    else:
        torch.set_num_threads(1)
    cv2.setNumThreads(1)
