"""Protects the job: it learns from what Label Studio itself confirms, leaves a complete version or none, and says in
its file how it ended."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from PIL import Image

from backend.finetune import run_job as module
from backend.finetune.job_store import Job, Jobs, read_job
from backend.finetune.run_job import LARGEST_SIDE, Photos, recipe, run, served
from backend.finetune.store import AnnotationStore
from backend.finetune.versions import Versions
from backend.images.decode import DecodedImage
from backend.prompts import ImageReference
from backend.settings import Settings
from skipclick import Click, brush_rle, load_checkpoint
from skipclick.evaluation.datasets import Sample
from skipclick.evaluation.results import ObjectResult
from skipclick.head import backbone_digest
from skipclick.model import SkipClick
from skipclick.proposals import ProposalRule
from tests.support import annotation_bodies as bodies
from tests.support.annotation_bodies import annotation, region
from tests.support.fake_label_studio import FakeLabelStudio
from tests.support.tuned_models import base_model, tuned_model
from train.finetune import FinetuneConfig, Progress, TooFewError
from train.finetune.gate import Measured
from train.finetune.proposals import measured_proposals

PROJECT = 1
QUICK = FinetuneConfig(steps=2, batch_size=2, views=1, checks=1, precision="float32")


def put_task(studio: FakeLabelStudio, number: int) -> None:
    """A task with a picture of a bright square, and its mask."""
    task, studio.files[f"/data/upload/1/{number}.png"] = bodies.photographed_task(number)
    studio.tasks.append(task)


@pytest.fixture
def queued(settings: Settings) -> Path:
    jobs = Jobs(settings.model_dir)
    return jobs.path(jobs.enqueue(PROJECT, "a test", 0))


@pytest.fixture(autouse=True)
def _small_retention_set(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = module.retention_set()
    assert len(whole) == 18
    monkeypatch.setattr(module, "retention_set", lambda: whole[10:11])


def test_a_job_leaves_a_complete_version(
    studio: FakeLabelStudio, settings: Settings, queued: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_points = partial(measured_proposals, rule=ProposalRule(side=2))
    monkeypatch.setattr("train.finetune.run.measured_proposals", few_points)
    for number in range(1, 13):
        put_task(studio, number)
    del studio.files["/data/upload/1/3.png"]
    run(settings, PROJECT, queued, replace(QUICK, proposal_images=2))
    job, versions, store = read_job(queued), Versions(settings.model_dir), AnnotationStore(settings.model_dir)
    assert (job.state, job.version) == ("done", "skipclick-lite+p1.v1")
    assert job.reason
    assert job.noc is not None
    assert job.last_object == max(one.id for one in store.objects(PROJECT))
    version = versions.version(PROJECT, 1)
    version.head()  # its digest fits
    assert version.about["data"] == store.fingerprint(PROJECT)
    assert version.about["backbone"] == backbone_digest(load_checkpoint("bundled"))
    assert version.report["num_objects"] == 12
    assert Image.open(version.picture).size[0] == 960
    assert versions.current(PROJECT) == (1 if job.promoted else None)
    assert job.promoted == version.report["worth_promoting"]
    assert [reason for reason in store.counts(PROJECT).skipped if "404" in reason]  # the image that has gone
    measured = version.report["proposals"]
    assert measured["num_images"] == measured["num_objects"] == 2
    assert job.proposals is not None
    assert job.proposals["recall"] == measured["recall"]
    assert version.about["proposals"] == job.proposals | {"helps": measured["helps"]}
    assert [(label, len(rows) in (1, 2)) for label, rows in version.prototypes().vectors.items()] == [("Ski", True)]


def test_what_proposals_would_find_is_measured_whether_or_not_they_are_switched_on() -> None:
    """So that a team can read it before anybody is shown one."""
    assert recipe(Settings(predict="off")).proposal_images == recipe(Settings(predict="similar")).proposal_images > 0


@pytest.fixture
def promoting(studio: FakeLabelStudio, settings: Settings, queued: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job that is done and was told that its version is worth promoting."""
    for number in range(1, 9):
        put_task(studio, number)
    monkeypatch.setattr("train.finetune.run.promotion_gate", lambda *_: (True, "because the test says so"))
    run(settings, PROJECT, queued, QUICK)
    return queued


