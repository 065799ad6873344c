"""Rebuilds the networks that the golden files were computed with: weights that follow from key and shape alone.

The rule is described in tests/parity/SOURCE.md. Going through `convert_released` means that every parity test also
tests the way in which released checkpoints are loaded.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skipclick.checkpoint import build_model
from skipclick.model import SkipClick
from skipclick.released import convert_released

TRANSPOSED = {
    "neck.down_4.0.weight",
    "neck.down_4.3.weight",
    "neck.down_8.0.weight",
    "head.up_conv1.0.weight",
    "head.up_conv2.0.weight",
}
LOUD = {"patch_embed_coords.proj.weight", "head.conv_seg.weight"}


def rule_tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    """float32 tensor of this shape whose values depend on the key only."""
    raw = np.random.PCG64(zlib.crc32(key.encode())).random_raw(math.prod(shape))
    unit = ((raw >> np.uint64(11)) * 2.0**-53 * 2 - 1) * math.sqrt(3)
    unit = unit.reshape(shape)
    if key.endswith(".gamma"):
        values = 0.5 + 0.1 * unit
    elif key.endswith(("pos_embed", "cls_token", "register_tokens", "mask_token")):
        values = 0.5 * unit
    elif len(shape) == 1:
        values = (1 if key.endswith(".weight") else 0) + 0.1 * unit
    else:
        fan = shape[0] if key in TRANSPOSED else math.prod(shape[1:])
        values = (8 if key in LOUD else 1) * unit / math.sqrt(fan)
    return torch.from_numpy(values.astype(np.float32))


def rule_state(layout: dict[str, Any]) -> dict[str, Tensor]:
    """A whole released state dict."""
    return {key: rule_tensor(key, tuple(shape)) for key, shape in layout["keys"].items()}


def released_parameters(layout: dict[str, Any]) -> dict[str, Any]:
    """The constructor arguments that a released checkpoint of this layout carries."""
    config = layout["config"]
    side = config["mixer_pos_embed_grid"] * config["patch_size"]
    return {
        "extractor_type": config["extractor"],
        "backbone_params": {
            "img_size": (side, side),
            "patch_size": (config["patch_size"], config["patch_size"]),
            "embed_dim": config["embed_dim"],
            "depth": config["mixer_depth"],
            "num_heads": config["mixer_heads"],
        },
        "neck_params": {"out_dims": config["neck_out_dims"]},
        "head_params": {"channels": config["head_channels"]},
        "use_intermediate": config["use_intermediate"],
        "skip_connections": config["skip_connections"],
        "trained_extractor": config["trained_extractor"],
    }


def rule_model(layout_path: Path, bias_shift: float = 0.0) -> SkipClick:
    """The network of a layout file, filled by the rule; rollouts shift the last bias."""
    layout = json.loads(layout_path.read_text())
    state = rule_state(layout)
    state["head.conv_seg.bias"] = state["head.conv_seg.bias"] + np.float32(bias_shift)
    return build_model(*convert_released(state, released_parameters(layout)), version=layout["name"])


def layout_of(golden: Path) -> Path:
    """The layout file that belongs to `golden_[net_|rollout_|demo_session_]SIZE_VARIANT[_pN][_...].npz`."""
    name = golden.stem.removeprefix("golden_")
    for prefix in ("net_", "rollout_", "demo_session_"):
        name = name.removeprefix(prefix)
    layouts = {path.stem.removeprefix("layout_"): path for path in golden.parent.glob("layout_*.json")}
    matching = [known for known in layouts if name == known or name.startswith(f"{known}_")]
    return layouts[max(matching, key=len)]
