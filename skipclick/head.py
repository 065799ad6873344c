"""The head, which is a model without its backbone: fine-tuning changes it, and a predictor can exchange it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from skipclick.atomic_io import atomic_write
from skipclick.model import SkipClick

FORMAT = "skipclick-head-1"
_BACKBONE = "backbone."


def head_state(model: SkipClick) -> dict[str, Tensor]:
    """All weights and buffers but the backbone's, by name."""
    return {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(_BACKBONE)}


def head_digest(state: Mapping[str, Tensor]) -> str:
    """A hash of the bits of a head's weights, as `head_state` or `load_head` returns them."""
    return _digest(state)


def backbone_digest(model: SkipClick) -> str:
    """A hash of the backbone's weights and configuration: a head fits only the backbone it was trained on."""
    state = {key: tensor for key, tensor in model.state_dict().items() if key.startswith(_BACKBONE)}
    return _digest(state, str(model.config.backbone))


def save_head(model: SkipClick, path: Path, about: Mapping[str, Any]) -> None:
    """Write the head of a model as safetensors, atomically; `about` is any JSON for the file's header."""
    state = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in head_state(model).items()}
    with atomic_write(path) as temporary:
        save_file(state, temporary, metadata={"format": FORMAT, "about": json.dumps(dict(about))})


def load_head(path: Path) -> dict[str, Tensor]:
    """What `save_head` wrote, on the CPU. Raises `ValueError` with one sentence if it is missing or damaged."""
    if path.exists() and not path.is_file():
        raise ValueError(f"the head {path} cannot be read: it is not a file")
    try:
        with safe_open(str(path), framework="pt") as file:
            if (file.metadata() or {}).get("format") != FORMAT:
                raise ValueError(f"{path} is not a head of a SkipClick model")
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise ValueError(f"the head {path} cannot be read ({error})") from None
    invalid = sorted(key for key, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all())
    if invalid:
        raise ValueError(f"the head {path} is damaged: {', '.join(invalid[:3])} holds values that are not finite")
    return state


def put_head(model: SkipClick, state: Mapping[str, Tensor]) -> None:
    """Overwrite a model's head in place, whatever its device and type. Raises `ValueError` if `state` does not fit."""
    own = head_state(model)
    wrong = own.keys() ^ state.keys() | {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape}
    if wrong:
        raise ValueError(f"the head does not fit this model: {', '.join(sorted(wrong)[:5])}")
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(state[key])


def _digest(state: Mapping[str, Tensor], *more: str) -> str:
    digest = hashlib.sha256(" ".join(more).encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