def test_what_is_promoted_is_served(settings: Settings, promoting: Path) -> None:
    assert read_job(promoting).promoted
    assert Versions(settings.model_dir).current(PROJECT) == 1


def put_half_mask(studio: FakeLabelStudio, number: int) -> None:
    """A task as of `put_task`, of whose square the mask is the left half, 26 pixels wide."""
    put_task(studio, number)
    [drawn] = studio.tasks[-1]["annotations"][0]["result"]
    mask = brush_rle.decode(drawn["value"]["rle"], 96, 128) > 0
    mask[:, int(np.nonzero(mask)[1].min()) + 26 :] = False
    studio.tasks[-1]["annotations"] = [annotation(number, number, [region("a", mask)])]


def as_if_halves_were_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements of the candidate find half masks sooner than those of the base, which come first, and whole squares
    later; on the retention set both are alike."""
    seen: list[SkipClick] = []

    def found(model: SkipClick, samples: Sequence[Sample], *_: object) -> Measured:
        if not seen:
            seen.append(model)
        half, whole = (12, 1) if model is seen[0] else (4, 2)
        return Measured(
            tuple(
                ObjectResult(sample.name, number, None, [0.1] * (count - 1) + [0.95], [Click(1, 1)] * count, 0.0, [])
                for sample in samples
                for number, target in sample.targets.items()
                for is_half in [(target == 1).any(axis=0).sum() == 26]
                for count in [half if is_half else whole if sample.name.startswith("/data/") else 1]
            )
        )

    monkeypatch.setattr("train.finetune.run.measured", found)


@pytest.mark.parametrize("known", [True, False])
def test_half_masks_of_one_annotator_are_not_promoted(
    studio: FakeLabelStudio, settings: Settings, queued: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """All held-out objects together need far fewer clicks, since half of them are half masks; the others' need more.

    Where Label Studio does not say who made an annotation, nobody can tell, and the head is promoted."""
    for number in range(1, 17):
        is_half = number == 5 or number > 9  # of the held-out images, 4, 5, 14 and 15, three
        (put_half_mask if is_half else put_task)(studio, number)
        if known:
            studio.tasks[-1]["annotations"][0]["completed_by"] = 8 if is_half else {"id": 7}
    as_if_halves_were_learnt(monkeypatch)
    monkeypatch.setattr(module, "picture", lambda *_: np.zeros((8, 8, 3), np.uint8))
    run(settings, PROJECT, queued, QUICK)
    job, version = read_job(queued), Versions(settings.model_dir).version(PROJECT, 1)
    assert job.promoted != known, job.reason
    assert ("all annotators but 8, who gain most" in job.reason) == known
    told = {one["annotator"]: (one["num_learnt"], len(one["old"])) for one in version.report["annotators"]}
    assert set(told) == ({"7", "8"} if known else {""})
    assert sum(count for pair in told.values() for count in pair) == 16
    assert version.about["annotators"] == {name: taught for name, (taught, _) in told.items()}


def test_what_must_be_beaten_is_what_annotators_get(tmp_path: Path) -> None:
    """A version of another checkpoint serves nobody, so it is no measure either, and does not stop the job."""
    versions = Versions(tmp_path)
    versions.write(PROJECT, tuned_model(1), base_model(), about={}, report={})
    assert served(versions, PROJECT, 1, base_model()).version == "tiny+p1.v1"
    other = load_checkpoint("bundled")
    assert served(versions, PROJECT, 1, other) is other
    assert served(versions, PROJECT, None, other) is other


RESTRAINED = """
from backend.finetune.run_job import limit_resources
from backend.settings import Settings
limit_resources(Settings())
print(open("/proc/self/autogroup").read().split()[-1], open("/proc/self/stat").read().split()[18])
"""


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this system shares processors by niceness alone")
@pytest.mark.parametrize(
    ("command", "shares"),
    [
        ([sys.executable, "-c", RESTRAINED], ["19", "19"]),
        (
            ["sh", "-c", '"$0" -c "$1"; echo "$(cut -d " " -f 3 /proc/self/autogroup)"', sys.executable, RESTRAINED],
            ["0", "19", "0"],
        ),
    ],
    ids=["a session of its own", "its caller's session"],
)
def test_a_job_lowers_its_own_session_and_nobody_else_s(command: list[str], shares: list[str]) -> None:
    """Linux divides processors by sessions first, where it knows autogroups: the session's niceness, the process's, and
    at last that of the shell which started it."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=True, start_new_session=True)
    assert done.stdout.split() == shares


