"""Protects CVAT's agent door: the real agent gets the masks of the core, and no picture stays in its memory."""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cvat_sdk.masks import decode_mask
from numpy.typing import NDArray
from PIL import Image

import backend.cvat_agent
from backend.annotator import Annotator
from backend.cvat.protocol import InteractionError
from backend.cvat_agent import Interactor, Picture
from backend.images.loader import build_images
from backend.label_studio.auth import build_auth
from backend.settings import Settings
from tests.support.fake_cvat import FUNCTION, TASK, fake_cvat
from tests.support.fakes import DiscPredictor
from tests.support.server_process import environment

PHOTO = Path(__file__).parents[2] / "skipclick" / "evaluation" / "check_set" / "images" / "coffee.jpg"
CONTEXT: Any = None
SETTINGS = Settings()


def prompts(positive: list[Any], negative: list[Any] | None = None, box: Any = None) -> Any:
    return SimpleNamespace(pos_points=positive, neg_points=negative or [], bounding_box=box)


def mask(shapes: list[Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    (shape,) = shapes
    assert (shape.type, shape.attributes) == ("mask", [])
    return decode_mask(list(map(int, shape.points)), image_width=size[1], image_height=size[0])


@pytest.fixture
def interactor(make_annotator: Callable[..., Annotator]) -> Interactor:
    """With room for the features of ten pictures."""
    images = build_images(SETTINGS, build_auth(SETTINGS))
    return Interactor(SETTINGS, annotator=make_annotator(images=images, feature_bytes=10_000))


def noise(seed: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (96, 128, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def test_the_real_agent_answers_three_clicks_with_one_look_at_the_frame(tmp_path: Path) -> None:
    """The masks are those of the function in a process of its own, which has seen nothing before."""
    clicks = [([[290.5, 150]], []), ([[290.5, 150]], [[60, 60]]), ([[290.5, 150], [250, 60]], [[60, 60]])]
    with Image.open(PHOTO) as image:
        size = image.height, image.width
        expected = subprocess_masks(tmp_path, clicks)
    with fake_cvat() as cvat:
        cvat.frame, cvat.size = PHOTO.read_bytes(), size
        for positive, negative in clicks:
            cvat.click(positive, negative)
        command = [str(Path(sys.executable).with_name("cvat-cli")), "--server-host", cvat.url, "function", "run-agent"]
        command += [str(FUNCTION), "--function-file", backend.cvat_agent.__file__, "--burst"]
        root = str(Path(backend.__file__).parents[1])
        settings = environment(tmp_path, PYTHONPATH=root, CVAT_ACCESS_TOKEN="secret")
        done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=250, check=False)
        assert done.returncode == 0, done.stderr
        assert cvat.failed == []
        found = [
            decode_mask(list(map(int, answer["shapes"][0]["points"])), image_width=size[1], image_height=size[0])
            for answer in cvat.completed
        ]
        assert cvat.seen.count(f"/api/tasks/{TASK}/data/") == 1
    assert [one.tolist() for one in found] == [one.tolist() for one in expected]
    assert all(0.001 < one.mean() < 0.9 for one in found)


def subprocess_masks(folder: Path, clicks: list[Any]) -> list[NDArray[np.bool_]]:
    """The masks that `create()` gives for each of the clicks on the photo, asked alone and in the other order."""
    settings = Settings.from_environment(environment(folder) | {"FINETUNE": "off"})
    interactor = Interactor(settings)
    with Image.open(PHOTO) as image:
        picture = interactor.preprocess_image(CONTEXT, image)
    found = [mask(interactor.detect(CONTEXT, picture, prompts(*one)), picture.size) for one in reversed(clicks)]
    interactor._annotator.close()
    return found[::-1]


def test_three_clicks_encode_once(interactor: Interactor, predictor: DiscPredictor) -> None:
    picture = interactor.preprocess_image(CONTEXT, noise(0))
    for positive, negative in ([(40, 50)], []), ([(40, 50)], [(60, 50)]), ([(40, 50), (90, 60)], [(60, 50)]):
        found = mask(interactor.detect(CONTEXT, picture, prompts(positive, negative)), picture.size)
        assert all(found[y, x] for x, y in positive)
        assert not any(found[y, x] for x, y in negative)
    assert predictor.encoded == [(96, 128)]


def test_a_thousand_pictures_stay_within_the_budget(interactor: Interactor, predictor: DiscPredictor) -> None:
    """The agent keeps all handles. The first picture is looked at again when it is clicked on again."""
    tracemalloc.start()
    pictures = [interactor.preprocess_image(CONTEXT, noise(0))]
    before, _ = tracemalloc.get_traced_memory()
    pictures += [interactor.preprocess_image(CONTEXT, noise(seed)) for seed in range(1, 1000)]
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    files = sum(picture.path.stat().st_size for picture in pictures)
    assert files > 10_000_000
    assert after - before < files / 4
    assert interactor._annotator.feature_stats()["features"].bytes <= 10_000
    assert len(predictor.encoded) == 1000
    assert mask(interactor.detect(CONTEXT, pictures[0], prompts([(40, 50)])), (96, 128))[50, 40]
    assert len(predictor.encoded) == 1001


def test_a_picture_s_file_goes_with_its_handle(interactor: Interactor) -> None:
    picture: Picture | None = interactor.preprocess_image(CONTEXT, noise(0))
    assert picture is not None
    path = picture.path
    assert path.exists()
    del picture
    gc.collect()
    assert not path.exists()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16", "CMYK"])
def test_pictures_of_all_modes(interactor: Interactor, mode: str) -> None:
    image = Image.new(mode, (40, 30)) if mode == "I;16" else noise(0).resize((40, 30)).convert(mode)
    picture = interactor.preprocess_image(CONTEXT, image)
    assert mask(interactor.detect(CONTEXT, picture, prompts([(20, 15)])), (30, 40))[15, 20]


def test_boxes_and_what_gives_no_mask(interactor: Interactor) -> None:
    picture = interactor.preprocess_image(CONTEXT, noise(0))
    found = mask(interactor.detect(CONTEXT, picture, prompts([], box=((10, 20), (60, 70)))), picture.size)
    assert found[45, 35]
    assert interactor.detect(CONTEXT, picture, prompts([], [(3, 3)])) == []
    with pytest.raises(InteractionError, match="REQUEST_MAX_CLICKS=100"):
        interactor.detect(CONTEXT, picture, prompts([(1, 1)] * 101))


def test_wrong_settings_end_the_agent_at_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICE", "abacus")
    with pytest.raises(ValueError, match="DEVICE=abacus is not one of"):
        backend.cvat_agent.create()


def test_a_project_s_head_may_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.cvat_agent.build_service", lambda settings: pytest.fail(settings.finetune))
    for project, expected in ((None, "off"), (12, "follow")):
        with pytest.raises(pytest.fail.Exception, match=expected):
            backend.cvat_agent.create(project).preprocess_image(CONTEXT, noise(0))
