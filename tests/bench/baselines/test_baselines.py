"""Protects the factory of baselines, the methods without a network, and methods from outside the project."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.data import coffee

from bench.baselines import BASELINES, load_baseline
from bench.baselines.external import ExternalModel
from bench.baselines.random_walker import RandomWalkerModel
from bench.noc import main
from skipclick import Click
from skipclick.evaluation.evaluate import Rules, simulate
from skipclick.metrics import mask_iou

SEEDED = ("grabcut", "random-walker")


def scene() -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """A red ellipse on blue noise, and its target with a rim that does not count."""
    rng = np.random.default_rng(0)
    mask = np.zeros((90, 120), np.uint8)
    cv2.ellipse(mask, (60, 45), (34, 24), 20, 0, 360, (1,), cv2.FILLED)
    image = rng.integers(0, 30, (90, 120, 3), np.uint8)
    image[:, :, 2] += 120
    image[mask == 1] = image[mask == 1][:, ::-1]
    rim = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    return image, np.where(rim == 1, -1, mask).astype(np.int8)


def cup() -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """A photo, skimage's coffee, (400, 600), and the mouth of its cup, outlined by eye."""
    target = cv2.ellipse(np.zeros((400, 600), np.uint8), (290, 106), (117, 87), 0, 0, 360, (1,), cv2.FILLED)
    return coffee(), target.astype(np.int8)


@pytest.mark.parametrize("name", SEEDED)
def test_a_plain_object_is_cut_out_and_the_same_each_time(name: str) -> None:
    image, target = scene()
    model = load_baseline(name)
    ious, clicks, _ = simulate(model, model.encode(image), target, Rules(num_clicks=5))
    assert max(ious) > 0.9
    again = load_baseline(name)
    assert simulate(again, again.encode(image), target, Rules(num_clicks=5))[:2] == (ious, clicks)


@pytest.mark.parametrize("name", SEEDED)
def test_clicks_improve_the_mask_on_a_photo(name: str) -> None:
    image, target = cup()
    model = load_baseline(name)
    ious, _, _ = simulate(model, model.encode(image), target, Rules(num_clicks=8))
    assert max(ious) > max(0.8, ious[0])


@pytest.mark.parametrize("name", SEEDED)
def test_a_click_decides_about_its_own_place(name: str) -> None:
    """Also at the border of the photo, which the random walker takes for background elsewhere."""
    image, _ = scene()
    model = load_baseline(name)
    features = model.encode(image)
    previous = None
    clicks: list[Click] = []
    for click in (Click(60, 45), Click(0, 0), Click(119, 50), Click(60, 45, positive=False), Click(5, 60)):
        clicks.append(click)
        previous = model.click(features, clicks, previous)
        assert (previous[int(click.y), int(click.x)] > 0.49) == click.positive


