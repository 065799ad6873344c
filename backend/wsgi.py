"""What gunicorn serves: `gunicorn -c backend/gunicorn.conf.py backend.wsgi:app`.

The model is loaded in the background; `/health` answers meanwhile.
"""

from __future__ import annotations

import gc
import logging
import os
import sys

from backend.commands.serve import warnings, welcome
from backend.factory import Service, build_service, build_training
from backend.logs import configure_logging
from backend.readiness import Readiness
from backend.settings import Settings
from backend.web.app import build_app

_BOOT_ERROR = 3  # gunicorn's own status for "do not try again"

logger = logging.getLogger("backend")


def _load() -> Service:
    service = build_service(_settings)
    gc.collect()
    gc.freeze()  # half a million objects that stay: looking for garbage among them stops all threads for 0.3 s
    logger.info("%s", service.describe(_settings))
    for warning in warnings(_settings):
        logger.warning("%s", warning)
    for trouble in readiness.folder_troubles():
        logger.error("annotations cannot be stored, so nothing can be learnt: %s", trouble)
    print(welcome(_settings), flush=True)
    return service


def _give_up(error: BaseException) -> None:
    """Without a model there is nothing to serve: exit with one line for a wrong setting, a traceback for other
    errors."""
    if isinstance(error, ValueError):
        print(f"cannot start: {error}", file=sys.stderr, flush=True)
    else:
        logger.critical("cannot start", exc_info=error)
    os._exit(_BOOT_ERROR)  # from a thread; gunicorn's main process ends too


_settings = Settings.from_environment(os.environ)  # `python -m backend` has checked them
configure_logging(_settings.log_level, _settings.log_format)
_folders = [folder for folder in (_settings.model_dir, _settings.feature_cache_dir) if folder is not None]
readiness = Readiness.load(_load, _give_up, _folders)
training = build_training(_settings)
app = build_app(_settings, readiness, training)
