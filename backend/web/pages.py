"""What a person opens in a browser: `/ui` with its files, and what it reads: `/status` and `/openapi.json`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
from flask import Blueprint, Response, jsonify, send_from_directory

from backend.finetune.scheduler import Training
from backend.readiness import Readiness
from skipclick import __version__

_UI = Path(__file__).parents[1] / "ui"
_OPENAPI = Path(__file__).with_name("openapi.json")

# Nothing from elsewhere, nothing inline, and nobody may put the page into theirs.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def build_pages(
    readiness: Readiness,
    training: Training | None,
    place: Callable[[], AbstractContextManager[None]],
    with_proposals: bool,
) -> Blueprint:
    """The routes. `place` gives one of the places for what takes time to put together; `with_proposals`: whether opened
    tasks are answered with proposals where they help."""
    pages = Blueprint("pages", __name__)

    @pages.get("/ui")
    def page() -> Response:
        return _file("index.html")

    @pages.get("/ui/<name>")
    def file(name: str) -> Response:
        return _file(name)

    @pages.get("/status")
    def status() -> Response:
        with place():
            return jsonify(status_of(readiness, training, with_proposals))

    @pages.get("/openapi.json")
    def openapi() -> Response:
        description = orjson.loads(_OPENAPI.read_bytes())
        description["info"]["version"] = __version__
        return jsonify(description)

    return pages


def status_of(readiness: Readiness, training: Training | None, with_proposals: bool) -> dict[str, Any]:
    """How the server is, for people: what serves, and the caches and the queue now."""
    trouble = readiness.trouble()
    status: dict[str, Any] = {"version": __version__, "ready": trouble is None, "trouble": trouble}
    status["folders"] = readiness.folder_troubles()
    status["learning"] = training.state() if training is not None else None
    service = readiness.loaded()
    if service is None:
        return status
    caches = {
        name: {"hits": one.hits, "misses": one.misses, "entries": one.entries, "bytes": one.bytes}
        for name, one in service.annotator.cache_stats().items()
    }
    return status | {
        "model": service.annotator.version,
        "device": service.device,
        "device_memory": service.device_memory(),
        "runtime": service.runtime,
        "dtype": service.dtype,
        "resolution": service.resolution,
        "caches": caches,
        "encodes": service.annotator.encodes(),
        "queue": service.annotator.queue(),
        "training": _trainings(training) if training is not None else None,
        "proposals": {
            "switched_on": with_proposals,
            "projects": [
                {"project": project, "version": version.name, "measured": version.proposals}
                for project, version in service.annotator.in_service().items()
            ],
        },
    }


def _trainings(training: Training) -> list[dict[str, Any]]:
    """The newest training of each project, the latest first, and the number of its last one that left a picture."""
    return [
        asdict(job) | {"picture": next(iter(training.jobs.pictured(job.project)), None)}
        for job in reversed(training.jobs.newest_of_each())
    ]


def _file(name: str) -> Response:
    response = send_from_directory(_UI, name)
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-cache"  # ask whether it changed, as it does with each version
    return response
