"""What gunicorn serves: `gunicorn -c backend/gunicorn.conf.py backend.wsgi:app`."""

from __future__ import annotations

import logging
import os
import sys

from backend.app import create_app
from backend.service import build_annotator, welcome
from backend.settings import Settings

_BOOT_ERROR = 3  # gunicorn's own status for "do not try again"

try:
    _settings = Settings.from_environment(os.environ)
    logging.basicConfig(
        level=_settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    _annotator = build_annotator(_settings)
    app = create_app(_settings, _annotator)
    print(welcome(_settings, _annotator.version), flush=True)
except ValueError as error:
    print(f"cannot start: {error}", file=sys.stderr)
    sys.exit(_BOOT_ERROR)
