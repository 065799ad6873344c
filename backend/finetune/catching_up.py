"""Work too heavy for the server: events with many masks, and projects whose annotations have to be read again.

    python -m backend.finetune --catch-up

A separate process does it, with the memory limit of a training. An event that kills it several times is set aside by
the store; a project that cannot be read from Label Studio is tried again later.
"""

from __future__ import annotations

import logging

from backend.finetune.store import AnnotationStore
from backend.finetune.sync import collect
from backend.label_studio.auth import build_auth
from backend.label_studio.client import ApiError, LabelStudioApi
from backend.label_studio.labeling_config import ConfigError
from backend.settings import Settings

logger = logging.getLogger(__name__)


def catch_up(settings: Settings) -> None:
    """Apply all heavy events, then read again what a damaged database contained."""
    store = AnnotationStore(settings.model_dir, settings.image_max_pixels)
    logger.info("%d heavy events applied", store.apply_heavy())
    api = LabelStudioApi(build_auth(settings), settings.image_timeout)
    for project in store.to_collect():
        try:
            counts = collect(api, store, project)
        except ApiError as error:
            if error.status == 404:
                store.collected(project)  # deleted in Label Studio
            logger.warning("project %d cannot be read: %s", project, error)
        except ConfigError as error:
            store.collected(project)  # Start Training will report it
            logger.warning("project %d cannot be read: %s", project, error)
        else:
            logger.info("project %d: %d objects in %d images", project, counts.objects, counts.images)
