"""Protects proposals in the real Label Studio: a task that nobody annotated opens with labelled masks of what the team
accepted before, a batch brings them to all tasks once, and who clicks meanwhile does not wait for it.

The photos are cut, mirrored and lit anew from those of the check set. Screenshots and logs go to e2e-output/proposals/.
"""

import io
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.serving.loopback import local_session

from .browser import Answer, Editor, editor
from .label_studio import LabelStudio
from .masks import brush_alpha
from .processes import OUTPUT, PYTHON, ROOT, backend, backend_environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

FOLDER = OUTPUT / "proposals"
CHECK_SET = ROOT / "skipclick" / "evaluation" / "check_set"
KINDS = {"Flower": ("flower", 1), "Person": ("hopper", 1)}  # a photo and the number of an object in its mask
ACCEPTED, HELD_OUT, OPENED, BATCH = range(2), range(2, 4), range(4, 5), range(5, 7)
HIT = 0.75
HOTKEY = "3"  # of the smart tag's first label, behind the two of the brush
CLICKS = [(0.5, 0.5), (0.45, 0.4), (0.55, 0.6), (0.5, 0.35)]  # of somebody who works during the batch

CONFIG = """<View>
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="mask" toName="image" smart="false">
    <Label value="Flower" background="#d4380d"/><Label value="Person" background="#1890ff"/>
  </BrushLabels>
  <KeyPointLabels name="click" toName="image" smart="true">
    <Label value="Flower"/><Label value="Person"/>
  </KeyPointLabels>
</View>"""

# What the editor shows of a task: for each annotation or prediction tab its kind and its regions' labels.
SHOWN = """() => {
    const one = window.dataManager?.lsf?.lsf?.annotationStore?.selected;
    return one && {type: one.type, labels: one.regions.map(region => region.labels[0])};
}"""

Json = dict[str, Any]


