"""Protects the folders of HQSeg-44k's training part."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support.drawn_pictures import blank, save
from train.sources import open_sources
from train.sources.hqseg import HQSEG_TRAINING_PARTS


def test_all_parts_are_read_each_as_its_kind(tmp_path: Path) -> None:
    mask = blank()
    mask[1:3] = 255
    mask[3, 3] = 9  # soft edges count, as in the released loader
    for number, (images, masks) in enumerate(HQSEG_TRAINING_PARTS.values()):
        save(tmp_path / images / f"x{number}.jpg")
        save(tmp_path / masks / f"x{number}.png", mask)
    (source,) = open_sources([str(tmp_path)], "all").parts
    assert source.kind == "hqseg-44k"
    assert {photo.kind for photo in source.photos} == set(HQSEG_TRAINING_PARTS)
    assert len(source.photos) == len(HQSEG_TRAINING_PARTS)
    _, scene = next(photo for photo in source.photos if photo.name == "MSRA_10K/x6").load()
    (part,) = scene.objects
    np.testing.assert_array_equal(scene.mask(part), mask > 0)
    (left,) = open_sources([str(tmp_path)], "all", exclude_kinds=set(HQSEG_TRAINING_PARTS) - {"ecssd"}).parts
    assert [photo.kind for photo in left.photos] == ["ecssd"]


def test_parts_may_be_missing(tmp_path: Path) -> None:
    save(tmp_path / "cascade_psp/DUTS-TR/a.jpg")
    save(tmp_path / "cascade_psp/DUTS-TR/a.png", blank())
    assert len(open_sources([str(tmp_path)], "all")) == 1
