"""Data parallelism over processes started by `torchrun`; a single process needs none of it.

torchrun --nproc-per-node 8 -m train fit ...                                       all GPUs of a machine
torchrun --nnodes 1:4 --rdzv-backend c10d --rdzv-endpoint HOST:29400 --rdzv-id NAME --max-restarts 100 \
    --nproc-per-node 8 -m train fit --elastic ...      on one to four machines, which may come and go (docs/scaling.md)

SIGTERM to any of the processes, or to torchrun, ends them all after the same step with a checkpoint; torchrun itself
then exits with status 0 in the first case and, as always when it is signalled itself, with 1 in the second.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Group:
    """This process's place among those that train together, and its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def mean(self, values: Sequence[float]) -> list[float]:
        """Each value's mean over the processes; they all wait for one another here."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        means: list[float] = (tensor / self.size).tolist()
        return means

    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values


@contextmanager
def joined_group(device: torch.device) -> Iterator[Group]:
    """The processes that `torchrun` started, joined for the duration of the block; or this one alone.

    "cuda" means the device with the process's local rank. Raises `ValueError` if there is none.
    """
    group = Group(device=_own_device(device))
    if group.device.type == "cuda":
        torch.cuda.set_device(group.device)
    if "WORLD_SIZE" not in os.environ:
        yield group
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield replace(group, rank=dist.get_rank(), size=dist.get_world_size())
    finally:
        dist.destroy_process_group()  # or its threads abort the interpreter at exit


def _own_device(device: torch.device) -> torch.device:
    if device.type != "cuda":
        return device
    number = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", 0))
    if number >= torch.cuda.device_count():
        raise ValueError(
            f"device cuda:{number} was asked for, but torch finds {torch.cuda.device_count()} CUDA devices: "
            "use --device cpu, or start fewer processes"
        )
    return torch.device("cuda", number)


def distributed(module: nn.Module, group: Group, *, all_used: bool) -> nn.Module:
    """The module with gradients averaged over the group while they are computed. all_used: each weight gets one."""
    if group.size == 1:
        return module
    return DistributedDataParallel(module, find_unused_parameters=not all_used)


def without_averaging(module: nn.Module, skip: bool) -> AbstractContextManager[None]:
    """A block in which gradients only add up, for all parts of an accumulated batch but the last."""
    if skip and isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return nullcontext()
