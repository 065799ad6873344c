"""Protects the promise to teams: what they accept in the real Label Studio makes their next click better.

The photos are drawn: bright squares with a dark stripe, which the bundled model takes for the end of the square. After
some dozens of accepted squares it knows better. Whether the few that are held out prove it beyond chance is for the
training to say; where it says no, the version is put in service by hand, as a team may do. Screenshots and logs go to
e2e-output/finetune/.
"""

import io
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from label_studio_sdk.converter.brush import mask2rle
from PIL import Image

from backend.label_studio.labeling_config import EXAMPLE
from bench.serving.loopback import local_session

from .browser import Answer, Editor, editor
from .label_studio import LabelStudio
from .masks import brush_alpha
from .processes import OUTPUT, PYTHON, ROOT, backend, backend_environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(5400)]

FOLDER = OUTPUT / "finetune"
HEIGHT, WIDTH = 384, 512
NUM_ANNOTATED = 32
UNSEEN = 100  # number of the photo that nobody annotates
NUM_UNSEEN = 3  # copies of it: where a click was made before, the editor would select that click and send nothing
BASE = "skipclick-lite"
HOTKEY = "2"  # of the smart label
PATIENCE = 3600.0  # seconds for a training on a busy machine; it takes one or two minutes on an idle one

Json = dict[str, Any]


def drawn(number: int) -> tuple[bytes, np.ndarray]:
    """A photo as a PNG file, and its object as a mask, bool (H, W): a square across which a dark stripe goes."""
    rng = np.random.default_rng(number)
    photo = rng.integers(0, 90, (96, 128, 3)).astype(np.uint8)
    top, left = rng.integers(8, 40, 2)
    mask = np.zeros((96, 128), bool)
    mask[top : top + 44, left : left + 52] = True
    photo[mask] += 140
    photo[top + 18 : top + 26, left : left + 52] //= 3
    file = io.BytesIO()
    Image.fromarray(photo).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR).save(file, "PNG")
    return file.getvalue(), np.kron(mask, np.ones((4, 4), bool))


def brush(mask: np.ndarray) -> Json:
    """A brush region as the editor submits it, its RLE made by Label Studio's own encoder."""
    return {
        "id": f"region-{int(mask.sum())}-{int(np.flatnonzero(mask)[0])}" if mask.any() else "empty",
        "type": "brushlabels",
        "from_name": "mask",
        "to_name": "image",
        "origin": "manual",
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": mask2rle(mask.astype(np.uint8) * 255), "brushlabels": ["Object"]},
    }


@dataclass(frozen=True, slots=True)
class Story:
    """What a team did and what came of it."""

    project: int
    known_by_webhooks: Json
    """The backend's report before anything was trained."""
    trained: Json
    """Its report after the training."""
    versions: list[list[str]]
    """What Label Studio lists before and after."""
    record: Json
    """Label Studio's record of the backend after the training."""
    clicks: list[Answer]
    """The same click on copies of the unseen photo: before, after, and after a rollback."""


@pytest.fixture(scope="module")
def settings(studio: LabelStudio, api_key: str) -> dict[str, str]:
    return {
        "LABEL_STUDIO_URL": studio.url,
        "LABEL_STUDIO_API_KEY": api_key,
        "MODEL_DIR": str(FOLDER / "models"),
        "FINETUNE": "manual",  # here the button begins it, not the number of new objects
        "FINETUNE_SECONDS": "1200",  # on an idle machine it has learnt enough after one or two minutes, and stops
        "FINETUNE_THREADS": "1",  # two would wait for each other where others work too
    }


@pytest.fixture(scope="module")
def backend_url(settings: dict[str, str]) -> Iterator[str]:
    with backend(FOLDER / "backend.log", settings) as url:
        yield url
        with local_session() as session:  # a training outlives its server; nothing to cancel is fine
            for job in session.get(f"{url}/status", timeout=60).json()["training"]:
                session.delete(f"{url}/training", params={"project": job["project"]}, timeout=60)


@pytest.fixture(scope="module")
def adapted(studio: LabelStudio, settings: dict[str, str]) -> list[str]:
    """With immediate adaptation: the version that answers before a mask was accepted, after one and after two."""
    immediate = settings | {"MODEL_DIR": str(FOLDER / "adapted"), "FINETUNE_IMMEDIATE": "true"}
    with backend(FOLDER / "adapting.log", immediate) as url:
        project = studio.create_project("Squares, one by one", EXAMPLE)
        studio.connect_backend(project, url)
        tasks = studio.upload_all(project, {f"square-{number}.png": drawn(number)[0] for number in range(2)})
        names = [BASE]
        for number in range(2):
            studio.annotate(tasks[f"square-{number}.png"], [brush(drawn(number)[1])])
            report = awaited_report(url, project, lambda report: report["version"] != names[-1], PATIENCE)
            names.append(report["version"])
        assert report["jobs"] == []
        return [name.replace(f"+p{project}.", " ") for name in names]


