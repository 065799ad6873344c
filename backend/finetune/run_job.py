"""A job: fine-tune a project's head in a separate process, and put it in service if it needs fewer clicks.

    python -m backend.finetune --project 12 --job data/jobs/12/0003.json

It reads the annotations from Label Studio again, learns, writes a version and promotes it or not. The file is one of
`job_store.py` and records the progress; the log goes to standard error. If it is killed, the version in service stays.
"""

from __future__ import annotations

import logging
import os
import resource
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from backend.device import choose_device
from backend.finetune.job_store import working_on
from backend.finetune.processes import lower
from backend.finetune.store import AnnotationStore, StoredObject
from backend.finetune.sync import collect
from backend.finetune.versions import Versions
from backend.images.loader import ImageLoader, build_images
from backend.label_studio.auth import build_auth
from backend.label_studio.client import LabelStudioApi
from backend.prompts import ImageReference
from backend.settings import Settings, size_text
from skipclick import load_checkpoint
from skipclick.atomic_io import atomic_write
from skipclick.evaluation.datasets import Sample, check_set
from skipclick.model import SkipClick
from train.finetune import Example, FinetuneConfig, Progress, finetune
from train.finetune.picture import picture

logger = logging.getLogger(__name__)

LARGEST_SIDE = (
    1024  # pixels of a photo in a job: still far above the network's input size, and clicks are simulated faster
)
REPORT_EVERY = 0.5  # seconds
PROPOSAL_IMAGES = 20
"""Held-out images, and accepted ones, on which proposals are evaluated, whatever PREDICT says: the report then tells
whether they help before anybody turns them on."""


def run(settings: Settings, project: int, path: Path, config: FinetuneConfig | None = None) -> None:
    """Do the job of this file. Errors are recorded in the file, as a sentence, and raised."""
    with working_on(path) as report:
        try:
            _learn(settings, project, path, report, config or recipe(settings))
        except (MemoryError, RuntimeError) as error:
            said = any(words in str(error) for words in ("can't allocate memory", "bad_alloc"))
            if said or isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
                limit = f"FINETUNE_MEMORY_BYTES={size_text(settings.finetune_memory_bytes)}"
                raise ValueError(f"it ran out of memory: {limit} on a CPU, else the device's") from error
            raise


def _learn(settings: Settings, project: int, path: Path, report: Callable[..., None], config: FinetuneConfig) -> None:
    report(stage="collecting")
    auth = build_auth(settings)
    store = AnnotationStore(settings.model_dir, settings.image_max_pixels)
    versions = Versions(settings.model_dir)
    counts = collect(LabelStudioApi(auth, settings.image_timeout), store, project)
    logger.info("%d objects in %d images; left out: %s", counts.objects, counts.images, dict(counts.skipped))
    objects, fingerprint = store.objects(project), store.fingerprint(project)
    report(last_object=max((one.id for one in objects), default=0))
    base = load_checkpoint(settings.checkpoint)
    serving = versions.current(project)
    in_service = served(versions, project, serving, base)
    photos = Photos(build_images(settings, auth, LARGEST_SIDE))
    try:
        examples = [photos.example(one) for one in reversed(objects)]  # if there are too many, the newest count
        candidate = finetune(base, examples, retention_set(), config, _seldom(report), in_service)
    finally:
        store.report_unreachable(project, photos.unreachable)
    report(stage="writing", share=0.0, seconds_left=None, noc=candidate.after.noc, step=candidate.report.step)
    shown = path.with_suffix(".png")
    with atomic_write(shown) as temporary:
        Image.fromarray(picture(candidate, in_service)).save(temporary, format="PNG")
    measured = candidate.report.proposals
    proposals = {} if measured is None else {"proposals": measured.figures | {"helps": measured.helps}}
    version = versions.write(
        project,
        candidate.model,
        base,
        about={
            "data": fingerprint,
            "objects": len(objects),
            "annotators": {one.annotator: one.num_learnt for one in candidate.report.annotators},
            "better_than": serving,
            "job": path.stem,
            **proposals,
        },
        report=candidate.report.to_dict(),
        picture=shown,
        prototypes=candidate.prototypes,
    )
    promoted, reason = candidate.report.worth_promoting, candidate.report.reason
    if (
        promoted and versions.current(project) != serving
    ):  # somebody promoted another one: the version compared with is not in service
        promoted, reason = False, f"{reason}; but another version was put in service meanwhile: promote it by hand"
    if promoted:
        versions.promote(project, version.number)
    logger.info("%s, %s: %s", version.name, "promoted" if promoted else "not promoted", reason)
    figures = None if measured is None else measured.figures
    report(version=version.name, promoted=promoted, reason=reason, proposals=figures)


