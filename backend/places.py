"""How a server's threads are shared out, so that one kind of request leaves some for all others."""

from __future__ import annotations

from dataclasses import dataclass

_ANSWERING = 4
"""Threads kept for /health (1 s), /setup (3 s) and other pages, which wait for nothing."""

_LEARNING = 4
"""Threads kept for what annotators accept and for trainings, which wait for a disk at most."""


@dataclass(frozen=True)
class Places:
    """Threads that may be at it at a time."""

    predictions: int
    fetching: int
    """Of those for predictions, the ones that may wait for photos; the others answer on photos that are known."""
    learning: int
    warming: int
    """Of those for predictions, the ones that /warm may take: nobody waits for its images yet."""
    pages: int
    """Threads that may put together what /metrics and /status say."""
    clients: int
    """Threads that may wait for a client in the middle of a request or an answer."""
    bodies: int
    """Threads that may receive, parse and work on a long body, which takes long in Python."""


def places(threads: int) -> Places:
    """Of so many threads. Where there are few, half of them predict."""
    learning = min(_LEARNING, max(1, threads // 4))
    predictions = max(1, threads - min(_ANSWERING, max(1, threads // 4)) - learning)
    return Places(
        predictions=predictions,
        fetching=max(1, predictions - max(1, predictions // 4)),
        learning=learning,
        warming=min(4, predictions),
        pages=2,
        clients=max(1, threads // 4),
        bodies=max(1, threads // 4),
    )