@pytest.fixture(scope="module")
def story(studio: LabelStudio, backend_url: str, settings: dict[str, str]) -> Story:
    """Annotate, press Start Training, wait, click again, roll back, click once more."""
    project = studio.create_project("Squares", EXAMPLE)
    connected = studio.connect_backend(project, backend_url)["id"]
    photos = {f"square-{number}.png": drawn(number)[0] for number in range(NUM_ANNOTATED + 3)}
    photos |= {f"unseen-{number}.png": drawn(UNSEEN)[0] for number in range(NUM_UNSEEN)}
    tasks = studio.upload_all(project, photos)

    def versions() -> list[str]:
        listed: list[str] = studio.call("GET", f"/api/ml/{connected}/versions")["versions"]
        return listed

    def models(*words: str) -> None:
        command = [PYTHON, "-m", "backend", "models", *words]
        subprocess.run(command, cwd=ROOT, env=backend_environment(settings), timeout=300, check=True)

    listed = [versions()]
    unseen = [tasks[f"unseen-{number}.png"] for number in range(NUM_UNSEEN)]
    with editor(studio.url, FOLDER) as window:
        first = click(window, project, unseen[0], "1-before")
        annotate(studio, tasks)
        known = awaited_report(backend_url, project, lambda report: report["objects"] == NUM_ANNOTATED, 60)
        studio.start_training(connected)
        trained = awaited_report(
            backend_url, project, lambda report: report["jobs"][0]["ended_at"] is not None, PATIENCE
        )
        if not trained["jobs"][0]["promoted"]:
            models("promote", str(project), "v1")
            trained = awaited_report(backend_url, project, lambda report: report["version"] != BASE, 60)
        listed.append(versions())
        record = studio.call("GET", f"/api/ml/{connected}")
        second = click(window, project, unseen[1], "2-after")
        models("rollback", str(project))
        third = click(window, project, unseen[2], "3-rolled-back")
    return Story(project, known, trained, listed, record, [first, second, third])


def click(window: Editor, project: int, task: int, name: str) -> Answer:
    """Open a task, click into the upper part of its square, above the stripe."""
    window.open_task(project, task)
    window.prepare_clicks()
    rows, columns = np.nonzero(drawn(UNSEEN)[1])
    answer: Answer = window.click(columns.mean() / WIDTH, (rows.min() + 30) / HEIGHT, HOTKEY)
    window.picture(name)
    return answer


def annotate(studio: LabelStudio, tasks: dict[str, int]) -> None:
    """What a team does: most squares are accepted at once, one is redone, one skipped, one given up, one is empty."""

    def square(number: int) -> list[Json]:
        return [brush(drawn(number)[1])]

    for number in range(1, NUM_ANNOTATED):
        studio.annotate(tasks[f"square-{number}.png"], square(number))
    redone = studio.annotate(tasks["square-0.png"], square(1))
    studio.call("PATCH", f"/api/annotations/{redone}/", json={"result": square(0)})
    skipped, given_up, empty = (tasks[f"square-{NUM_ANNOTATED + number}.png"] for number in range(3))
    studio.annotate(skipped, [], was_cancelled=True)
    studio.annotate(empty, [brush(np.zeros((HEIGHT, WIDTH), bool))])
    mistake = studio.annotate(given_up, square(NUM_ANNOTATED + 1))
    answer = studio.session.delete(f"{studio.url}/api/annotations/{mistake}/", timeout=60)
    answer.raise_for_status()


def awaited_report(url: str, project: int, reached: Any, patience: float) -> Json:
    """The backend's GET /training once something is so in it."""
    deadline = time.monotonic() + patience
    with local_session() as session:
        while True:
            report: Json = session.get(f"{url}/training", params={"project": project}, timeout=60).json()
            if reached(report):
                return report
            assert time.monotonic() < deadline, report
            time.sleep(0.5)


def answered_mask(answer: Answer) -> np.ndarray:
    (region,) = answer.reply["data"]["result"]
    return brush_alpha(region["value"]["rle"], HEIGHT, WIDTH) > 0


def test_annotations_arrive_as_they_are_made(story: Story) -> None:
    known = story.known_by_webhooks
    assert (known["objects"], known["images"], known["jobs"]) == (NUM_ANNOTATED, NUM_ANNOTATED, [])
    assert known["version"] == BASE


def test_the_button_trains_on_what_was_accepted(story: Story) -> None:
    report = story.trained
    job = report["jobs"][0]
    print("promoted" if job["promoted"] else "promoted by hand", "-", job["reason"])
    assert (job["state"], job["asked_by"]) == ("done", "Start Training"), job["reason"]
    assert job["version"] == f"{BASE}+p{story.project}.v1"
    assert report["objects"] == NUM_ANNOTATED
    assert report["skipped"] == {"the annotator skipped the task": 1, "the mask is empty": 1}


def test_label_studio_sees_the_new_version(story: Story) -> None:
    new = f"{BASE}+p{story.project}.v1"
    assert story.trained["version"] == new
    assert story.versions == [[BASE], [BASE, new]]
    assert story.record["model_version"] == new
    assert story.record["state"] == "CO"


def test_the_next_click_is_answered_by_the_new_head(story: Story) -> None:
    names = [answer.reply["data"]["model_version"] for answer in story.clicks]
    assert names == [BASE, f"{BASE}+p{story.project}.v1", BASE]


def test_it_is_the_better_one(story: Story) -> None:
    truth = drawn(UNSEEN)[1]
    masks = [answered_mask(answer) for answer in story.clicks]
    before, after, rolled_back = (float((mask & truth).sum() / (mask | truth).sum()) for mask in masks)
    print(f"IoU of one click on a photo nobody annotated: {before:.2f} before, {after:.2f} after")
    assert after > before
    assert rolled_back == before


def test_each_accepted_mask_is_adapted_to_if_the_team_wants_it(adapted: list[str]) -> None:
    assert adapted == [BASE, f"{BASE} v1", f"{BASE} v2"]
