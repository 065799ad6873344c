"""Protects the one meaning of annotations: a project learnt from webhooks, from Label Studio's REST interface, and from
its export has the same objects, bit for bit."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend.finetune.store import AnnotationStore
from backend.label_studio.annotations import Event, read_task
from backend.label_studio.labeling_config import parse_labeling_config
from skipclick.evaluation.datasets import open_dataset
from tests.support.annotation_bodies import CONFIG, HEIGHT, WIDTH, annotation, drawn, region, saved
from train.sources import open_sources


def regions(*corners: int, parents: str = "", label: str = "Ski") -> list[dict[str, Any]]:
    """A square at each corner, with the ids a, b, c, ...; of each the parent, "-" for none."""
    return [
        region(name, drawn(corner, corner, corner + 4, corner + 4), label, **({} if up == "-" else {"parentID": up}))
        for name, corner, up in zip("abcdef", corners, (parents + "------"), strict=False)
    ]


def broken(one: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return copy.deepcopy(one) | changes


NESTED = regions(0, 5, 10, 15, parents="-ab-")
OTHER_LABEL = [*regions(0), region("b", drawn(1, 1, 3, 3), "Helmet", parentID="a")]
CIRCLE = regions(0, 5, 10, 15, 20, parents="bcba")
EMPTY = region("z", drawn(0, 0, 0, 0))
CUT = broken(regions(3)[0], value={"format": "rle", "rle": [1, 2, 3], "brushlabels": ["Ski"]})
KEYPOINT = {
    "id": "k",
    "type": "keypointlabels",
    "to_name": "image",
    "value": {"x": 1, "y": 1, "keypointlabels": ["Ski"]},
}
COPY = broken(regions(0)[0], type="keypointlabels")

CASES: dict[str, list[dict[str, Any]]] = {
    "nested": [annotation(1, 1, NESTED)],
    "nested under another label": [annotation(1, 1, OTHER_LABEL)],
    "circle and a missing parent": [annotation(1, 1, [*CIRCLE, region("g", drawn(25, 25, 28, 28), parentID="gone")])],
    "the later of several": [annotation(1, 1, regions(0), 10), annotation(2, 1, regions(5, 9), 20)],
    "the earlier is the ground truth": [
        annotation(1, 1, regions(0), 10, ground_truth=True),
        annotation(2, 1, regions(5, 9), 20),
    ],
    "the same moment": [annotation(2, 1, regions(0)), annotation(1, 1, regions(5))],
    "another time zone": [
        annotation(1, 1, regions(0), updated_at="2026-11-20T12:00:00+00:00"),
        annotation(2, 1, regions(5), updated_at="2026-11-20T13:00:00+05:00"),
    ],
    "no moment": [annotation(1, 1, regions(0), updated_at=None), annotation(2, 1, regions(5), updated_at="yesterday")],
    "the later was skipped": [annotation(1, 1, regions(0), 10), annotation(2, 1, regions(5), 20, was_cancelled=True)],
    "the later has no region": [annotation(1, 1, regions(0), 10), annotation(2, 1, [KEYPOINT], 20)],
    "the later has no mask": [annotation(1, 1, regions(0), 10), annotation(2, 1, [EMPTY, CUT], 20)],
    "the ground truth was skipped": [
        annotation(1, 1, regions(0), 10),
        annotation(2, 1, regions(5), 20, was_cancelled=True, ground_truth=True),
    ],
    "some masks are damaged": [annotation(1, 1, [*regions(0, 5), EMPTY, CUT | {"id": "y"}])],
    "a piece is damaged": [annotation(1, 1, [*regions(0, 5), CUT | {"id": "y", "parentID": "a"}])],
    "copies and clicks": [annotation(1, 1, [*regions(0), COPY, KEYPOINT])],
    "ids repeated": [annotation(1, 1, [*regions(0), *regions(5), *regions(0)])],
    "ids missing": [annotation(1, 1, [one | {"id": None} for one in regions(0, 5, 9)])],
    "ids are numbers": [annotation(1, 1, [one | {"id": 0, "parentID": 0} for one in regions(0, 5, 9)])],
    "polygons beside": [annotation(1, 1, [*regions(0), {"id": "p", "type": "polygonlabels", "value": {"points": []}}])],
}


def task_of(annotations: list[dict[str, Any]]) -> dict[str, Any]:
    """As the REST interface and the export have it, with a draft and a prediction that do not count."""
    return {
        "id": 1,
        "data": {"image": "/data/upload/1/1.png"},
        "annotations": annotations,
        "drafts": [{"id": 9, "task": 1, "result": regions(12), "updated_at": "2026-12-01T00:00:00Z"}],
        "predictions": [{"id": 9, "result": regions(14), "score": 0.9}],
    }


def in_store(store: AnnotationStore) -> set[bytes]:
    return {np.packbits(one.read_mask()).tobytes() for one in store.objects(1)}


@pytest.mark.parametrize("name", CASES)
def test_events_rest_and_export_have_the_same_objects(tmp_path: Path, name: str) -> None:
    annotations = CASES[name]
    from_events = AnnotationStore(tmp_path / "events")
    for one in annotations:
        from_events.receive(1, json.dumps(saved(one)).encode())
    from_events.apply_pending()
    from_rest = AnnotationStore(tmp_path / "rest")
    task = json.loads(json.dumps(task_of(annotations)))
    from_rest.reconcile(1, Event(saved=read_task(task, parse_labeling_config(CONFIG))), from_rest.marker())
    (tmp_path / "images").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "1.png")
    (tmp_path / "export.json").write_text(json.dumps([task]))
    (sample,) = open_dataset("label-studio", tmp_path)
    export = {np.packbits(target == 1).tobytes() for target in sample.targets.values()}
    assert len(export) == len(sample.targets) == len(from_events.objects(1)) > 0
    assert in_store(from_events) == in_store(from_rest) == export
    (source,) = open_sources([f"label-studio:{tmp_path}"], "all").parts
    _, scene = source.photos[0].load()
    assert {np.packbits(scene.mask(part)).tobytes() for part in scene.objects} == export


def test_where_no_annotation_counts_there_is_no_object(tmp_path: Path) -> None:
    annotations = [annotation(1, 1, regions(0), was_cancelled=True), annotation(2, 1, [KEYPOINT])]
    store = AnnotationStore(tmp_path / "events")
    for one in annotations:
        store.receive(1, json.dumps(saved(one)).encode())
    store.apply_pending()
    assert store.objects(1) == []
    (tmp_path / "export.json").write_text(json.dumps([task_of(annotations)]))
    with pytest.raises(ValueError, match="no annotation with a mask"):
        open_dataset("label-studio", tmp_path)