def test_too_few_objects_end_in_a_sentence(studio: FakeLabelStudio, settings: Settings, queued: Path) -> None:
    put_task(studio, 1)
    with pytest.raises(TooFewError):
        run(settings, PROJECT, queued, QUICK)
    job = read_job(queued)
    assert job.state == "failed"
    assert "1 object in 1 image are too few: it takes 8 objects" in job.reason
    assert Versions(settings.model_dir).numbers(PROJECT) == []


def test_nothing_is_learnt_when_label_studio_is_away(settings: Settings, queued: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("backend.finetune.sync.get_object", _away)
    with pytest.raises(ValueError, match="no answer"):
        run(settings, PROJECT, queued, QUICK)
    assert read_job(queued).state == "failed"


def _away(*_: object) -> None:
    raise ValueError("no answer")


def test_memory_that_does_not_suffice_is_told_so(
    settings: Settings, queued: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(module, "collect", too_large)
    with pytest.raises(ValueError, match="FINETUNE_MEMORY_BYTES=6GB"):
        run(settings, PROJECT, queued, QUICK)
    assert "ran out of memory" in read_job(queued).reason


def test_masks_and_photos_are_fitted_alike(settings: Settings) -> None:
    """Large photos are shrunk; a photo that is not the one the mask was drawn on is refused."""
    store = AnnotationStore(settings.model_dir)
    mask = np.zeros((1500, 2100), np.bool_)
    mask[300:900, 200:1000] = True
    store.receive(PROJECT, orjson.dumps(bodies.saved(annotation(1, 1, [region("a", mask)]))))
    store.apply_pending()
    [stored] = store.objects(PROJECT)

    class Loader:
        size = (1500, 2100)

        def load(self, _: ImageReference) -> DecodedImage:
            return DecodedImage(np.zeros((750, 1050, 3), np.uint8), self.size)  # decoded at half its size

    loader = Loader()
    photos = Photos(loader)  # type: ignore[arg-type]
    example = photos.example(stored)
    image, target = example.image(), example.target()
    assert image.shape[:2] == target.shape == (731, LARGEST_SIDE)
    assert abs(float(target.mean()) - float(mask.mean())) < 0.002
    loader.size = (1501, 2100)
    with pytest.raises(ValueError, match="the mask was drawn on 2100 x 1500 pixels, the image has 2100 x 1501"):
        example.image()
    assert list(photos.unreachable) == [stored.image]


def test_progress_is_reported_seldom() -> None:
    written: list[dict[str, Any]] = []
    on_progress = module._seldom(lambda **changes: written.append(changes))
    for step in range(50):
        on_progress(Progress("learning", step / 50, step))
    on_progress(Progress("measuring"))
    assert [one["stage"] for one in written] == ["learning", "measuring"]
    assert set(written[0]) <= set(Job.__dataclass_fields__)


@pytest.mark.usefixtures("promoting")
def test_a_choice_made_meanwhile_stands(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever rolls back while a job runs is not overruled by it."""
    jobs, versions = Jobs(settings.model_dir), Versions(settings.model_dir)

    def rolled_back(*_: object) -> tuple[bool, str]:
        versions.rollback(PROJECT)
        return True, "because the test says so"

    monkeypatch.setattr("train.finetune.run.promotion_gate", rolled_back)
    run(settings, PROJECT, jobs.path(jobs.enqueue(PROJECT, "a test", 0)), QUICK)
    job = jobs.newest(PROJECT)
    assert job is not None
    assert (job.version, job.promoted) == ("skipclick-lite+p1.v2", False)
    assert "another version was put in service meanwhile" in job.reason
    assert versions.current(PROJECT) is None


@pytest.mark.slow
def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "backend.finetune", "--project", "1", "--job", str(tmp_path / "none.json")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "there is no job" in ended.stderr
