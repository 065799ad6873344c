"""A stand-in for CVAT's server, as far as its agent and the doctor ask it: one task of one frame, requests in a queue.

Answers have the fields that the generated client of `cvat-sdk` 2.80 insists on.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

FUNCTION, TASK = 1, 7
_MOMENT = "2026-11-20T00:00:00Z"


@dataclass
class FakeCvat:
    """What it holds; tests change this before they ask."""

    url: str = ""
    version: str = "2.80.0"
    frame: bytes = b""
    """The only frame, an encoded picture."""
    size: tuple[int, int] = (0, 0)
    """(H, W) of the frame."""
    waiting: list[dict[str, Any]] = field(default_factory=list)
    """Parameters of the requests that the agent has not taken yet."""
    completed: list[dict[str, Any]] = field(default_factory=list)
    failed: list[Any] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    """Paths of all requests."""
    models: list[dict[str, Any]] | None = field(default_factory=list)
    """What the server has of its own or of Nuclio's functions; None: it was started without."""
    token: str | None = None
    """Who lists the models must show it."""

    def click(self, positive: list[Any], negative: list[Any], box: list[Any] | None = None) -> None:
        """Queue a click on the frame."""
        prompts = {"pos_points": positive, "neg_points": negative, "obj_bbox": box or []}
        self.waiting.append({"type": "interact", "task": TASK, "frame": 0, **prompts})

    def get(self, path: str, authorization: str) -> Any:
        """The answer to a GET: bytes for a picture, an int for a bare status, else JSON."""
        if path == "/api/lambda/functions":
            if self.token is not None and authorization != f"Bearer {self.token}":
                return 401
            return 404 if self.models is None else self.models
        return {
            "/api/server/about": {
                "name": "CVAT", "description": "", "version": self.version, "logo_url": "", "subtitle": "",
            },
            f"/api/functions/{FUNCTION}": {
                "id": FUNCTION, "name": "SkipClick", "provider": "native", "kind": "interactor", "min_pos_points": 1,
                "min_neg_points": 0, "startswith_box": False, "startswith_box_optional": True,
            },
            f"/api/tasks/{TASK}": self._task(),
            f"/api/tasks/{TASK}/data/meta": self._meta(),
            f"/api/tasks/{TASK}/data/": self.frame,
            "/api/labels": {"count": 0, "next": None, "previous": None, "results": []},
        }.get(path, 404)  # fmt: skip

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a POST of the agent."""
        if path.endswith("/acquire"):
            is_next = body["request_category"] == "interactive" and self.waiting
            number = f"r{len(self.completed) + len(self.failed)}"
            return {"ar_assignment": {"ar_id": number, "ar_params": self.waiting.pop(0)} if is_next else None}
        if path.endswith("/complete"):
            self.completed.append(body)
        elif path.endswith("/fail"):
            self.failed.append(body)
        return {}

    def _task(self) -> dict[str, Any]:
        nothing = ("project_id", "owner", "assignee", "organization", "organization_id", "target_storage",
                   "source_storage", "guide_id", "assignee_updated_date", "validation_mode")  # fmt: skip
        return dict.fromkeys(nothing) | {
            "id": TASK, "name": "photos", "size": 1, "mode": "annotation", "data": 1, "data_chunk_size": 1,
            "data_compressed_chunk_type": "imageset", "data_original_chunk_type": "imageset", "bug_tracker": "",
            "overlap": 0, "segment_size": 1, "status": "annotation", "dimension": "2d", "subset": "",
            "consensus_enabled": False, "media_type": "image", "image_quality": 70, "url": self.url,
            "created_date": _MOMENT, "updated_date": _MOMENT, "labels": {"url": self.url},
            "jobs": {"count": 1, "completed": 0, "validation": 0, "url": self.url},
        }  # fmt: skip

    def _meta(self) -> dict[str, Any]:
        frame = {"width": self.size[1], "height": self.size[0], "name": "photo.jpg", "related_files": 0}
        return {
            "chunk_size": 1, "size": 1, "image_quality": 70, "start_frame": 0, "stop_frame": 0, "frame_filter": "",
            "frames": [frame], "deleted_frames": [], "included_frames": None, "chunks_updated_date": _MOMENT,
            "cloud_storage_id": None, "storage_method": "cache", "storage": "local",
            "sorting_method": "lexicographical",
        }  # fmt: skip


@contextmanager
def fake_cvat() -> Iterator[FakeCvat]:
    """A running one."""
    cvat = FakeCvat()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None: ...

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            cvat.seen.append(path)
            self._send(cvat.get(path, self.headers.get("Authorization", "")))

        def do_POST(self) -> None:
            cvat.seen.append(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._send(cvat.post(self.path, json.loads(body or b"{}")))

        def _send(self, answer: Any) -> None:
            status = answer if isinstance(answer, int) else 200
            body = answer if isinstance(answer, bytes) else json.dumps({} if status != 200 else answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "image/jpeg" if isinstance(answer, bytes) else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Cvat-Version", cvat.version)
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    cvat.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield cvat
    finally:
        server.shutdown()
        server.server_close()
