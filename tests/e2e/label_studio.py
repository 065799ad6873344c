"""A throw-away Label Studio: the server on a fresh data folder, and the REST calls of the test."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from bench.serving.loopback import free_port, local_session

from .processes import server

EMAIL = "annotator@example.com"
PASSWORD = "only-for-this-test"


@dataclass(frozen=True, slots=True)
class LabelStudio:
    """A running Label Studio and the session of its one user."""

    url: str
    session: requests.Session

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """The decoded JSON answer of one REST call; raises RuntimeError if it was refused."""
        answer = self.session.request(method, self.url + path, timeout=120, **arguments)
        if not answer.ok:
            raise RuntimeError(f"{method} {path} was answered {answer.status_code}: {answer.text[:500]}")
        return answer.json()

    def personal_access_token(self) -> str:
        """A key of the kind that Label Studio hands out by default (legacy tokens are off); a second one is refused."""
        token: str = self.call("POST", "/api/token/")["token"]
        return token

    def create_project(self, title: str, labeling_config: str) -> int:
        """The id of a new project."""
        project: int = self.call("POST", "/api/projects/", json={"title": title, "label_config": labeling_config})["id"]
        return project

    def connect_backend(self, project: int, backend_url: str) -> dict[str, Any]:
        """Label Studio's record of the backend, connected for interactive use."""
        record = {"project": project, "url": backend_url, "title": "SkipClick", "is_interactive": True}
        answer: dict[str, Any] = self.call("POST", "/api/ml/", json=record)
        return answer

    def upload(self, project: int, photo: Path) -> int:
        """The id of the task that the uploaded photo became."""
        with photo.open("rb") as file:
            self.call("POST", f"/api/projects/{project}/import", files={"file": (photo.name, file)})
        (task,) = self.call("GET", f"/api/tasks/?project={project}")["tasks"]
        number: int = task["id"]
        return number

    def upload_all(self, project: int, photos: Mapping[str, bytes]) -> dict[str, int]:
        """The ids of the tasks that photos became, by file name; the project must have no others."""
        for name, content in photos.items():
            self.call("POST", f"/api/projects/{project}/import", files={"file": (name, content)})
        tasks = self.call("GET", f"/api/tasks/?project={project}&page_size={len(photos)}&fields=all")["tasks"]
        found = {task["data"]["image"].rpartition("/")[2].partition("-")[2]: task["id"] for task in tasks}
        if found.keys() != photos.keys():
            raise RuntimeError(f"tasks of {sorted(found)} for photos {sorted(photos)}")
        return found

    def annotate(self, task: int, result: list[dict[str, Any]], **changes: Any) -> int:
        """The id of a new annotation, submitted as the editor does it."""
        annotation = {"result": result, "lead_time": 5.0, **changes}
        number: int = self.call("POST", f"/api/tasks/{task}/annotations/", json=annotation)["id"]
        return number

    def start_training(self, backend: int) -> None:
        """What the button Start Training does; Label Studio answers nothing."""
        answer = self.session.post(f"{self.url}/api/ml/{backend}/train", json={}, timeout=120)
        if not answer.ok:
            raise RuntimeError(f"Start Training was answered {answer.status_code}: {answer.text[:500]}")

    def predictions(self, task: int) -> list[dict[str, Any]]:
        """The predictions stored for a task (reading the task itself would make Label Studio ask for one)."""
        stored: list[dict[str, Any]] = self.call("GET", f"/api/predictions/?task={task}")
        return stored

    def annotations(self, task: int) -> list[dict[str, Any]]:
        """The annotations stored for a task."""
        stored: list[dict[str, Any]] = self.call("GET", f"/api/tasks/{task}/annotations/")
        return stored


@contextmanager
def label_studio(folder: Path) -> Iterator[LabelStudio]:
    """The Label Studio installed beside this Python, on the loopback interface; `folder` takes its files."""
    data = folder / "label-studio"
    data.mkdir(parents=True)
    port = free_port()
    url = f"http://localhost:{port}"
    program = Path(sys.executable).with_name("label-studio")
    command = [str(program), "start", "--no-browser", "--log-level", "INFO"]
    command += ["--internal-host", "127.0.0.1", "--port", str(port), "--data-dir", str(data)]
    command += ["--username", EMAIL, "--password", PASSWORD]
    log = folder / "label-studio.log"
    with server(command, _environment(data), log, f"{url}/health", patience=300), local_session() as session:
        _log_in(session, url)
        yield LabelStudio(url, session)


def _environment(data: Path) -> dict[str, str]:
    """Nothing of the caller's but the search path: Label Studio reads many names from the environment."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(data),
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        # By default Label Studio calls no backend and no webhook at a loopback address.
        "ML_BLOCK_LOCAL_IP": "false",
        "SSRF_PROTECTION_ENABLED": "false",
    }


def _log_in(session: requests.Session, url: str) -> None:
    """Log in as a browser does: Django wants its cross-site token back, and renews it at the login."""
    page = f"{url}/user/login/"
    session.get(page, timeout=60).raise_for_status()
    form = {"email": EMAIL, "password": PASSWORD, "csrfmiddlewaretoken": session.cookies["csrftoken"]}
    answer = session.post(page, data=form, headers={"Referer": page}, allow_redirects=False, timeout=60)
    if not answer.is_redirect:
        raise RuntimeError(f"Label Studio refused the login with status {answer.status_code}")
    session.headers.update({"X-CSRFToken": session.cookies["csrftoken"], "Referer": url})
