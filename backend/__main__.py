"""`python -m backend`: check the settings and become gunicorn."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from backend.settings import Settings


def main() -> None:
    """Never returns: the process becomes gunicorn, or ends with one line that says why not."""
    try:
        Settings.from_environment(os.environ)
    except ValueError as error:
        sys.exit(f"cannot start: {error}")
    config = Path(__file__).with_name("gunicorn.conf.py")
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", "--config", str(config), "backend.wsgi:app"])


if __name__ == "__main__":
    main()
