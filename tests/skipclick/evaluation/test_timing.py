"""Protects the summaries of times in every report: their percentiles, and what they make of no values."""

from __future__ import annotations

import pytest

from skipclick.evaluation.timing import MedianP95, percentiles


def test_median_and_95th_percentile() -> None:
    assert MedianP95.of(range(101)) == MedianP95(50.0, 95.0)
    assert str(MedianP95(1.234, 10.0)) == "1.23 / 10.00"
    with pytest.raises(ValueError, match="no values"):
        MedianP95.of([])


def test_percentiles_have_names_and_none_come_from_nothing() -> None:
    assert percentiles(list(range(101))) == {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}
    assert percentiles([]) == {}
