"""Published figures of SkipClick (Schön et al., arXiv 2501.07960), as far as they were at hand, and its tables.

Each figure names its source. The tables of the paper themselves were not at hand when this was written: of Table 1 the
rows and one column are known from the authors' README, of the others nothing. Which data sets Tables 2, 3 and 5 hold is
our reading of the abstract; figures of rivals are missing altogether.
"""

from __future__ import annotations

from dataclasses import dataclass

README = "the authors' README, github.com/Schorob/skipclick"
ABSTRACT = "abstract of arXiv 2501.07960"
TABLE_1 = "Table 1 of arXiv 2501.07960"

ABLATION = ("Baseline", "+ Frozen Backbone", "+ Intermediate Features", "+ Skip Connections")
"""Rows of Table 1; the last is SkipClick."""

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
    Published(ABLATION[3], "GrabCut", "NoC@90", 1.44, README),
    Published(ABLATION[0], "WSESeg", "NoC@90", 12.031, README),
    Published(ABLATION[1], "WSESeg", "NoC@90", 11.951, README),
    Published(ABLATION[2], "WSESeg", "NoC@90", 10.344, README),
    Published(ABLATION[3], "WSESeg", "NoC@90", 9.163, README),
    Published(ABLATION[3], "WSESeg", "NoC@85", 6.494, TABLE_1),
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


@dataclass(frozen=True)
class PaperTable:
    """What one of the paper's tables shows of each model."""

    title: str
    methods: tuple[str, ...]
    """Of `PUBLISHED`, in the order of its rows."""
    datasets: tuple[str, ...]
    """Empty: all that were measured."""
    metrics: tuple[str, ...]
    rows: tuple[str, ...] = ()
    """Names of the rows where the table prescribes its models."""
    by_class: bool = False
    """A column for each class of the data set, and their mean."""


TABLES = {
    1: PaperTable("Ablation", ABLATION, (), ("NoC@85", "NoC@90"), rows=ABLATION),
    2: PaperTable("Winter sports equipment, by class", (SKIPCLICK,), ("WSESeg",), ("NoC@85",), by_class=True),
    3: PaperTable("Skiers", (SKIPCLICK,), ("SHSeg",), ("NoC@85", "NoC@90")),
    5: PaperTable(
        "High quality masks",
        (SKIPCLICK, SKIPCLICK_DINOV3),
        ("HQSeg-44k", "DAVIS"),
        ("mIoU@5", "NoC@90", "NoC@95"),
    ),
}
