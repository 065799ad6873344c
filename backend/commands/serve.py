"""`python -m backend serve`: messages for the person who starts the server."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from backend.label_studio.labeling_config import EXAMPLE
from backend.settings import Settings, is_private, listening_url


def warnings(settings: Settings) -> list[str]:
    """Settings that are valid, but probably not intended."""
    found = []
    host = urlsplit(settings.label_studio_url).hostname or ""
    if in_container() and (host == "localhost" or host.startswith("127.") or host == "::1"):
        found.append(
            f"LABEL_STUDIO_URL={settings.label_studio_url} means this container itself; name Label Studio's host, such "
            "as http://host.docker.internal:8080, or its service in the compose file"
        )
    if settings.label_studio_api_key is None:
        found.append("LABEL_STUDIO_API_KEY is not set: images that were uploaded to Label Studio cannot be fetched")
    if not is_private(settings.host) and settings.basic_auth_user is None:
        found.append(
            f"HOST={settings.host} without a password: everybody who can reach port {settings.port} can segment photos "
            "and start trainings; set BASIC_AUTH_USER and BASIC_AUTH_PASS, or keep the port in a private network"
        )
    if settings.workers > 1:
        found.append(
            f"WORKERS={settings.workers}: each has its own model, caches and metrics; more THREADS are cheaper"
        )
    return found


def in_container() -> bool:
    """Whether this process runs in a container, by the marks that Docker, Podman and Kubernetes leave."""
    marks = (Path("/.dockerenv"), Path("/run/.containerenv"))
    return any(mark.exists() for mark in marks) or bool({"container", "KUBERNETES_SERVICE_HOST"} & os.environ.keys())


def listening_trouble(settings: Settings) -> str | None:
    """Why this machine cannot listen at HOST and PORT, or None. A port in use is no reason: the other process may be
    about to end."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.host, settings.port))
    except PermissionError:
        return f"PORT={settings.port} needs special rights; use one above 1023"
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return None
        return (
            f"HOST={settings.host} is not an address of this machine ({error.strerror}); HOST=0.0.0.0 listens on all "
            "IPv4 addresses, HOST=:: on those of IPv6 too"
        )
    return None


def welcome(settings: Settings) -> str:
    """How to connect Label Studio."""
    return f"""\
To connect Label Studio:
  1. Project > Settings > Labeling Interface > Code: paste the config below, with your labels in both tags.
  2. Project > Settings > Model > Connect Model: {listening_url(settings)}, switch on "interactive
     preannotations". Label Studio 1.23 refuses private addresses unless it was started with
     ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false.
  3. Open a task, switch on "Auto-Annotation", pick the Auto-Detect tool and a label, click on the object.
     Alt-click marks what does not belong to it.
  If the smart tool does nothing: python -m backend doctor --project ID

{EXAMPLE}
"""
