"""The authors' released checkpoints: read without executing anything, renamed to our modules.

Such a file is a zip that `torch.save` wrote: {"state_dict": tensors, "config": constructor arguments}. The pickle
inside refers to classes of the authors' package (the configuration contains a loss object), so neither
`torch.load(weights_only=True)` nor a plain unpickler will do: the first refuses, the second imports.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from skipclick.config import DINOV2, DINOV3_VITB16, ModelConfig, VitConfig, preset
from skipclick.safe_unpickle import PLAIN_GLOBALS, check_claims


class Placeholder:
    """Stands for an object of any class that is not admitted: accepts whatever the pickle says and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> Placeholder:
        return self


_TENSORS_PER_FILE = 2
"""All tensors together may take at most this many times the file's bytes: some share a storage."""

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


class _Unpickler(pickle.Unpickler):
    """Admits plain containers, numbers, strings, arrays and tensors; every other global becomes a placeholder."""

    ADMITTED: ClassVar[dict[tuple[str, str], Any]] = {
        **PLAIN_GLOBALS,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        ("torch", "Size"): tuple,
    }

    def __init__(self, archive: zipfile.ZipFile, prefix: str, file_size: int) -> None:
        content = archive.read(f"{prefix}/data.pkl")
        check_claims(content)
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self._archive = archive
        self._prefix = prefix
        self._storages: dict[str, Tensor] = {}
        self._bytes_left = _TENSORS_PER_FILE * file_size

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._rebuild_tensor
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        return self.ADMITTED.get((module, name), Placeholder)

    def _rebuild_tensor(
        self, storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
    ) -> Tensor:
        """A part of a storage, as a tensor of its own. A file written by torch has no tensor that is larger than its
        storage, and rarely two that share one."""
        count = math.prod(size)
        self._bytes_left -= count * storage.element_size()
        if count > storage.numel() or self._bytes_left < 0:
            raise pickle.UnpicklingError(f"it is too small for the tensors it claims, such as one of {count} values")
        return storage.as_strided(size, stride, offset).clone()

    def persistent_load(self, reference: Any) -> Tensor:
        kind, dtype, key, _, num_elements = reference
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"unknown reference {kind!r}")
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._prefix}/data/{key}"))
            self._storages[key] = torch.frombuffer(data, dtype=dtype, count=num_elements)
        return self._storages[key]


