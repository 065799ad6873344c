"""Checkpoints: our safetensors with the configuration in its header, and the authors' released files."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from skipclick.atomic_io import atomic_write
from skipclick.config import ModelConfig
from skipclick.model import SkipClick
from skipclick.released import convert_released, read_released

FORMAT = "skipclick-1"
BUNDLED = "skipclick-lite.safetensors"


def checkpoint_file(name: str | Path) -> Path:
    """The file that "bundled" stands for, or the one named."""
    return Path(str(files("skipclick"))) / "weights" / BUNDLED if str(name) == "bundled" else Path(name)


def load_checkpoint(path: str | Path) -> SkipClick:
    """A model in evaluation mode, float32, on the CPU, from "bundled", our `.safetensors` or the authors' `.pth`.

    Raises `ValueError` with one sentence if the file is missing, is neither, or does not fit its configuration.
    """
    path = checkpoint_file(path)
    if not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist; give a file or 'bundled'")
    if zipfile.is_zipfile(path):
        state, parameters = read_released(path)
        return build_model(*convert_released(state, parameters), version=path.stem)
    return _load_safetensors(path)


def save_checkpoint(
    model: SkipClick,
    path: str | Path,
    *,
    version: str,
    provenance: Mapping[str, Any] | None = None,
    half: bool = False,
) -> None:
    """Write weights and configuration atomically.

    `half` stores matrices and kernels in float16 (vectors stay float32); loading always gives float32. `provenance` is
    any JSON: data, command, seed, results.
    """
    metadata = {
        "format": FORMAT,
        "version": version,
        "config": json.dumps(model.config.to_dict()),
        "provenance": json.dumps(dict(provenance or {})),
    }
    state = {
        key: (tensor.half() if half and tensor.ndim > 1 else tensor).contiguous().clone()
        for key, tensor in model.state_dict().items()
    }
    with atomic_write(Path(path)) as temporary:
        save_file(state, temporary, metadata=metadata)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The header of our checkpoint: format, version, config and provenance, decoded."""
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} is a safetensors file but not a SkipClick checkpoint (format {metadata.get('format')!r})"
        )
    return {
        **metadata,
        "config": json.loads(metadata["config"]),
        "provenance": json.loads(metadata["provenance"]),
    }


def load_provenance(path: str | Path) -> dict[str, Any]:
    """The `provenance` that a checkpoint was saved with; empty for the authors' released files."""
    path = checkpoint_file(path)
    if zipfile.is_zipfile(path):
        return {}
    provenance: dict[str, Any] = read_metadata(path)["provenance"]
    return provenance


def _load_safetensors(path: Path) -> SkipClick:
    try:
        metadata = read_metadata(path)
        with safe_open(str(path), framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ValueError(
            f"{path} is neither a SkipClick .safetensors nor a released .pth checkpoint ({error})"
        ) from None
    return build_model(ModelConfig.from_dict(metadata["config"]), state, metadata["version"])


def build_model(config: ModelConfig, state: Mapping[str, Tensor], version: str) -> SkipClick:
    """A model holding these weights; `ValueError` lists keys that are missing, unknown or of another shape, or weights
    that are not finite."""
    given = {key: tuple(tensor.shape) for key, tensor in state.items()}
    expected = _expected_shapes(config, max_layers=len(given))
    if expected != given:
        missing, unknown = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
        reshaped = [
            f"{k} {given[k]} instead of {expected[k]}"
            for k in sorted(expected.keys() & given.keys())
            if expected[k] != given[k]
        ]
        raise ValueError(
            f"weights do not fit the configuration: missing {missing}, unknown {unknown}, wrong shape {reshaped}"
        )
    invalid = sorted(key for key, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all())
    if invalid:
        raise ValueError(f"weights are damaged: {', '.join(invalid[:3])} holds values that are not finite")
    model = SkipClick(config, version=version)
    model.load_state_dict(
        {key: tensor.to(torch.float32) if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    )
    return model.eval()


class _ShapesAlone(TorchFunctionMode):
    """Tensors are allocated and never filled. On the meta device there is nothing to fill, and the functions that would
    do it import torch's compiler, which takes a second."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if re.fullmatch(r"[a-z]\w*[^_]_", func.__name__):  # in place, such as torch.nn.init.normal_
            return args[0] if args else kwargs["tensor"]
        return (torch.empty if func in (torch.zeros, torch.ones) else func)(*args, **kwargs)


def _expected_shapes(config: ModelConfig, max_layers: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a configuration's weights, found without allocating them: a file may claim any sizes."""
    depths = config.mixer_depth, getattr(config.backbone, "depth", 0)
    if max(depths) > max_layers:
        raise ValueError(
            f"weights do not fit the configuration: it has {max(depths)} layers, the file only {max_layers} tensors"
        )
    with torch.device("meta"), _ShapesAlone():
        return {key: tuple(tensor.shape) for key, tensor in SkipClick(config).state_dict().items()}
