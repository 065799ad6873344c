"""The click path as CUDA graphs: on a GPU a click is some two hundred small kernels, and launching them one by one
takes longer than running them. A graph launches them all at once.

A graph reads and writes fixed memory, so its inputs have a fixed shape: one graph for each batch size, and a fixed
number of places for clicks. Two threads must not run graphs of one predictor at the same time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from skipclick.model import PreparedFeatures

BATCHES = (1, 2, 4, 8)
PLACES = 24  # for positive clicks and as many for negative ones; more clicks run without a graph

ClickPath = Callable[[PreparedFeatures, Tensor, Tensor, Tensor], Tensor]
"""features, previous (B, 1, H, W), positives and negatives (B, N, 2) -> probability (B, H, W)."""

logger = logging.getLogger(__name__)


class ClickGraph:
    """One batch size of the click path, recorded."""

    def __init__(self, path: ClickPath, features: PreparedFeatures, previous: Tensor, batch: int) -> None:
        """`features` and `previous`, of one object, give the shapes, types and the device of the inputs."""
        self._features = PreparedFeatures.cat([features] * batch).clone()
        self._previous = torch.cat([previous] * batch)  # (B, 1, H, W)
        self._points = torch.full((2, batch, PLACES, 2), -1.0, device=previous.device)
        # In the first runs libraries choose kernels and allocate workspaces, which cannot be recorded.
        side = torch.cuda.Stream(previous.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(previous.device))
        with torch.cuda.stream(side):
            for _ in range(3):
                self._run(path)
            side.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            # Other threads may use the GPU meanwhile.
            with torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local"):
                self._probability = self._run(path)
        torch.cuda.current_stream(previous.device).wait_stream(side)

    def _run(self, path: ClickPath) -> Tensor:
        return path(self._features, self._previous, self._points[0], self._points[1])

    def __call__(
        self, features: Sequence[PreparedFeatures], previous: Sequence[Tensor | None], points: Tensor
    ) -> Tensor:
        """Probability (n, H, W) of n objects, n at most the batch; what the other places hold does not matter.

        Args:
            features, previous: of one object each; a `previous` (H, W) of None is all zeros.
            points: (2, n, PLACES, 2) on the host, positives and negatives.
        """
        for place, (prepared, last) in enumerate(zip(features, previous, strict=True)):
            self._features.put(place, prepared)
            if last is None:
                self._previous[place].zero_()
            else:
                self._previous[place, 0].copy_(last)
        self._points[:, : len(features)].copy_(points, non_blocking=True)
        self._graph.replay()
        return self._probability[: len(features)].clone()


def record(path: ClickPath, features: PreparedFeatures, previous: Tensor) -> Mapping[int, ClickGraph]:
    """A graph for each size of `BATCHES`; fewer or none, with a warning, where recording fails."""
    graphs: dict[int, ClickGraph] = {}
    try:
        for batch in BATCHES:
            graphs[batch] = ClickGraph(path, features, previous, batch)
    except RuntimeError as error:  # out of memory is one, too
        logger.warning("clicks run without CUDA graphs beyond batches of %d: %s", max(graphs, default=0), error)
    return graphs