def read_released(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict and flattened constructor arguments of a released file; `ValueError` if it is something else."""
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            file_size = path.stat().st_size
            if sum(part.file_size for part in archive.infolist()) > file_size:
                raise ValueError("its content is larger than the file, though torch.save does not compress")
            content = _Unpickler(archive, name.removesuffix("/data.pkl"), file_size).load()
    except Exception as error:  # an untrusted file can make an unpickler raise anything
        raise ValueError(f"{path} is not a checkpoint that torch.save wrote: {error}") from None
    if not isinstance(content, dict) or not {"state_dict", "config"} <= content.keys():
        raise ValueError(f"{path} was written by torch.save but holds no 'state_dict' and 'config'")
    try:
        parameters = {name: entry["value"] for name, entry in content["config"]["params"].items()}
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: its 'config' does not list the constructor's 'params'") from None
    return dict(content["state_dict"]), parameters


def convert_released(
    state: Mapping[str, Tensor], parameters: Mapping[str, Any]
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Our configuration and state dict for a released one. `ValueError` names what is not supported."""
    needed = {"extractor_type", "backbone_params", "neck_params", "head_params", "use_intermediate"}
    if missing := sorted(needed - parameters.keys()):
        raise ValueError(f"this is not a SkipClick checkpoint: its configuration lacks {', '.join(missing)}")
    if (
        parameters.get("use_conv_stack")
        or not parameters.get("with_prev_mask", True)
        or not parameters.get("use_disks", True)
    ):
        raise ValueError(
            "this released variant is not SkipClick: it has a convolutional mixer, no previous mask, or no disks"
        )
    num_blocks = sum(key.startswith("feature_extractor.") and key.endswith(".norm1.weight") for key in state)
    config = released_config(parameters, num_backbone_blocks=num_blocks)
    return config, dict(_renamed(state, config))


def released_config(parameters: Mapping[str, Any], num_backbone_blocks: int = 12) -> ModelConfig:
    """Our configuration from the authors' constructor arguments.

    The hub name decides the backbone. Unknown names (a network of another size under the same scheme) take their sizes
    from `backbone_params`, with as many heads as the mixer has.
    """
    hub_name = str(parameters["extractor_type"])
    mixer, neck, head = parameters["backbone_params"], parameters["neck_params"], parameters["head_params"]
    base = DINOV3_VITB16 if hub_name.startswith("dinov3") else DINOV2.get(hub_name)
    if base is None:
        base = DINOV2["dinov2_vitb14_reg" if hub_name.endswith("_reg") else "dinov2_vitb14"]
        backbone = VitConfig(
            name=base.backbone.name,
            embed_dim=mixer["embed_dim"],
            num_heads=mixer["num_heads"],
            depth=num_backbone_blocks,
        )
        base = replace(base, backbone=backbone)
    side, patch = _pair(mixer["img_size"])[0], _pair(mixer["patch_size"])[0]
    base = replace(
        base,
        patch_size=patch,
        resolution=(side, side),
        mixer_width=mixer["embed_dim"],
        mixer_depth=mixer["depth"],
        mixer_heads=mixer["num_heads"],
        mixer_grid=side // patch,
        pyramid_channels=tuple(neck["out_dims"]),
        decoder_channels=head["channels"],
        click_radius=float(parameters.get("norm_radius", 5)),
    )
    if len(parameters["use_intermediate"]) == 1:
        return preset("baseline" if parameters.get("trained_extractor") else "frozen", base)
    return preset("skip" if parameters.get("skip_connections") else "intermediate", base)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


_RENAMED = [
    (r"^patch_embed_coords\.proj\.", "prompts.proj."),
    (r"^backbone_mix\.", "mixer."),
    (r"^head\.convs\.(\d)\.conv\.", r"decoder.levels.\1."),
    (r"^head\.fusion_conv\.conv\.", "decoder.fusion."),
    (r"^head\.conv_seg\.", "decoder.classify."),
    (r"^fuse\.", "fuse."),
]
_UNUSED = ("head.up_conv1.", "head.up_conv2.")
_LEVELS = {"down_4": 0, "down_8": 1, "down_16": 2, "down_32": 3}


def _renamed(state: Mapping[str, Tensor], config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    backbone: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.startswith(_UNUSED):
            continue
        if match := re.match(r"^feature_extractor\.dinov[23]\.(.*)", key):
            backbone[match[1]] = tensor
        elif match := re.match(r"^neck\.(down_\d+)\.(\d+)\.(weight|bias)", key):
            yield from _renamed_level(_LEVELS[match[1]], int(match[2]), match[3], tensor, config)
        else:
            yield _rename(key), tensor
    rename = _dinov3_to_timm if "storage_tokens" in backbone else _dinov2_to_timm
    for key, tensor in rename(backbone).items():
        yield f"backbone.encoder.vit.{key}", tensor


def _rename(key: str) -> str:
    for pattern, replacement in _RENAMED:
        renamed, found = re.subn(pattern, replacement, key)
        if found:
            return renamed
    raise ValueError(f"the released checkpoint has an unknown weight {key!r}")


def _renamed_level(
    level: int, layer: int, kind: str, tensor: Tensor, config: ModelConfig
) -> Iterator[tuple[str, Tensor]]:
    """A level's first convolution sees [mixed, skip] concatenated; ours is two convolutions that share a bias."""
    if layer > 0:
        yield f"pyramid.refine.{level}.{layer - 1}.{kind}", tensor
    elif kind == "bias" or not config.skip_connections:
        yield f"pyramid.mixed.{level}.{kind}", tensor
    else:
        inputs = 0 if level < 2 else 1  # transposed convolutions have their input channels first
        mixed, skip = tensor.chunk(2, dim=inputs)
        yield f"pyramid.mixed.{level}.weight", mixed
        yield f"pyramid.skips.{level}.weight", skip


def _dinov2_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm keeps the class token's position inside the token where there are registers, and drops the mask token."""
    renamed = {key: tensor for key, tensor in state.items() if key != "mask_token"}
    if "register_tokens" in renamed:
        positions = renamed.pop("pos_embed")
        renamed["reg_token"] = renamed.pop("register_tokens")
        renamed["cls_token"] = renamed["cls_token"] + positions[:, :1]
        renamed["pos_embed"] = positions[:, 1:]
    return renamed


def _dinov3_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's EVA class: LayerScale and registers under other names, no key bias, rotary periods computed."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key in ("mask_token", "rope_embed.periods") or key.endswith("bias_mask"):
            continue
        if key.endswith("attn.qkv.bias"):
            query, _, value = tensor.chunk(3)
            renamed[key.replace("qkv.bias", "q_bias")] = query
            renamed[key.replace("qkv.bias", "v_bias")] = value
            continue
        key = key.replace("storage_tokens", "reg_token").replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")
        renamed[key] = tensor
    return renamed
