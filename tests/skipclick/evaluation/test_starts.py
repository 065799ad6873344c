"""Protects what corrections are measured from: masks that are wrong by as much as is said, the same in every run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from skipclick import load_checkpoint
from skipclick.evaluation.datasets import Sample
from skipclick.evaluation.evaluate import evaluate, make_rules
from skipclick.evaluation.starts import BEST, WORST, box_of, noisy_mask, read_start
from skipclick.metrics import mask_iou
from skipclick.predictor import ClickRequest, Predictor
from skipclick.simulation import correcting_clicks
from skipclick.zoom import crop_encoder, predict_zoomed, start_zoomed, zoom_request


def disk(radius: int = 40) -> NDArray[np.int8]:
    y, x = np.ogrid[:160, :200]
    return np.asarray((x - 90) ** 2 + (y - 70) ** 2 <= radius**2).astype(np.int8)


@pytest.mark.parametrize("radius", [8, 20, 60])
def test_noise_keeps_to_the_quality_that_is_said_and_to_the_names(radius: int) -> None:
    target = disk(radius)
    masks = [noisy_mask(target, f"photo{number}", 1) for number in range(30)]
    assert all(WORST <= mask_iou(mask, target) <= BEST for mask in masks)
    assert len({mask.tobytes() for mask in masks}) > 20
    np.testing.assert_array_equal(noisy_mask(target, "photo3", 1), masks[3])


def test_a_single_pixel_stays_an_object() -> None:
    assert noisy_mask(disk(0), "photo", 1).any()


def test_a_box_lies_around_the_object_and_its_click_in_its_middle() -> None:
    area, click = box_of(disk())
    assert (area.sum(), click.x, click.y) == (81 * 81, 90, 70)
    assert area[30:111, 50:131].all()


def test_masks_to_start_from_are_found_by_name(tmp_path: Path) -> None:
    mask = disk() == 1
    for name in ("one.png", "two-7.png"):
        cv2.imwrite(str(tmp_path / name), mask.astype(np.uint8) * 255)
    np.testing.assert_array_equal(read_start(tmp_path, "one", 1, mask.shape), mask)
    np.testing.assert_array_equal(read_start(tmp_path, "two", 7, mask.shape), mask)
    with pytest.raises(ValueError, match=r"no mask to start from for object 8 of two: name it two\.png"):
        read_start(tmp_path, "two", 8, mask.shape)
    with pytest.raises(ValueError, match="200 x 160 pixels, but its photo 20 x 10"):
        read_start(tmp_path, "one", 1, (10, 20))
    (tmp_path / "three.png").write_bytes(b"text")
    with pytest.raises(ValueError, match="cannot be decoded"):
        read_start(tmp_path, "three", 1, mask.shape)


@pytest.mark.parametrize("protocol", ["paper", "serve"])
@pytest.mark.parametrize("start", ["box", "noise"])
def test_every_protocol_begins_with_what_it_is_given(protocol: str, start: str) -> None:
    """A box's first click is its middle; a mask's goes where the mask is wrong."""
    target = disk()
    photo = np.full((160, 200, 3), 90, np.uint8)
    photo[target == 1] = 200
    sample = Sample("disk", photo, {1: target}, None)
    predictor = Predictor(load_checkpoint("bundled"), (96, 128))
    rules = make_rules(protocol, "center", 0, [85], False if protocol == "paper" else None, start=start)  # type: ignore[arg-type]
    (found,) = evaluate(predictor, [sample], rules)
    first = found.clicks[0]
    if start == "box":
        assert (first.x, first.y, first.positive) == (90, 70, True)
        assert found.ious[0] >= 0.75  # of the box alone: pi / 4; the mask leaves it nowhere
    else:
        mask = noisy_mask(target, "disk", 1)
        assert mask[int(first.y), int(first.x)] != first.positive == (target[int(first.y), int(first.x)] == 1)
    plain = make_rules(protocol, "center", 0, [85], False if protocol == "paper" else None)  # type: ignore[arg-type]
    assert next(iter(evaluate(predictor, [sample], plain))).ious[0] != found.ious[0]


@pytest.mark.parametrize("zoom", [False, True])
def test_a_negative_first_click_corrects_a_mask_as_the_server_lets_it(tmp_path: Path, zoom: bool) -> None:
    """The server gives a positive click of its own before it, which is none of the annotator's."""
    target = disk()
    mask = target == 1
    mask[40:100, 120:190] = True  # what the annotator takes away first
    cv2.imwrite(str(tmp_path / "disk.png"), mask.astype(np.uint8) * 255)
    photo = np.full((160, 200, 3), 90, np.uint8)
    photo[target == 1] = 200
    predictor = Predictor(load_checkpoint("bundled"), (96, 128))
    rules = make_rules("serve", "center", 0, [85], None, zoom, str(tmp_path))
    (found,) = evaluate(predictor, [Sample("disk", photo, {1: target}, None)], replace(rules, num_clicks=1))
    assert [click.positive for click in found.clicks] == [False]
    kept, taken = correcting_clicks(mask, found.clicks)
    assert kept.positive
    assert taken == found.clicks[0]
    features = predictor.encode(photo)
    if zoom:
        crop = crop_encoder(predictor, photo)
        state, served = start_zoomed(predictor, mask), None
        for clicks in ([kept], [kept, taken]):
            (served,) = predict_zoomed(predictor, [zoom_request(features, clicks, state, crop)])
            state = served.state
    else:
        (first,) = predictor.predict([ClickRequest(features, [kept], predictor.start_state(mask))])
        (served,) = predictor.predict([ClickRequest(features, [kept, taken], first.state)])
    assert served is not None
    assert found.ious == [mask_iou(served.mask.full(), target)]
