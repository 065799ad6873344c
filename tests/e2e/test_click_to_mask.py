"""Protects the promise to annotators: a click in the real Label Studio gives a mask, and that mask is stored.

One session of an annotator is played once; each test looks at one side of it. Screenshots and logs go to
e2e-output/.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from backend.label_studio.labeling_config import EXAMPLE

from .browser import Answer, editor
from .label_studio import LabelStudio
from .masks import brush_alpha
from .processes import OUTPUT, Pulse, backend, taking_pulse

pytestmark = pytest.mark.e2e

PHOTO = Path(__file__).parent / "photos" / "coffee.jpg"
WIDTH, HEIGHT = 600, 400

HOTKEY = "2"  # of the smart label: Label Studio numbers the labels from the top

# The object: the cup with its handle, without saucer and spoon; outlined by hand in pixels of the photo.
OUTLINE = [
    (173, 105), (180, 72), (203, 43), (240, 24), (290, 18), (340, 26), (380, 50), (402, 82), (408, 115), (402, 155),
    (390, 195), (367, 235), (330, 266), (320, 275), (290, 284), (258, 280), (245, 292), (230, 306), (214, 309),
    (200, 302), (196, 285), (203, 258), (213, 236), (192, 212), (178, 172),
]  # fmt: skip
IOU_REQUIRED = 0.7  # after three clicks

# The annotator's clicks (x, y, positive): inside the cup, on its outside, and on the saucer, which is not meant.
# None lies below the middle of a mask, where Label Studio draws buttons to accept or reject it.
CLICKS = [(290, 110, True), (250, 240, True), (430, 250, False)]
CLICK_NAMES = ["first-positive", "second-positive", "negative"]


@dataclass(frozen=True, slots=True)
class Session:
    """What an annotator did and what came of it."""

    backend: Mapping[str, Any]  # Label Studio's record of the backend at the end
    predictions_on_open: list[dict[str, Any]]
    answers: list[Answer]
    annotations: list[dict[str, Any]]
    pulse: Pulse
    script_errors: list[str]


@pytest.fixture(scope="module")
def backend_url(studio: LabelStudio, api_key: str) -> Iterator[str]:
    """The backend with the key that lets it read the uploads of `studio`."""
    settings = {"LABEL_STUDIO_URL": studio.url, "LABEL_STUDIO_API_KEY": api_key}
    with backend(OUTPUT / "backend.log", settings | {"MODEL_DIR": str(OUTPUT / "models")}) as url:
        yield url


@pytest.fixture(scope="module")
def session(studio: LabelStudio, backend_url: str) -> Session:
    """Paste the labeling config that the backend offers, upload a photo, click three times, accept, submit."""
    project = studio.create_project("Click to mask", EXAMPLE)
    backend = studio.connect_backend(project, backend_url)
    task = studio.upload(project, PHOTO)
    with editor(studio.url, OUTPUT) as window, taking_pulse(f"{backend_url}/health", timeout=1) as pulse:
        window.open_task(project, task)
        window.picture("1-opened")
        predictions_on_open = studio.predictions(task)
        window.prepare_clicks()
        answers = []
        for number, (x, y, positive) in enumerate(CLICKS):
            answers.append(window.click((x + 0.5) / WIDTH, (y + 0.5) / HEIGHT, HOTKEY, positive))
            window.picture(f"{number + 2}-{CLICK_NAMES[number]}")
        window.accept()
        window.picture("5-accepted")
        window.submit()
        window.picture("6-submitted")
    return Session(
        backend=studio.call("GET", f"/api/ml/{backend['id']}"),
        predictions_on_open=predictions_on_open,
        answers=answers,
        annotations=studio.annotations(task),
        pulse=pulse,
        script_errors=window.script_errors,
    )


def brush_regions(result: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The brush regions among the items of a prediction or an annotation."""
    return [item for item in result if item["type"] == "brushlabels"]


def mask_of(region: dict[str, Any]) -> np.ndarray:
    """A brush region's mask, uint8 (H, W), read by Label Studio's own decoder."""
    assert (region["original_width"], region["original_height"]) == (WIDTH, HEIGHT)
    return brush_alpha(region["value"]["rle"], HEIGHT, WIDTH)


def answered_mask(answer: Answer) -> np.ndarray:
    """The mask that the backend answered to a click, uint8 (H, W)."""
    (region,) = brush_regions(answer.reply["data"]["result"])
    return mask_of(region)


def object_mask() -> np.ndarray:
    """The outlined object, bool (H, W)."""
    canvas = Image.new("1", (WIDTH, HEIGHT))
    ImageDraw.Draw(canvas).polygon(OUTLINE, fill=1)
    return np.array(canvas)


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_the_backend_stays_connected(session: Session) -> None:
    assert session.backend["state"] == "CO", session.backend["error_message"]


def test_opening_the_task_stores_no_prediction(session: Session) -> None:
    assert session.predictions_on_open == []


def test_the_editor_sends_every_click_where_it_was_made(session: Session) -> None:
    """Not the backend's doing, but the other tests mean nothing without it."""
    for num_clicks, answer in enumerate(session.answers, start=1):
        items = answer.request["context"]["result"]
        assert len(items) == num_clicks
        for item, (x, y, positive) in zip(items, CLICKS, strict=False):
            assert item["is_positive"] is positive
            assert item["value"]["x"] / 100 * WIDTH == pytest.approx(x + 0.5, abs=1)
            assert item["value"]["y"] / 100 * HEIGHT == pytest.approx(y + 0.5, abs=1)


def test_every_click_is_answered_with_one_mask_of_the_object(session: Session) -> None:
    for answer in session.answers:
        assert "errors" not in answer.reply
        (region,) = brush_regions(answer.reply["data"]["result"])
        assert (region["from_name"], region["to_name"]) == ("mask", "image")
        assert region["value"]["brushlabels"] == ["Object"]
        assert mask_of(region).any()


def test_the_mask_follows_the_clicks(session: Session) -> None:
    mask = answered_mask(session.answers[-1])
    assert [bool(mask[y, x]) for x, y, _ in CLICKS] == [positive for _, _, positive in CLICKS]


def test_the_mask_is_the_object(session: Session) -> None:
    ious = [intersection_over_union(answered_mask(answer) > 0, object_mask()) for answer in session.answers]
    print("IoU with the outline after each click:", ", ".join(f"{iou:.3f}" for iou in ious))
    assert ious[-1] >= IOU_REQUIRED


def test_the_stored_annotation_is_the_last_mask_bit_for_bit(session: Session) -> None:
    (annotation,) = session.annotations
    (region,) = annotation["result"]
    (answered,) = brush_regions(session.answers[-1].reply["data"]["result"])
    assert region["id"] == answered["id"]
    assert region["value"]["brushlabels"] == ["Object"]
    np.testing.assert_array_equal(mask_of(region), mask_of(answered))


def test_health_is_answered_in_time_throughout(session: Session) -> None:
    """Label Studio allows one second, then shows the backend as broken."""
    seconds = session.pulse.seconds
    print(f"/health: asked {len(seconds)} times, median {median(seconds):.3f} s, longest {max(seconds):.3f} s")
    assert session.pulse.failures == []


def test_the_page_reports_no_script_errors(session: Session) -> None:
    assert session.script_errors == []