def _seldom(report: Callable[..., None]) -> Callable[[Progress], None]:
    """Passes on the progress of `finetune`, at most every `REPORT_EVERY` seconds within a stage."""
    last = ("", 0.0)  # stage and time of the last report

    def on_progress(progress: Progress) -> None:
        nonlocal last
        if progress.stage != last[0] or time.monotonic() - last[1] >= REPORT_EVERY:
            last = progress.stage, time.monotonic()
            report(**{key: value for key, value in asdict(progress).items() if value is not None or key != "noc"})

    return on_progress


class Photos:
    """The images of stored objects, fetched by the server's own rules, at most `LARGEST_SIDE` pixels on a side."""

    def __init__(self, loader: ImageLoader) -> None:
        self._loader = loader
        self.unreachable: dict[str, str] = {}
        """By image, why it could not be loaded."""

    def example(self, one: StoredObject) -> Example:
        """An object as a training example. Its image is fetched when it is needed."""
        annotator = "" if one.annotator is None else str(one.annotator)
        return Example(
            one.image, partial(self._image, one), partial(self._target, one), label=one.label or "", annotator=annotator
        )

    def _image(self, one: StoredObject) -> NDArray[np.uint8]:
        try:
            photo = self._loader.load(ImageReference(one.image, one.task))
        except ValueError as error:
            self.unreachable[one.image] = str(error)
            raise
        if photo.size != one.size:
            self.unreachable[one.image] = (
                f"the mask was drawn on {_size(one.size)} pixels, the image has {_size(photo.size)}"
            )
            raise ValueError(f"{one.image}: {self.unreachable[one.image]}")
        return np.asarray(cv2.resize(photo.pixels, _fitted(one.size)[::-1], interpolation=cv2.INTER_AREA), np.uint8)

    def _target(self, one: StoredObject) -> NDArray[np.int8]:
        mask = one.read_mask().astype(np.uint8)
        return cv2.resize(mask, _fitted(one.size)[::-1], interpolation=cv2.INTER_NEAREST).astype(np.int8)


def _fitted(size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) with the photo's aspect ratio, no side above `LARGEST_SIDE`."""
    factor = min(1.0, LARGEST_SIDE / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"


def retention_set() -> list[Sample]:
    """The fixed set on which no head may get much worse: the photos of the check set."""
    return [photo.load() for photo in check_set().photos]


def recipe(settings: Settings) -> FinetuneConfig:
    """How a job learns with these settings."""
    return FinetuneConfig(
        device=choose_device(settings.device),
        max_seconds=settings.finetune_seconds,
        zoom=settings.zoom == "auto",
        proposal_images=PROPOSAL_IMAGES,
    )


def served(versions: Versions, project: int, number: int | None, base: SkipClick) -> SkipClick:
    """The model that serves annotators while the pointer says `number`: as in `heads.py`, the base if that version
    cannot be used (for example, one of another checkpoint)."""
    if number is None:
        return base
    try:
        return versions.version(project, number).model(base)
    except ValueError as error:
        logger.warning("the candidate is compared with the base model: %s", error)
        return base


def limit_resources(settings: Settings) -> None:
    """Give the whole process the lowest priority for the processor, and limit its memory."""
    # The server starts a job in its own session; one started by hand shares its session with its user's other work,
    # which must keep its share.
    if os.getsid(0) == os.getpid():
        lower(os.getpid())
    else:
        os.nice(19)
    threads = settings.finetune_threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    if choose_device(settings.device) == "cpu":  # a GPU's driver maps far more than it uses
        resource.setrlimit(resource.RLIMIT_DATA, (settings.finetune_memory_bytes, settings.finetune_memory_bytes))
