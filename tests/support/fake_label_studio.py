"""A stand-in for Label Studio's REST interface: answers of the shapes that version 1.23.2 gave to the same requests."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from backend.label_studio.labeling_config import EXAMPLE

LEGACY = "0123456789abcdef0123456789abcdef01234567"


def jwt(**claims: Any) -> str:
    """A JSON web token with these claims; nobody here checks its signature."""
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().strip("=") for part in ({}, claims, 1))


PERSONAL = jwt(token_type="refresh", jti="personal")
ACCESS = jwt(token_type="access", exp=4e9)


@dataclass
class FakeLabelStudio:
    """What it holds; tests change this before they ask."""

    url: str = ""
    keys: dict[str, str] = field(default_factory=lambda: {"Bearer": ACCESS})
    """The credentials that are taken, by scheme; legacy tokens (`Token`) are off by default."""
    personal: str = PERSONAL
    access: str = ACCESS
    """What `personal` is exchanged for."""
    label_config: str = EXAMPLE
    projects: tuple[int, ...] = (1,)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    backends: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    health: dict[str, Any] = field(default_factory=lambda: {"status": "UP", "model_class": "SkipClick"})
    """What the connected backend, which this server plays too, answers to /health."""
    not_ready: str = ""
    watch: Callable[[str], None] | None = None
    """Called with the path of a GET before it is answered."""
    agents: list[str] = field(default_factory=list)
    """Who asked: the User-Agent of each request."""
    redirect: str = ""
    """Where all GETs are sent instead, as by a proxy in front; the path is put behind it."""
    failures: list[int] = field(default_factory=list)
    """Statuses of the next GETs, instead of their answers."""

    def answer(self, path: str, query: dict[str, list[str]], authorization: str) -> tuple[int, Any]:
        """Status and body (bytes, or anything that JSON can say) of a GET."""
        if self.watch is not None:
            self.watch(path)
        if self.failures:
            return self.failures.pop(0), {}
        if path == "/api/version/":
            return 200, {"release": "1.23.2", "edition": "Community"}
        if path == "/backend/health":
            return 200, self.health
        if path == "/backend/ready":
            return (503, {"error": self.not_ready}) if self.not_ready else (200, {"status": "READY"})
        scheme, _, key = authorization.partition(" ")
        if self.keys.get(scheme) != key:
            detail = "Invalid token." if authorization else "Authentication credentials were not provided."
            return 401, {"status_code": 401, "version": "1.23.2", "detail": detail, "exc_info": None}
        if path == "/api/current-user/whoami":
            return 200, {"id": 1, "email": "annotator@example.com", "username": ""}
        if path == "/api/projects/":
            return 200, {
                "count": len(self.projects),
                "next": None,
                "results": [self._project(n) for n in self.projects],
            }
        if path.startswith("/api/projects/"):
            number = int(path.split("/")[3])
            if number in self.projects:
                return 200, self._project(number)
            return 404, {"status_code": 404, "detail": "No Project matches the given query."}
        if path == "/api/ml/":
            return 200, [backend for backend in self.backends if str(backend["project"]) == query["project"][0]]
        if path == "/api/tasks/":
            asked = json.loads(query["query"][0])["filters"]["items"] if "query" in query else []
            return self._page(int(query.get("page", "1")[0]), int(query["page_size"][0]), asked)
        if path.startswith("/api/annotations/"):
            found = [one for task in self.tasks for one in task["annotations"] if str(one["id"]) == path.split("/")[3]]
            return (
                (200, found[0])
                if found
                else (404, {"status_code": 404, "detail": "No Annotation matches the given query."})
            )
        return (200, self.files[path]) if path in self.files else (404, {"detail": "Not found."})

    def _page(self, number: int, size: int, filters: list[dict[str, Any]]) -> tuple[int, Any]:
        """Filters: by ids of tasks, or for those that were annotated."""
        ids = {one["value"] for one in filters if one["filter"] == "filter:tasks:id"}
        tasks = [task for task in self.tasks if not filters or (task["id"] in ids if ids else task.get("annotations"))]
        page = tasks[(number - 1) * size : number * size]
        if number > 1 and not page:
            return 404, {"status_code": 404, "detail": "Invalid page."}
        return 200, {"total": len(tasks), "tasks": page}

    def _project(self, number: int) -> dict[str, Any]:
        return {"id": number, "title": f"project {number}", "label_config": self.label_config, "model_version": ""}

    def connect(self, **changes: Any) -> None:
        """Connect a backend, interactive and well, unless `changes` say otherwise."""
        record = {
            "id": len(self.backends) + 1,
            "state": "CO",
            "readable_state": "Connected",
            "is_interactive": True,
            "url": f"{self.url}/backend",
            "error_message": None,
            "title": "SkipClick",
            "auth_method": "NONE",
            "project": 1,
        }
        self.backends.append(record | changes)


@contextmanager
def fake_label_studio() -> Iterator[FakeLabelStudio]:
    """A running one, on the loopback interface."""
    state = FakeLabelStudio()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.agents.append(self.headers.get("User-Agent", ""))
            parts = urlsplit(self.path)
            if state.redirect:
                self.send_response(301)
                self.send_header("Location", state.redirect + self.path)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            status, body = state.answer(parts.path, parse_qs(parts.query), self.headers.get("Authorization", ""))
            self._send(status, body)

        def do_POST(self) -> None:
            state.agents.append(self.headers.get("User-Agent", ""))
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/api/token/refresh/" and body == {"refresh": state.personal}:
                self._send(200, {"access": state.access})
            else:
                self._send(401, {"detail": "Token is invalid or expired", "code": "token_not_valid"})

        def _send(self, status: int, body: Any) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
