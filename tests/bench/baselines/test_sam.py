"""Protects the SAM adapters: a session through them is the one that transformers' own processor and model give."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bench.baselines import load_baseline
from bench.baselines.sam import FAMILIES, click_inputs
from skipclick import Click
from skipclick.evaluation.evaluate import Rules, simulate
from tests.support.sam_models import SIDE, tiny

FILLING = ("sam2", "sam3", "edgetam")  # stretch the photo to the square; the others pad it
CLICKS = [Click(60, 20), Click(10, 40, positive=False), Click(80, 45), Click(89, 0, positive=False)]
PHOTO = np.random.default_rng(0).integers(0, 255, (50, 90, 3), np.uint8)


@dataclass(frozen=True)
class Weights:
    """A tiny model with random weights: as an object, and as saved."""

    family: str
    folder: Path
    model: Any
    processor: Any


@pytest.fixture(scope="module", params=FAMILIES)
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    family = request.param
    folder = tmp_path_factory.mktemp(family)
    with torch.random.fork_rng():
        torch.manual_seed({"sam3": 2, "edgetam": 4}.get(family, 1))
        model, processor = tiny(family)
        for name, parameter in model.named_parameters():  # as initialised, the answers hardly depend on anything
            if parameter.ndim > 1 and not (family == "edgetam" and "backbone" in name):
                # logits of some pixels have to reach the limit of what is fed back
                gain = 150 if family == "edgetam" and "mlps" in name and "proj_out" in name else 1.5
                torch.nn.init.normal_(parameter, std=gain / math.sqrt(parameter[0].numel()))
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return Weights(family, folder, model, processor)


LOGIT_LIMIT = {"sam": math.inf, "sam-hq": math.inf} | dict.fromkeys(FILLING, 32.0)


@torch.no_grad()
def session_by_the_book(
    weights: Weights, clicks: list[Click], *, feedback: bool = True, limit: float | None = None
) -> list[NDArray[np.float32]]:
    """The mask after each click by transformers' own calls, with nothing kept but the logits that are fed back."""
    limit = limit or LOGIT_LIMIT[weights.family]
    masks = []
    previous = None
    for count in range(1, len(clicks) + 1):
        points: Any = [[[click.x, click.y] for click in clicks[:count]]]
        labels: Any = [[int(click.positive) for click in clicks[:count]]]
        if weights.family in FILLING:  # one more level of lists, for the objects of a photo
            points, labels = [points], [labels]
        inputs = weights.processor(images=PHOTO, input_points=points, input_labels=labels, return_tensors="pt")
        outputs = weights.model(
            pixel_values=inputs["pixel_values"],
            input_points=inputs["input_points"].float(),
            input_labels=inputs["input_labels"],
            input_masks=previous,
            multimask_output=count == 1,
        )
        logits = outputs.pred_masks[:, 0, outputs.iou_scores[0, 0].argmax(), None]
        previous = logits.clamp(-limit, limit) if feedback else None
        sizes = {name: inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs}
        masks.append(weights.processor.post_process_masks([logits], **sizes)[0][0, 0].numpy().astype(np.float32))
    return masks


def session(weights: Weights, clicks: list[Click]) -> list[NDArray[np.float32]]:
    baseline = load_baseline(f"{weights.family}:{weights.folder}")
    features = baseline.encode(PHOTO)
    masks: list[NDArray[np.float32]] = []
    for count in range(1, len(clicks) + 1):
        masks.append(baseline.click(features, clicks[:count], masks[-1] if masks else None))
    return masks


def test_without_mask_feedback_an_answer_is_of_the_clicks_alone(weights: Weights) -> None:
    """And says so, as both ways are used in publications."""
    baseline = load_baseline(f"{weights.family}:{weights.folder}", mask_feedback=False)
    features = baseline.encode(PHOTO)
    masks = [baseline.click(features, CLICKS[: count + 1], None) for count in range(len(CLICKS))]
    assert not any(differ(masks, session_by_the_book(weights, CLICKS, feedback=False)))
    assert ", clicks alone, transformers" in baseline.version


def differ(masks: list[NDArray[np.float32]], others: list[NDArray[np.float32]]) -> list[bool]:
    return [bool((mask != other).any()) for mask, other in zip(masks, others, strict=True)]


def test_a_session_is_the_one_of_transformers_own_calls(weights: Weights) -> None:
    masks = session(weights, CLICKS)
    for mask, expected in zip(masks, session_by_the_book(weights, CLICKS), strict=True):
        assert mask.shape == (50, 90)
        assert mask.dtype == np.float32
        assert 0.1 < mask.mean() < 0.9
        np.testing.assert_array_equal(mask, expected)


def test_the_logits_of_the_click_before_are_used(weights: Weights) -> None:
    without = session_by_the_book(weights, CLICKS, feedback=False)
    assert differ(session(weights, CLICKS), without) == [False, True, True, True]


def test_sam2_and_its_descendants_limit_what_is_fed_back(weights: Weights) -> None:
    unlimited = session_by_the_book(weights, CLICKS, limit=math.inf)
    assert any(differ(session(weights, CLICKS), unlimited)) == (weights.family in FILLING)


