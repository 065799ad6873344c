"""Published figures: Tables 1 to 6 and the response times of SkipClick (Schön et al., arXiv 2501.07960).

Figures stand as they are printed there. NoC@k is the mean number of clicks, at most 20, until the IoU reaches k %, and
≥20@k how many objects never reach it. A cell with two figures is NoC@85 / NoC@90.
"""

from __future__ import annotations

from dataclasses import dataclass

PAPER = "arXiv 2501.07960"
README = "the authors' README, github.com/Schorob/skipclick"
SEGNEXT = "arXiv 2404.00741"

WSESEG_CLASSES = {
    "Bobsleigh": "flickr_bobsleighs",
    "Curling stone": "flickr_curling_stone",
    "Ski helmet": "flickr_ski_helmets",
    "Snow kite": "flickr_snow_kites",
    "Ski (jump)": "yt_sports",
    "Curling broom": "flickr_curling_brooms",
    "Ski goggles": "flickr_ski_goggles",
    "Ski (misc)": "flickr_ski_misc",
    "Slalom gate poles": "flickr_slalom_obstacles",
    "Snowboards": "flickr_snowboards",
}
"""In the order of Tables 1 and 2; by the paper's name, that of `skipclick.evaluation.datasets`."""


@dataclass(frozen=True)
class Column:
    """What the cells of a column hold."""

    head: str
    dataset: str
    """As `skipclick.evaluation.datasets` names it."""
    metrics: tuple[str, ...]
    category: str | None = None
    """A class of the data set; None: all of it, of WSESeg the unweighted mean over the classes."""


@dataclass(frozen=True)
class Table:
    """One table of the paper."""

    title: str
    source: str
    columns: tuple[Column, ...]
    rows: dict[str, tuple[str, ...]]
    """By method: a cell for each column, as printed."""

    @property
    def datasets(self) -> list[str]:
        """Those that it needs, in order."""
        return list(dict.fromkeys(column.dataset for column in self.columns))

    @property
    def thresholds(self) -> set[int]:
        """In percent."""
        return {int(metric.partition("@")[2]) for column in self.columns for metric in column.metrics}


def read_rows(text: str) -> dict[str, tuple[str, ...]]:
    """Of lines `METHOD: CELL | CELL | ...`."""
    split = (line.partition(": ") for line in text.strip().splitlines())
    return {method: tuple(cell.strip() for cell in cells.split("|")) for method, _, cells in split}


_BOTH = ("NoC@85", "NoC@90")
_WSESEG = (
    *(Column(head, "WSESeg", _BOTH, name) for head, name in WSESEG_CLASSES.items()),
    Column("average", "WSESeg", _BOTH),
)
_SKIPCLICK = (
    "1.52 / 2.08 | 2.61 / 4.09 | 7.27 / 9.31 | 7.36 / 8.93 | 10.23 / 15.51 | 8.56 / 13.16 | 9.06 / 11.50 | "
    "8.01 / 11.49 | 6.10 / 9.62 | 4.22 / 5.94 | 6.494 / 9.163"
)

