"""How a server's threads are divided, so that no kind of request takes all of them."""

from __future__ import annotations

from dataclasses import dataclass

_ANSWERING = 4
"""Threads reserved for /health (1 s), /setup (3 s) and other pages, which wait for nothing."""

_LEARNING = 4
"""Threads reserved for accepted annotations and for trainings, which wait for a disk at most."""


@dataclass(frozen=True)
class Places:
    """How many threads each kind of request may occupy at a time."""

    predictions: int
    fetching: int
    """Of those for predictions, the ones that may wait for photos; the others serve cached photos."""
    learning: int
    warming: int
    """Of those for predictions, the ones that /warm may occupy: nobody is waiting for its images yet."""
    pages: int
    """Threads that may build the answers of /metrics and /status."""
    clients: int
    """Threads that may wait for a client in the middle of a request or an answer."""
    bodies: int
    """Threads that may receive, parse and work on a long body, which takes long in Python."""


def places(threads: int) -> Places:
    """The division of `threads` threads. If there are few, half of them predict."""
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
