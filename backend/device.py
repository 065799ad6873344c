"""The device that the network runs on."""

from __future__ import annotations

import torch


def choose_device(name: str) -> str:
    """A torch device for `auto`, `cpu`, `cuda` or `cuda:1`. Raises `ValueError` if it does not exist."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    index = int(name.partition(":")[2] or 0)
    if name.startswith("cuda") and index >= torch.cuda.device_count():
        raise ValueError(f"DEVICE={name}, but torch finds {torch.cuda.device_count()} CUDA devices; use DEVICE=auto")
    return name
