"""Reads the recorded requests of Label Studio; fixtures/label_studio/SOURCE.md says where they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORDINGS = Path(__file__).parents[1] / "fixtures" / "label_studio"


def load_recording(name: str) -> dict[str, Any]:
    """A recording by the beginning of its file name, such as "04"."""
    (path,) = RECORDINGS.glob(f"{name}*.json")
    recording: dict[str, Any] = json.loads(path.read_text())
    return recording


def recorded_requests(name: str, path: str | None = None) -> list[dict[str, Any]]:
    """The requests of a recording in order; those to `path` alone if it is given."""
    requests = [r for step in load_recording(name)["steps"] for r in step.get("label_studio_to_backend", ())]
    return [r for r in requests if path is None or r["path"] == path]


def clicked_bodies(name: str) -> list[dict[str, Any]]:
    """The bodies of a recording's interactive requests, those that carry clicks, in order."""
    bodies = [request["body"] for request in recorded_requests(name, "/predict")]
    return [body for body in bodies if (body["params"]["context"] or {}).get("result")]
