"""`python -m backend serve`: what the person who starts the server is told."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from backend.label_studio.labeling_config import EXAMPLE
from backend.settings import Settings


def warnings(settings: Settings) -> list[str]:
    """Settings that are possible, but hardly meant."""
    found = []
    host = urlsplit(settings.label_studio_url).hostname or ""
    if in_container() and (host == "localhost" or host.startswith("127.") or host == "::1"):
        found.append(
            f"LABEL_STUDIO_URL={settings.label_studio_url} means this container itself; name Label Studio's host, such "
            "as http://host.docker.internal:8080, or its service in the compose file"
        )
    if settings.label_studio_api_key is None:
        found.append("LABEL_STUDIO_API_KEY is not set: images that were uploaded to Label Studio cannot be fetched")
    if settings.workers > 1:
        found.append(f"WORKERS={settings.workers}: each has its own model, caches and metrics; THREADS is cheaper")
    return found


def in_container() -> bool:
    """Whether this process runs in a container, as Docker, Podman and Kubernetes let it know."""
    marks = (Path("/.dockerenv"), Path("/run/.containerenv"))
    return any(mark.exists() for mark in marks) or bool({"container", "KUBERNETES_SERVICE_HOST"} & os.environ.keys())


def welcome(settings: Settings) -> str:
    """How to connect Label Studio, for the person who starts the server."""
    address = f"http://{'localhost' if settings.host == '0.0.0.0' else settings.host}:{settings.port}"
    return f"""\
To connect Label Studio:
  1. Project > Settings > Labeling Interface > Code: paste the config below, with your labels in both tags.
  2. Project > Settings > Model > Connect Model: {address}, switch on "interactive
     preannotations". Label Studio 1.23 refuses private addresses unless it was started with
     ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false.
  3. Open a task, switch on "Auto-Annotation", pick the Auto-Detect tool and a label, click on the object.
     Alt-click says what does not belong to it.
  If the smart tool does nothing: python -m backend doctor --project ID

{EXAMPLE}
"""