TABLES = {
    1: Table(
        "Ablation on WSESeg",
        PAPER,
        _WSESEG,
        read_rows(f"""
Baseline: 4.48 / 6.15 | 6.53 / 8.29 | 7.95 / 10.61 | 9.10 / 10.82 | 15.05 / 18.26 | 13.55 / 16.42 | 9.14 / 12.38 | \
12.17 / 15.03 | 9.40 / 13.12 | 7.26 / 9.23 | 9.463 / 12.031
+ Frozen Backbone: 4.01 / 5.64 | 6.11 / 7.98 | 7.55 / 10.54 | 9.32 / 10.77 | 15.02 / 17.96 | 14.02 / 16.62 | \
8.90 / 12.33 | 12.36 / 15.11 | 9.90 / 13.65 | 6.97 / 8.91 | 9.416 / 11.951
+ Intermediate Features: 1.60 / 2.19 | 3.21 / 4.99 | 8.22 / 10.82 | 7.50 / 9.56 | 11.50 / 16.43 | 10.63 / 15.12 | \
8.97 / 12.38 | 9.23 / 13.02 | 7.24 / 12.19 | 4.75 / 6.74 | 7.285 / 10.344
+ Skip Connections: {_SKIPCLICK}"""),
    ),
    2: Table(
        "Other methods on WSESeg",
        PAPER,
        _WSESEG,
        read_rows(f"""
SAM: 3.38 / 5.33 | 3.59 / 6.26 | 9.05 / 12.70 | 5.97 / 8.23 | 16.05 / 18.43 | 13.86 / 17.73 | 10.94 / 14.57 | \
12.15 / 15.41 | 6.65 / 10.46 | 6.68 / 9.49 | 8.83 / 11.86
HQ-SAM: 8.96 / 11.83 | 10.90 / 13.44 | 18.79 / 19.58 | 8.34 / 11.04 | 19.19 / 19.88 | 18.61 / 19.68 | 17.42 / 18.24 | \
17.50 / 18.74 | 13.48 / 17.12 | 11.22 / 13.59 | 14.44 / 16.31
SAM + Schön et al.: 3.51 / 5.45 | 3.64 / 6.39 | 8.15 / 12.41 | 5.98 / 8.21 | 15.23 / 18.42 | 13.13 / 17.85 | \
10.50 / 14.41 | 11.55 / 15.49 | 6.40 / 10.46 | 6.65 / 9.45 | 8.48 / 11.85
HQ-SAM + Schön et al.: 7.28 / 8.24 | 4.58 / 7.71 | 8.87 / 12.85 | 8.12 / 10.42 | 16.58 / 18.98 | 14.22 / 17.56 | \
11.46 / 14.82 | 12.66 / 16.67 | 9.95 / 14.18 | 7.64 / 10.48 | 10.14 / 13.19
SkipClick: {_SKIPCLICK}"""),
    ),
    3: Table(
        "SHSeg",
        PAPER,
        tuple(Column(metric, "SHSeg", (metric,)) for metric in _BOTH),
        read_rows("""
SAM: 3.95 | 7.46
HQ-SAM: 10.60 | 14.29
SAM + Schön et al.: 3.88 | 7.47
HQ-SAM + Schön et al.: 4.70 | 8.45
SkipClick: 1.44 | 2.52"""),
    ),
    4: Table(
        "Ablation on consumer images, NoC@90",
        f"{PAPER}; the row DINOv3: {README}",
        tuple(Column(name, name, ("NoC@90",)) for name in ("GrabCut", "Berkeley", "DAVIS", "SBD", "HQSeg-44k")),
        read_rows("""
Baseline: 1.74 | 3.86 | 6.75 | 8.53 | 7.91
+ Frozen Backbone: 1.72 | 3.73 | 6.40 | 8.51 | 7.98
+ Intermediate Features: 1.40 | 2.84 | 5.05 | 6.65 | 6.40
+ Skip Connections: 1.44 | 2.45 | 4.94 | 6.18 | 6.00
DINOv3: 1.42 | 2.45 | 4.79 | 6.16 | 5.77"""),
    ),
    5: Table(
        "Fine masks",
        f"{PAPER}; rows but SkipClick's are quoted there from {SEGNEXT}",
        tuple(
            Column(f"{name} {metric}", name, (metric,))
            for name in ("DAVIS", "HQSeg-44k")
            for metric in ("NoC@90", "NoC@95", "≥20@95")
        ),
        read_rows("""
RITM: 5.34 | 11.45 | 139 | 10.01 | 14.85 | 910
FocalClick: 4.90 | 10.40 | 123 | 7.03 | 10.74 | 649
SimpleClick: 5.06 | 10.37 | 107 | 7.47 | 12.39 | 797
SAM: 5.14 | 10.74 | 154 | 7.46 | 12.42 | 811
MobileSAM: 5.83 | 12.74 | 196 | 8.70 | 13.83 | 951
HQ-SAM: 5.26 | 10.00 | 136 | 6.49 | 10.79 | 671
SegNext: 5.34 | 12.80 | 163 | 7.18 | 11.52 | 700
InterFormer: 5.45 | 11.88 | 150 | 7.17 | 10.77 | 658
SkipClick: 4.94 | 11.92 | 158 | 6.00 | 9.89 | 608"""),
    ),
    6: Table(
        "Depth of the mixer, mean of WSESeg",
        f"{PAPER}; for depth 4 NoC@85 is 6.494 in Table 1",
        tuple(Column(metric, "WSESeg", (metric,)) for metric in _BOTH),
        read_rows("""
depth 2: 6.962 | 9.587
depth 3: 6.311 | 9.091
depth 4: 6.944 | 9.163
depth 5: 6.689 | 9.310
depth 6: 6.524 | 9.023"""),
    ),
}

ABLATION = dict(
    zip(("baseline", "frozen", "intermediate", "skip"), TABLES[1].rows, strict=True),
)
"""Rows of Tables 1 and 4, by the preset of `skipclick.config` that makes the network."""

RESPONSE_MS = {
    "SkipClick": 6.61,
    "SAM": 15.01,
    "HQ-SAM": 18.83,
    "SAM + Schön et al.": 41.38,
    "HQ-SAM + Schön et al.": 56.13,
}
"""Milliseconds per click on a V100, the encoding of the image excluded (PAPER, section 4)."""
