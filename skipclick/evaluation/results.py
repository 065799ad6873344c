"""The result file of the NoC benchmark: what was measured, how, and every click; and its summary.

One file holds one command: its rules, and for each model and data set every object's clicks and IoUs. Tables,
comparisons and plots are made from this file alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from skipclick import Click
from skipclick.atomic_io import atomic_write
from skipclick.evaluation.datasets.left_out import LeftOut
from skipclick.evaluation.timing import MedianP95
from skipclick.metrics import mean_iou_at, mean_noc, num_failures

FORMAT = "skipclick-noc-1"


@dataclass(frozen=True)
class ObjectResult:
    """One object's clicks, what each of them led to, and how long it took."""

    image: str
    object_id: int
    category: str | None
    """Name of the object's class, None where the data set has no classes."""
    ious: list[float]
    """After each click, in [0, 1]."""
    clicks: list[Click]
    encode_ms: float
    """Milliseconds of the photo's encoding, which its objects share."""
    click_ms: list[float]
    """Milliseconds of each click; where the objects of a photo are clicked in one batch, a click's share of it."""
    extent: float | None = None
    """Share of the photo's height or width that the object takes up, the larger one; None in older files."""
    crops: int = 0
    """How many crops of the photo were encoded besides it."""


@dataclass(frozen=True)
class SkippedPhoto:
    """A photo or mask that could not be used, and why."""

    name: str
    reason: str
    kind: str | None = None
    """The reason without names and numbers, to count by; None in files of earlier versions."""


@dataclass(frozen=True)
class Measurement:
    """One data set under one seed of the clicks."""

    dataset: str
    folder: str
    resolution: tuple[int, int] | None
    """(H, W) that the network worked at; None for methods without one."""
    seed: int | None
    """Of jittered clicks; None for centre clicks, which draw nothing."""
    objects: list[ObjectResult]
    problems: list[SkippedPhoto]
    left_out: list[LeftOut] = field(default_factory=list)
    """Annotations and records of the data set that were not used, counted by reason."""


@dataclass(frozen=True)
class ModelRun:
    """All that one model did."""

    name: str
    """As given to `--model`."""
    version: str
    """As the model calls itself."""
    checkpoint_sha256: str | None
    """Of the checkpoint file; None for methods without one."""
    device: str
    dtype: str
    measurements: list[Measurement]


@dataclass(frozen=True)
class Results:
    """All that one command measured."""

    command: list[str]
    created: str
    """Time of the start, ISO 8601, UTC."""
    versions: dict[str, str | None]
    """Commit ("-dirty" appended where files were changed), python, torch, numpy, opencv, ..., and the processor."""
    rules: dict[str, Any]
    """`evaluate.Rules.to_dict`: protocol, clicks, num_clicks, target_iou, thresholds in percent, ..."""
    runs: list[ModelRun]


@dataclass(frozen=True)
class ClickSummary:
    """The figures of some objects: a row of the table."""

    num_objects: int
    noc: dict[int, float]
    """Mean number of clicks by IoU threshold in percent."""
    failures: dict[int, int]
    """Objects that needed all clicks (the tables' "≥20@k") by IoU threshold in percent."""
    miou: list[float]
    """Mean IoU in [0, 1] after click 1, 2, ..., as many as the rules allow."""
    encode_ms: MedianP95
    """Over the photos."""
    click_ms: MedianP95
    """Over all clicks."""


def summarise(objects: Sequence[ObjectResult], rules: Mapping[str, Any]) -> ClickSummary:
    """The figures of one data set under the rules of its `Results`; raises ValueError if there are no objects."""
    if not objects:
        raise ValueError("the data set has no objects: nothing to summarise")
    ious = [result.ious for result in objects]
    num_clicks, thresholds = rules["num_clicks"], rules["thresholds"]
    return ClickSummary(
        num_objects=len(objects),
        noc={percent: mean_noc(ious, percent / 100, num_clicks) for percent in thresholds},
        failures={percent: num_failures(ious, percent / 100, num_clicks) for percent in thresholds},
        miou=[mean_iou_at(ious, click) for click in range(1, num_clicks + 1)],
        encode_ms=MedianP95.of({result.image: result.encode_ms for result in objects}.values()),
        click_ms=MedianP95.of(ms for result in objects for ms in result.click_ms),
    )


def write_results(path: Path, results: Results) -> None:
    """Write the file as JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"format": FORMAT} | asdict(results)) + "\n", encoding="utf-8")


def read_results(path: Path) -> Results:
    """What `write_results` wrote; raises ValueError if the file holds something else, OSError if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise ValueError
        content["runs"] = [_read_run(run) for run in content["runs"]]
        return Results(**content)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{path} is not a result file of this benchmark: write one with --output") from None


def _read_run(content: dict[str, Any]) -> ModelRun:
    return ModelRun(**content | {"measurements": [_read_measurement(one) for one in content["measurements"]]})


def _read_measurement(content: dict[str, Any]) -> Measurement:
    resolution = content["resolution"]
    return Measurement(
        **content
        | {
            "resolution": tuple(resolution) if resolution else None,
            "objects": [read_object(one) for one in content["objects"]],
            "problems": [SkippedPhoto(**one) for one in content["problems"]],
            "left_out": [LeftOut(**one) for one in content.get("left_out", ())],
        }
    )


def read_object(content: dict[str, Any]) -> ObjectResult:
    """An object from its `asdict`, as it stands in result files and journals."""
    return ObjectResult(**content | {"clicks": [Click(**click) for click in content["clicks"]]})
