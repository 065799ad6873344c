"""Moves a head trained on one backbone to another one, so that it need not learn about clicks again.

Only two parts of a head see the backbone: the linear layer that fuses the taps, and the projection of each tap into the
pyramid. Both are refitted, by least squares, so that their outputs from the new taps approximate those from the old
taps. All other weights stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipclick.head import head_state
from skipclick.model import SkipClick, to_grid

RIDGE = 1e-4  # relative to the mean square of the inputs


class LinearFit:
    """Least-squares fit of outputs (N, O) by inputs (N, I) and a constant, accumulated over batches."""

    def __init__(self) -> None:
        self._inputs = self._products = torch.zeros(())
        self._squares = self._sums = torch.zeros(())
        self._count = 0

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        inputs = F.pad(inputs.double(), (0, 1), value=1.0)
        outputs = outputs.double()
        self._inputs = self._inputs + inputs.T @ inputs
        self._products = self._products + inputs.T @ outputs
        self._squares = self._squares + outputs.square().sum(0)
        self._sums = self._sums + outputs.sum(0)
        self._count += len(inputs)

    def solve(self) -> tuple[Tensor, Tensor, float]:
        """Weight (O, I), bias (O,), and the share of the outputs' variance explained."""
        size = len(self._inputs)
        ridge = RIDGE * self._inputs.diagonal()
        ridge[-1] = 0
        solution = torch.linalg.solve(self._inputs + torch.diag(ridge + 1e-8), self._products)  # (I + 1, O)
        explained = 2 * (solution * self._products).sum(0) - (solution * (self._inputs @ solution)).sum(0)
        variance = (self._squares - self._sums**2 / self._count).sum()
        residual = (self._squares - explained).sum()
        return solution[: size - 1].T.float(), solution[-1].float(), float(1 - residual / variance)


@torch.no_grad()
def refit_head(model: SkipClick, donor: SkipClick, images: Iterable[Tensor]) -> dict[str, float]:
    """Give `model` the head of `donor`, fitted to its own backbone on images (1, 3, H, W) in [0, 1].

    Returns the share of variance explained, by layer. Raises `ValueError` if the heads differ in shape apart from
    the layers that see the taps, or the taps have other strides.
    """
    layers = _layers(model)
    if "fuse" not in layers:
        raise ValueError("a head without a layer that fuses the taps cannot be fitted to another backbone")
    own, given = head_state(model), head_state(donor)
    names = {f"{name}.{kind}" for name in layers for kind in ("weight", "bias")}
    unfit = [key for key in own.keys() - names if key not in given or own[key].shape != given[key].shape]
    if unfit or model.config.tap_strides != donor.config.tap_strides or _layers(donor).keys() != layers.keys():
        raise ValueError(f"the head of {donor.version} does not fit this network: {', '.join(sorted(unfit)[:5])}")
    fits = {name: LinearFit() for name in layers}
    for image in images:
        taps, wanted = model.backbone(image), donor.backbone(image)
        grid = (image.shape[-2] // model.config.patch_size, image.shape[-1] // model.config.patch_size)
        fits["fuse"].add(_rows([to_grid(tap, grid) for tap in taps]), donor.fuse_taps(wanted)[0])
        for i, (tap, skip) in enumerate(zip(taps, donor.pyramid.prepare(wanted), strict=True)):
            fits[f"pyramid.skips.{i}"].add(_rows([tap]), _rows([skip]))
    model.load_state_dict({key: given[key] for key in own.keys() - names}, strict=False)
    explained = {}
    for name, layer in layers.items():
        weight, bias, explained[name] = fits[name].solve()
        layer.weight.copy_(weight.view_as(layer.weight))
        if layer.bias is not None:  # as both kinds are built here
            layer.bias.copy_(bias)
    return explained


def _layers(model: SkipClick) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers that see the taps, by name; all of them are linear and act on each position alone."""
    named = {"fuse": model.fuse, **{f"pyramid.skips.{i}": skip for i, skip in enumerate(model.pyramid.skips)}}
    return {name: layer for name, layer in named.items() if isinstance(layer, nn.Linear | nn.Conv2d)}


def _rows(maps: Sequence[Tensor]) -> Tensor:
    """Maps (1, C_i, h, w) as one row per position, (h * w, sum of C_i)."""
    return torch.cat([one[0].flatten(1).T for one in maps], dim=1)
