"""The paper's response times, beside its Table 2, and those of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.published import PAPER, RESPONSE_MS, TABLES
from skipclick.evaluation.timing import MedianP95


@dataclass(frozen=True)
class ResponseTime:
    """What one system needs from a click to the mask, the photo's encoding excluded."""

    method: str | None
    """Its row in Table 2; None for one that the paper does not have."""
    system: str
    side: int
    """Of the square that its network looks at, in pixels."""
    device: str
    dtype: str
    click: MedianP95
    """Milliseconds."""
    processor_ms: float
    """Median of the process' processor time, which on a busy machine says more than the clock."""


def response_table(times: Sequence[ResponseTime]) -> str:
    """Markdown: the rows of Table 2 with their published response times, ours behind them, and what is missing."""
    lines = [
        "| method | px | device, dtype | response time, ms | p95 | processor time, ms |",
        "|---|---:|---|---:|---:|---:|",
    ]
    methods = list(TABLES[2].rows)
    for method in [*methods, None]:
        if method is not None:
            lines.append(f"| {method}, published | | V100 | {RESPONSE_MS[method]:.2f} | | |")
        lines += [
            f"| {one.system} | {one.side or ''} | {one.device}, {one.dtype} | "
            f"{str(one.click).replace('/', '|')} | {one.processor_ms:.2f} |"
            for one in times
            if one.method == method
        ]
    measured = {one.method for one in times}
    notes = [f"Source: {PAPER}. Its order: {' < '.join(sorted(RESPONSE_MS, key=lambda name: RESPONSE_MS[name]))}."]
    for device in dict.fromkeys(one.device for one in times):
        ours = sorted((one for one in times if one.method and one.device == device), key=lambda one: one.click.median)
        order = " < ".join(f"{one.system} at {one.side} px in {one.dtype}" for one in ours)
        notes += [f"Order on this {device}: {order}."] if ours else []
    if absent := [method for method in methods if method not in measured]:
        notes.append(f"Not measured: {', '.join(absent)}")
    return "### Response time per click (Table 2)\n\n" + "\n".join(lines) + "\n\n" + "\n".join(f"- {n}" for n in notes)