def varied(kind: str, number: int) -> tuple[Image.Image, np.ndarray]:
    """A photo of a kind, another one for each number, and its object as a mask, bool (H, W)."""
    name, object_id = KINDS[kind]
    with Image.open(CHECK_SET / "images" / f"{name}.jpg") as file:
        photo = np.array(file.convert("RGB"))
    with Image.open(CHECK_SET / "masks" / f"{name}.png") as file:
        mask = np.array(file) == object_id
    rng = np.random.default_rng(number)
    height, width = mask.shape
    top, left, bottom, right = (int(rng.integers(size // 12)) for size in (height, width, height, width))
    part = np.s_[top : height - bottom, left : width - right]
    photo = np.clip(photo[part] * rng.uniform(0.8, 1.15), 0, 255).astype(np.uint8)
    turn = -1 if number % 2 else 1
    return Image.fromarray(photo[:, ::turn]), mask[part][:, ::turn]


@dataclass
class Story:
    """What an annotator saw, and what Label Studio stored."""

    measured: Json
    opened: list[Json]
    """By kind what the editor showed of a task when it was opened."""
    predictions_on_open: list[list[Json]]
    submitted: list[Json]
    """The annotation's regions where the proposals were submitted as they are."""
    photos_seen_on_open: int
    clicked: list[tuple[float, float, Answer]]
    """Clicks during the batch: when they were made and answered, seconds."""
    batch_ended: float
    after: dict[str, list[Json]]
    """By the batch's photos the predictions that were stored."""
    photos_seen: int
    after_again: dict[str, list[Json]]
    photos_seen_again: int
    script_errors: list[str]


@pytest.fixture(scope="module")
def story(studio: LabelStudio, api_key: str) -> Iterator[Story]:
    settings = {"LABEL_STUDIO_URL": studio.url, "LABEL_STUDIO_API_KEY": api_key, "MODEL_DIR": str(FOLDER / "models")}
    settings |= {"PREDICT": "similar", "PREDICT_SECONDS": "90", "FINETUNE": "manual"}
    FOLDER.mkdir(parents=True, exist_ok=True)
    with backend(FOLDER / "backend.log", settings) as url:
        yield played(studio, url, settings)


def played(studio: LabelStudio, url: str, settings: dict[str, str]) -> Story:
    project = studio.create_project("Flowers and persons", CONFIG)
    studio.connect_backend(project, url)
    others = studio.create_project("Somebody else's", CONFIG)
    studio.connect_backend(others, url)
    photos = {f"{kind}-{number}.jpg": varied(kind, number)[0] for kind in KINDS for number in (*OPENED, *BATCH)}
    files = {name: encoded(photo) for name, photo in photos.items()}
    tasks = studio.upload_all(project, files)
    (elsewhere,) = studio.upload_all(others, {"elsewhere.jpg": encoded(varied("Flower", 100)[0])}).values()
    measured = seeded(settings, project)
    opened, stored, submitted = [], [], []
    with editor(studio.url, FOLDER) as window:
        for number, kind in enumerate(KINDS, 1):
            task = tasks[f"{kind}-{OPENED[0]}.jpg"]
            window.open_task(project, task)
            window.page.wait_for_function(f"() => ({SHOWN})()?.labels.length")  # the photo is drawn before its regions
            opened.append(window.page.evaluate(SHOWN))
            window.picture(f"{number}-opened-{kind}")
            window.submit()
            window.picture(f"{number}-submitted-{kind}")
            stored.append(studio.predictions(task))
            submitted += [one["result"] for one in studio.annotations(task)]
        seen_on_open = photos_encoded(url)
        colleague = a_second_window(window)
        colleague.open_task(others, elsewhere)
        colleague.prepare_clicks()
        colleague.click(*CLICKS[0], HOTKEY)
        seen_before = photos_encoded(url)
        ended = begin_batch(window, project)
        clicked = []
        for x, y in CLICKS[1:]:
            begin = time.monotonic()
            answer = colleague.click(x, y, HOTKEY)
            clicked.append((begin, time.monotonic(), answer))
        colleague.picture("4-clicks-during-the-batch")
        while not ended:
            window.page.wait_for_timeout(100)
        window.page.wait_for_timeout(1000)
        window.picture("5-retrieved")
        in_batch = {name: task for name, task in tasks.items() if int(name[:-4].split("-")[1]) in BATCH}
        after = {name: studio.predictions(task) for name, task in in_batch.items()}
        seen = photos_encoded(url)
        again = begin_batch(window, project)
        while not again:
            window.page.wait_for_timeout(100)
        after_again = {name: studio.predictions(task) for name, task in in_batch.items()}
        window.open_task(project, next(iter(in_batch.values())))
        window.picture("6-opened-after-the-batch")
    return Story(
        measured=measured,
        opened=opened,
        predictions_on_open=stored,
        submitted=submitted,
        photos_seen_on_open=seen_on_open,
        clicked=clicked,
        batch_ended=ended[0],
        after=after,
        photos_seen=seen - seen_before,
        after_again=after_again,
        photos_seen_again=photos_encoded(url) - seen,
        script_errors=window.script_errors,
    )


def a_second_window(first: Editor) -> Editor:
    """Of the same browser, logged in as the first one is."""
    here = first.page.context
    assert here.browser is not None
    page = here.browser.new_context(storage_state=here.storage_state(), viewport=first.page.viewport_size).new_page()
    page.on("pageerror", lambda error: first.script_errors.append(str(error)))
    return Editor(page, first.url, first.pictures, first.script_errors)


def encoded(photo: Image.Image) -> bytes:
    """A photo as a JPEG file."""
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=92)
    return file.getvalue()


def seeded(settings: dict[str, str], project: int) -> Json:
    """Put a version in service that proposes flowers and persons; what was measured of it."""
    for folder, numbers in (("accepted", ACCEPTED), ("held_out", HELD_OUT)):
        (FOLDER / folder).mkdir()
        for kind in KINDS:
            for number in numbers:
                photo, mask = varied(kind, number)
                path = FOLDER / folder / f"{kind}-{number}.jpg"
                path.write_bytes(encoded(photo))
                Image.fromarray(mask).save(path.with_suffix(".png"))
    command = [PYTHON, "-m", "tests.e2e.seed_proposals", settings["MODEL_DIR"], str(project), str(FOLDER)]
    environment = backend_environment(settings)
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=600, check=True, stdout=subprocess.PIPE)
    measured: Json = json.loads(done.stdout)
    return measured


def photos_encoded(url: str) -> int:
    """How many photos the backend has looked at."""
    with local_session() as session:
        number: int = session.get(f"{url}/status", timeout=60).json()["encodes"]["photo"]
        return number


def begin_batch(window: Editor, project: int) -> list[float]:
    """Select all tasks in the data manager and retrieve predictions; the list gets the time at which that ended."""
    ended: list[float] = []
    page = window.page
    page.on("response", lambda response: ended.append(time.monotonic()) if "id=retrieve" in response.url else None)
    page.goto(f"{window.url}/projects/{project}/data")
    page.get_by_role("checkbox", name="Select all rows").first.click()
    page.get_by_role("button", name="Tasks Actions").click()
    window.picture("3-actions")
    page.get_by_text("Retrieve Predictions").click()
    page.locator("button", has_text="OK").last.click()  # the dialog is hidden from assistive technology
    return ended


def iou_of(region: Json, mask: np.ndarray) -> float:
    """Of a stored brush region with a mask, bool (H, W)."""
    found = brush_alpha(region["value"]["rle"], *mask.shape) > 0
    return float((found & mask).sum() / (found | mask).sum())


def best_iou(regions: list[Json], kind: str, number: int) -> float:
    """Of the regions with a kind's label the best one's IoU with the object on a photo."""
    mask = varied(kind, number)[1]
    return max((iou_of(one, mask) for one in regions if one["value"]["brushlabels"] == [kind]), default=0.0)


def test_the_held_out_photos_say_that_proposals_help(story: Story) -> None:
    print(story.measured)
    assert story.measured["helps"] is True


def test_a_task_opens_with_labelled_masks(story: Story) -> None:
    for kind, shown, stored in zip(KINDS, story.opened, story.predictions_on_open, strict=True):
        (prediction,) = stored  # Label Studio asked twice
        assert prediction["model_version"].endswith(".v1")
        assert kind in shown["labels"]
        assert len(shown["labels"]) == len(prediction["result"])
        assert best_iou(prediction["result"], kind, OPENED[0]) >= HIT
    assert story.photos_seen_on_open == len(KINDS), "each photo was looked at once"


def test_what_is_submitted_is_what_was_proposed(story: Story) -> None:
    for regions, (prediction,) in zip(story.submitted, story.predictions_on_open, strict=True):
        proposed = {one["id"]: one for one in prediction["result"]}
        assert {one["id"] for one in regions} == proposed.keys()
        for one in regions:
            mask = brush_alpha(one["value"]["rle"], one["original_height"], one["original_width"])
            before = brush_alpha(proposed[one["id"]]["value"]["rle"], *mask.shape)
            np.testing.assert_array_equal(mask, before)


def test_a_batch_brings_each_task_its_masks_once(story: Story) -> None:
    right = []
    for name, predictions in story.after.items():
        kind, number = name[:-4].split("-")
        assert len(predictions) <= 1, name
        right.append(any(best_iou(one["result"], kind, int(number)) >= HIT for one in predictions))
    print(f"objects proposed: {sum(right)} of {len(right)}")
    assert np.mean(right) >= 0.75
    assert story.photos_seen == len(story.after), "each photo was looked at once"


def test_asked_again_it_finds_everything_there(story: Story) -> None:
    assert story.after_again == story.after
    assert story.photos_seen_again == 0


def test_who_clicks_meanwhile_does_not_wait_for_the_batch(story: Story) -> None:
    seconds = [end - begin for begin, end, _ in story.clicked]
    print("clicks during the batch, seconds:", ", ".join(f"{one:.2f}" for one in seconds))
    for _, end, answer in story.clicked:
        assert "errors" not in answer.reply
        assert answer.reply["data"]["result"]
        assert end < story.batch_ended


def test_the_page_reports_no_script_errors(story: Story) -> None:
    assert story.script_errors == []
