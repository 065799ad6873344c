"""An order for clicks that come without one.

CVAT sends positive and negative points as two lists, each in the order of clicking, and annotators may delete any
point. Each answer of the network builds on the one before, so an order must be chosen. It depends on the lists alone,
so that the same points give the same mask to the bit, whatever was requested before.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TypeVar

ClickT = TypeVar("ClickT")


def canonical_order(positive: Sequence[ClickT], negative: Sequence[ClickT]) -> tuple[ClickT, ...]:
    """Positive and negative clicks in turn, starting with a positive one; those of one sign keep their order."""
    return tuple(click for pair in zip_longest(positive, negative) for click in pair if click is not None)
