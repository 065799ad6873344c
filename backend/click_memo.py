"""Answers to the clicks on an object; each one needs the answer to the clicks before it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Generic, Protocol, TypeVar

from skipclick.cache import ByteLru, CacheStats, SharedCache
from skipclick.prompts import Click


class Answer(Protocol):
    """What is cached for a click."""

    @property
    def nbytes(self) -> int: ...


A = TypeVar("A", bound=Answer)


class ClickMemo(Generic[A]):
    """The answer to clicks 1..t by clicks, within a budget of bytes. Thread-safe.

    The answer to clicks 1..t-1 is an input of that to clicks 1..t. If it was evicted, the clicks are answered again
    from the longest cached prefix. So an answer depends on its clicks alone, not on which requests came before.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._answers: SharedCache[A] = SharedCache("memo", ByteLru(budget_bytes))

    def answer(
        self, subject: Hashable, clicks: tuple[Click, ...], make: Callable[[tuple[Click, ...], A | None], A]
    ) -> A:
        """The answer to `clicks`, at least one.

        subject: everything besides the clicks that an answer depends on. make: computes the answer to clicks from the
        answer to all but the last of them, None at the first; called once however many threads ask.
        """
        known = ((n, self._answers.peek((subject, clicks[:n]))) for n in range(len(clicks) - 1, 0, -1))
        num_known, answer = next((found for found in known if found[1] is not None), (0, None))
        for num_clicks in range(num_known + 1, len(clicks) + 1):
            prefix = clicks[:num_clicks]
            answer = self._answers.get_or_make((subject, prefix), partial(make, prefix, answer))
        assert answer is not None
        return answer

    def free(self) -> None:
        """Forget all answers: the same ones, to the bit, are computed again."""
        self._answers.free()

    def close(self) -> None:
        """Stop the background work."""
        self._answers.close()

    def stats(self) -> dict[str, CacheStats]:
        """Statistics by cache name."""
        return self._answers.stats()
