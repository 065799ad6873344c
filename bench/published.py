"""Published figures of SkipClick (Schön et al., arXiv 2501.07960), each with its source.

The list is not complete: it holds what the authors' README, the abstract and Table 1 of the paper report. Figures of
other methods are missing.
"""

from __future__ import annotations

from dataclasses import dataclass

README = "the authors' README, github.com/Schorob/skipclick"
ABSTRACT = "abstract of arXiv 2501.07960"
TABLE_1 = "Table 1 of arXiv 2501.07960"

ABLATION = ("Table 1: Baseline", "Table 1: + Frozen Backbone", "Table 1: + Intermediate Features")
"""The rows of Table 1 before the last, which is SkipClick itself."""

SKIPCLICK = "SkipClick"
SKIPCLICK_DINOV3 = "SkipClick (DINOv3)"


@dataclass(frozen=True)
class Published:
    """One published figure."""

    method: str
    dataset: str
    """As `skipclick.evaluation.datasets` names it. Of WSESeg the unweighted mean over its ten classes."""
    metric: str
    """Such as "NoC@90"."""
    value: float
    source: str


PUBLISHED = (
    Published(ABLATION[0], "GrabCut", "NoC@90", 1.74, README),
    Published(ABLATION[1], "GrabCut", "NoC@90", 1.72, README),
    Published(ABLATION[2], "GrabCut", "NoC@90", 1.40, README),
    Published(ABLATION[0], "WSESeg", "NoC@90", 12.031, README),
    Published(ABLATION[1], "WSESeg", "NoC@90", 11.951, README),
    Published(ABLATION[2], "WSESeg", "NoC@90", 10.344, README),
    Published(SKIPCLICK, "WSESeg", "NoC@85", 6.494, TABLE_1),
    Published(SKIPCLICK, "WSESeg", "NoC@90", 9.163, README),
    Published(SKIPCLICK, "GrabCut", "NoC@90", 1.44, README),
    Published(SKIPCLICK, "Berkeley", "NoC@90", 2.45, README),
    Published(SKIPCLICK, "SBD", "NoC@90", 6.18, README),
    Published(SKIPCLICK, "DAVIS", "NoC@90", 4.94, README),
    Published(SKIPCLICK, "HQSeg-44k", "NoC@90", 6.00, ABSTRACT),
    Published(SKIPCLICK, "HQSeg-44k", "NoC@95", 9.89, ABSTRACT),
    Published(SKIPCLICK_DINOV3, "GrabCut", "NoC@90", 1.42, README),
    Published(SKIPCLICK_DINOV3, "Berkeley", "NoC@90", 2.45, README),
    Published(SKIPCLICK_DINOV3, "SBD", "NoC@90", 6.16, README),
    Published(SKIPCLICK_DINOV3, "DAVIS", "NoC@90", 4.79, README),
    Published(SKIPCLICK_DINOV3, "HQSeg-44k", "NoC@90", 5.77, README),
)
