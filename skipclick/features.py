"""Features of an image: all that the network computes before any click, in memory and as files."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from skipclick.model import PreparedFeatures, SkipClick

_FORMAT = 2  # of the files; raise it when the features' meaning changes, so that old files are no longer found


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """All that the network computes from an image alone.

    `taps` belong to the backbone and serve every head; `prepared` belongs to one head's weights.
    """

    taps: tuple[Tensor, ...]
    prepared: PreparedFeatures
    image_size: tuple[int, int]
    """(H, W) of the original image in pixels."""
    head: str = ""
    """Digest of the weights that `prepared` belongs to, see `skipclick.head.head_digest`."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory held, on whichever device; a storage that several tensors share counts once."""
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in self._tensors()
        }
        return sum(storages.values())

    def to(self, device: str | torch.device) -> ImageFeatures:
        """The same on another device; values and memory formats stay."""
        return ImageFeatures(
            tuple(tap.to(device) for tap in self.taps),
            PreparedFeatures(self.prepared.tokens.to(device), tuple(skip.to(device) for skip in self.prepared.skips)),
            self.image_size,
            self.head,
        )

    def _tensors(self) -> tuple[Tensor, ...]:
        return (*self.taps, self.prepared.tokens, *self.prepared.skips)


def write_features(path: Path, features: ImageFeatures) -> None:
    """Features as a safetensors file, with what is needed to read back the same bits in the same order of memory."""
    orders = [_memory_order(tensor) for tensor in features._tensors()]
    plain = [
        tensor.detach().cpu().permute(order).contiguous()
        for tensor, order in zip(features._tensors(), orders, strict=True)
    ]
    about = {
        "image_size": features.image_size,
        "head": features.head,
        "blocks": len(features.taps),  # the key that files of format 2 have
        "orders": orders,
        "crc": _crc(plain),
    }
    save_file({str(place): tensor for place, tensor in enumerate(plain)}, path, {"features": json.dumps(about)})


def read_features(path: Path) -> ImageFeatures:
    """What `write_features` wrote, on the CPU. Raises `ValueError` or safetensors' own error for a damaged file."""
    with safetensors.safe_open(path, framework="pt") as file:
        about = json.loads((file.metadata() or {})["features"])
        plain = [file.get_tensor(str(place)).clone() for place in range(len(about["orders"]))]
    if _crc(plain) != about["crc"]:
        raise ValueError("its checksum does not match its content")
    tensors = [
        tensor.permute([order.index(dim) for dim in range(tensor.ndim)])
        for tensor, order in zip(plain, about["orders"], strict=True)
    ]
    taps, (tokens, *skips) = tensors[: about["blocks"]], tensors[about["blocks"] :]
    height, width = about["image_size"]
    return ImageFeatures(tuple(taps), PreparedFeatures(tokens, tuple(skips)), (height, width), about["head"])


def features_name(
    model: SkipClick,
    resolution: tuple[int, int],
    dtype: torch.dtype,
    device: str,
    keep_taps: bool = False,
    runtime: str = "torch",
) -> str:
    """A digest of all that determines the features of an image: weights, resolution, type, device, whether the taps are
    kept, runtime (`Predictor.runtime`) and torch's version."""
    kept = "blocks" if keep_taps else "prepared"  # part of the names of files on disk
    facts = f"{_FORMAT} {model.config} {resolution} {dtype} {device} {kept} {runtime} {torch.__version__}"
    digest = hashlib.sha256(facts.encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(_bytes(tensor.detach().cpu().contiguous()))
    return digest.hexdigest()[:16]


def _memory_order(tensor: Tensor) -> list[int]:
    """Dimensions from the slowest to the fastest in memory, so that permuting by them gives a plain array."""
    strides = tensor.stride()
    return sorted(range(tensor.ndim), key=lambda dim: -strides[dim])


def _crc(tensors: Sequence[Tensor]) -> int:
    """Checksum of contiguous tensors on the CPU."""
    value = 0
    for tensor in tensors:
        value = zlib.crc32(_bytes(tensor), value)
    return value


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