def test_an_answer_depends_on_photo_and_clicks_alone(weights: Weights) -> None:
    masks = session(weights, CLICKS)
    baseline = load_baseline(f"{weights.family}:{weights.folder}")
    features = baseline.encode(PHOTO)
    other = [CLICKS[0], Click(3, 3), Click(40, 30, positive=False)]
    for count in (1, 2, 3):  # two objects of one photo in turn, whose first clicks are the same
        np.testing.assert_array_equal(baseline.click(features, CLICKS[:count], None), masks[count - 1])
        baseline.click(features, other[:count], None)
    np.testing.assert_array_equal(
        baseline.click(baseline.encode(PHOTO), CLICKS, None), masks[-1]
    )  # all clicks replayed
    np.testing.assert_array_equal(baseline.click(features, CLICKS[:1], masks[2]), masks[0])  # and back


def test_an_object_keeps_one_map_however_often_it_is_clicked(weights: Weights) -> None:
    baseline = load_baseline(f"{weights.family}:{weights.folder}")
    features = baseline.encode(PHOTO)
    for count in range(1, len(CLICKS) + 1):
        baseline.click(features, CLICKS[:count], None)
    assert list(features.logits) == [tuple(CLICKS)]


def test_points_are_where_the_processor_puts_them(weights: Weights) -> None:
    """At the photo's corners and in between, for a photo that is not square."""
    features = load_baseline(f"{weights.family}:{weights.folder}").encode(PHOTO)
    assert features.image_size == (50, 90)
    assert features.input_size == ((SIDE, SIDE) if weights.family in FILLING else (71, SIDE))
    for click in (Click(0, 0), Click(89, 49), Click(12.5, 40)):
        points: Any = [[[click.x, click.y]]]
        points = [points] if weights.family in FILLING else points
        expected = weights.processor(images=PHOTO, input_points=points, return_tensors="pt")["input_points"]
        found = click_inputs([click], features.image_size, features.input_size, torch.device("cpu"))["input_points"]
        torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-4)


def test_the_benchmark_runs_them(weights: Weights) -> None:
    target = np.zeros((50, 90), np.int8)
    target[10:40, 20:60] = 1
    baseline = load_baseline(f"{weights.family}:{weights.folder}")
    runs = [simulate(baseline, baseline.encode(PHOTO), target, Rules(num_clicks=5)) for _ in range(2)]
    assert len(runs[0][0]) == 5
    assert runs[0][:2] == runs[1][:2]
    assert baseline.version.startswith(f"{weights.family}:{weights.folder}, transformers ")


def test_weights_of_another_family_are_refused(weights: Weights) -> None:
    for family in FAMILIES:
        if family != weights.family:
            with pytest.raises(ValueError, match=f"not one of the family '{family}'"):
                load_baseline(f"{family}:{weights.folder}")


def test_a_folder_that_is_not_there_is_no_name_on_the_hub() -> None:
    with pytest.raises(ValueError, match="there is no such folder"):
        load_baseline("sam:/nowhere/sam-vit-base")


def copied(weights: Weights, folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_bytes((weights.folder / name).read_bytes())
    return folder


SAVED = ("config.json", "model.safetensors", "processor_config.json")


@pytest.mark.parametrize("lacking", SAVED)
def test_what_is_not_there_is_said_in_one_line(weights: Weights, tmp_path: Path, lacking: str) -> None:
    folder = copied(weights, tmp_path, *(name for name in SAVED if name != lacking))
    with pytest.raises(ValueError, match="cannot be loaded from") as error:
        load_baseline(f"{weights.family}:{folder}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damaged", SAVED)
def test_a_damaged_file_is_said_in_one_line(weights: Weights, tmp_path: Path, damaged: str) -> None:
    folder = copied(weights, tmp_path, *SAVED)
    content = (folder / damaged).read_bytes()
    (folder / damaged).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cannot be loaded from") as error:
        load_baseline(f"{weights.family}:{folder}")
    assert "\n" not in str(error.value)


def test_incomplete_weights_are_refused(weights: Weights, tmp_path: Path) -> None:
    """transformers itself would fill them up with random numbers."""
    state = weights.model.state_dict()
    copied(weights, tmp_path, "processor_config.json")
    weights.model.save_pretrained(
        tmp_path, state_dict={key: state[key] for key in state if "iou_prediction_head" not in key}
    )
    with pytest.raises(ValueError, match=r"lacks \d+ of the weights .*iou_prediction_head"):
        load_baseline(f"{weights.family}:{tmp_path}")


@pytest.mark.parametrize("weights", FILLING, indirect=True)
def test_weights_that_were_published_for_videos_are_taken(weights: Weights, tmp_path: Path) -> None:
    """SAM 3's have the configuration of the point tracker inside that of the video model."""
    folder = copied(weights, tmp_path, *SAVED)
    config = json.loads((folder / "config.json").read_text())
    video = config | {"model_type": f"{weights.family}_video"}
    if weights.family == "sam3":
        video = {"model_type": "sam3_video", "tracker_config": config | {"model_type": "sam3_tracker_video"}}
    (folder / "config.json").write_text(json.dumps(video))
    baseline = load_baseline(f"{weights.family}:{folder}")
    np.testing.assert_array_equal(baseline.click(baseline.encode(PHOTO), CLICKS, None), session(weights, CLICKS)[-1])
