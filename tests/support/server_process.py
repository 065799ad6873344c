"""The environment of a server that a test starts."""

from __future__ import annotations

import os
from pathlib import Path


def environment(folder: Path, **settings: str) -> dict[str, str]:
    own = {"HOST": "127.0.0.1", "DEVICE": "cpu", "DTYPE": "float32", "MODEL_DIR": str(folder), "LOG_FORMAT": "json"}
    own["RUNTIME"] = os.environ["RUNTIME"]  # see conftest.py
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "OMP_NUM_THREADS": "1"} | own | settings