@pytest.mark.parametrize("name", SEEDED)
@pytest.mark.parametrize("size", [(500, 700), (90, 120), (2, 3), (1, 1), (1, 40)])
def test_answers_have_the_size_of_the_photo_whatever_the_clicks(name: str, size: tuple[int, int]) -> None:
    height, width = size
    image = cv2.resize(scene()[0], (width, height)).astype(np.uint8)
    model = load_baseline(name)
    features = model.encode(image)
    corners = [Click(0.0, 0.0), Click(width - 1, height - 1, False), Click(width // 2, height // 2)]
    for clicks in (corners[:1], corners[1:2], corners):
        for previous in (None, np.zeros(size, np.float32), np.ones(size, np.float32)):
            probability = model.click(features, clicks, previous)
            assert probability.shape == size
            assert probability.dtype == np.float32
            assert 0 <= probability.min() <= probability.max() <= 1


@pytest.mark.parametrize("name", SEEDED)
@pytest.mark.filterwarnings("error")
def test_a_photo_of_one_colour_is_no_accident(name: str) -> None:
    model = load_baseline(name)
    features = model.encode(np.full((60, 80, 3), 90, np.uint8))
    clicks = [Click(40, 30), Click(10, 30, positive=False)]
    probability = model.click(features, clicks, model.click(features, clicks[:1], None))
    assert probability[30, 40] > 0.5 > probability[30, 10]


def test_the_random_walker_follows_edges_not_distance() -> None:
    """Two halves, clicks close to the edge between them: the edge is the outline, however far the border is."""
    image = np.full((100, 160, 3), 40, np.uint8)
    image[10:90, 20:90] = 200
    model = RandomWalkerModel()
    mask = model.click(model.encode(image), [Click(85, 50), Click(95, 50, positive=False)], None) > 0.5
    target = np.zeros((100, 160), np.int8)
    target[10:90, 20:90] = 1
    assert mask_iou(mask, target) > 0.97


def test_the_random_walker_needs_no_previous_mask() -> None:
    image, _ = scene()
    model = RandomWalkerModel()
    features = model.encode(image)
    clicks = [Click(60, 45), Click(20, 20, positive=False)]
    answers = [model.click(features, clicks, previous) for previous in (None, np.ones((90, 120), np.float32))]
    np.testing.assert_array_equal(*answers)


class Nearest:
    """A method as users write one: a pixel belongs to the sign of its nearest click. Answers are booleans."""

    def encode(self, image: NDArray[np.uint8]) -> tuple[int, int]:
        return image.shape[0], image.shape[1]

    def click(self, features: tuple[int, int], clicks: Sequence[Click], previous: Any) -> NDArray[Any]:
        rows, cols = np.indices(features)
        distances = np.stack([np.hypot(cols - click.x, rows - click.y) for click in clicks])
        return np.array([click.positive for click in clicks])[distances.argmin(axis=0)]


class Named(Nearest):
    version = "nearest click 1.0"


class Reduced(Nearest):
    def click(self, features: tuple[int, int], clicks: Sequence[Click], previous: Any) -> NDArray[Any]:
        return super().click(features, clicks, previous)[::2]


class Undefined(Nearest):
    def click(self, features: tuple[int, int], clicks: Sequence[Click], previous: Any) -> NDArray[Any]:
        return np.full(features, np.nan)


class Speechless:
    def encode(self, image: NDArray[np.uint8]) -> None:
        """Nothing."""


def test_a_method_of_ones_own_is_measured() -> None:
    image, target = scene()
    model = load_baseline(f"{__name__}:Nearest")
    ious, clicks, _ = simulate(model, model.encode(image), target, Rules(num_clicks=20))
    assert max(ious) > 0.8 > ious[0]
    assert not all(click.positive for click in clicks)
    assert model.version == f"{__name__}:Nearest"
    assert load_baseline(f"{__name__}:Named").version == "nearest click 1.0"


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Reduced(), r"array of shape \(45, 120\); return probabilities of shape \(90, 120\)"),
        (Undefined(), "answered a click with NaN"),
    ],
)
def test_wrong_answers_of_a_method_are_not_measured(method: Nearest, message: str) -> None:
    model = ExternalModel(method, "mine")
    with pytest.raises(ValueError, match=message):
        model.click(model.encode(scene()[0]), [Click(60, 45)], None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("graphcut", "unknown model 'graphcut': give 'bundled', a checkpoint file, or one of grabcut, random-walker"),
        ("", "unknown model ''"),
        ("sam", "sam:WEIGHTS"),
        ("sam:", "sam:WEIGHTS"),
        (":factory", "unknown model ':factory'"),
        ("no_such_module:factory", "cannot import 'no_such_module'"),
        ("bench.baselines:no_such_factory", "has no callable 'no_such_factory'"),
        ("bench.baselines:BASELINES", "has no callable 'BASELINES'"),
        (f"{__name__}:Speechless", "a Speechless has no click;"),
    ],
)
def test_what_is_wrong_with_a_name_is_said_in_one_line(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".+") as error:
        load_baseline(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "package", "module"),
    [
        ("random-walker", "skimage.color", "random_walker"),
        ("sam:weights", "transformers", "sam"),
        ("sam2:weights", "transformers", "sam"),
        ("sam-hq:weights", "transformers", "sam"),
    ],
)
def test_an_absent_package_is_one_line_that_says_how_to_install(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"bench.baselines.{module}", raising=False)
    with pytest.raises(ValueError, match=f"needs the Python package {package.partition('.')[0]}, ") as error:
        load_baseline(name)
    assert "pip install -r requirements/bench.txt" in str(error.value)
    assert load_baseline("grabcut").version.startswith("OpenCV ")


def test_the_list_names_every_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    shown = capsys.readouterr().out
    for name in ("grabcut", "random-walker", "sam:WEIGHTS", "sam2:WEIGHTS", "sam-hq:WEIGHTS", "MODULE:FACTORY"):
        assert f"  {name}: {BASELINES[name]}" in shown


def test_what_the_line_says_to_install_is_what_is_missing() -> None:
    lines = (Path(__file__).parents[3] / "requirements" / "bench.txt").read_text().splitlines()
    assert {"scikit-image", "transformers"} <= {line.partition("==")[0] for line in lines}
