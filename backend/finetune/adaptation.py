"""Immediate adaptation: a project's head learns for a few seconds from the latest masks (FINETUNE_IMMEDIATE).

    python -m backend.finetune --project 12 --adapt

Unlike a training (`run_job.py`) it evaluates nothing: the result is served at once. It continues from the version in
service and stays near the one from which adaptation started, the base or one that a training evaluated; `about.json`
names that one as "adapted" "from". A rollback returns to it, past all adaptations.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from backend.device import choose_device
from backend.finetune.run_job import LARGEST_SIDE, Photos, served
from backend.finetune.store import AnnotationStore, StoredObject
from backend.finetune.sync import collect
from backend.finetune.versions import Version, Versions
from backend.images.loader import build_images
from backend.label_studio.auth import build_auth
from backend.label_studio.client import LabelStudioApi
from backend.settings import Settings
from skipclick import load_checkpoint
from train.finetune.adapt import AdaptConfig, Adapted, adapt, seen

logger = logging.getLogger(__name__)


def adapt_project(settings: Settings, project: int, config: AdaptConfig | None = None) -> Version | None:
    """Learn from the latest annotated image and from those before it, as Label Studio itself reports them; put the
    result in service. None if there was nothing to learn from, or somebody promoted another version meanwhile.

    Raises `ValueError` if Label Studio does not answer.
    """
    config = config or AdaptConfig()
    recipe = replace(config.recipe, device=choose_device(settings.device))
    auth = build_auth(settings)
    store, versions = AnnotationStore(settings.model_dir, settings.image_max_pixels), Versions(settings.model_dir)
    tasks = {one.task for one in newest_images(store.objects(project), config.num_images + 1)}
    collect(LabelStudioApi(auth, settings.image_timeout), store, project, tasks=tasks)
    objects = [one for one in newest_images(store.objects(project), config.num_images + 1) if one.task in tasks]
    if not objects:
        return None
    serving = versions.current(project)
    begun = _begun(versions, project, serving)
    base = load_checkpoint(settings.checkpoint)
    start, model = served(versions, project, begun["from"], base), served(versions, project, serving, base)
    photos = Photos(build_images(settings, auth, LARGEST_SIDE))
    newest = [photos.example(one) for one in objects if one.image == objects[-1].image]
    earlier = [photos.example(one) for one in objects if one.image != objects[-1].image]
    before = Adapted(model, seen(start, earlier, recipe), begun["steps"])
    after = adapt(before, start, newest, replace(config, recipe=recipe))
    if after is before:
        logger.warning("there is no usable mask of %s: %s", objects[-1].image, photos.unreachable)
        return None
    about = {"objects": len(objects), "adapted": begun | {"steps": after.num_steps}}
    version = versions.write(project, after.model, base, about=about, report={})
    if versions.current(project) != serving:
        logger.warning("%s is not served: another version was put in service meanwhile", version.name)
        return None
    versions.promote(project, version.number, in_place_of=serving if serving != begun["from"] else None)
    _forget_adaptations(versions, project, {version.number, serving})
    logger.info("%s: %d objects, %d steps in all", version.name, len(objects), after.num_steps)
    return version


def newest_images(objects: Sequence[StoredObject], count: int) -> list[StoredObject]:
    """The objects of the latest annotated images, `count` at most; those of the newest come last."""
    images = list(dict.fromkeys(one.image for one in sorted(objects, key=lambda one: one.id, reverse=True)))[:count]
    places = {image: place for place, image in enumerate(reversed(images))}
    return sorted((one for one in objects if one.image in places), key=lambda one: (places[one.image], one.id))


def _begun(versions: Versions, project: int, serving: int | None) -> dict[str, Any]:
    """The version from which the adaptations in service started, and how many steps they took; if there are none, the
    version in service and 0."""
    adapted = versions.version(project, serving).about.get("adapted") if serving is not None else None
    return adapted or {"from": serving, "steps": 0}


def _forget_adaptations(versions: Versions, project: int, but: set[int | None]) -> None:
    """Delete earlier adaptations. The one just replaced stays: a request may be about to load it."""
    old = (number for number in versions.numbers(project) if number not in but)
    versions.delete(project, [number for number in old if versions.version(project, number).about.get("adapted")])
