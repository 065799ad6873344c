"""Summaries of measured times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class MedianP95:
    """Median and 95th percentile."""

    median: float
    p95: float

    @staticmethod
    def of(values: Iterable[float]) -> MedianP95:
        """Raises ValueError if there are no values."""
        all_values = list(values)
        if not all_values:
            raise ValueError("there are no values to summarise")
        median, p95 = np.percentile(all_values, (50, 95))
        return MedianP95(float(median), float(p95))

    def __str__(self) -> str:
        return f"{self.median:.2f} / {self.p95:.2f}"


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """By name, such as "p95"; empty without values."""
    return {f"p{percent}": float(np.percentile(values, percent)) for percent in PERCENTILES} if values else {}
