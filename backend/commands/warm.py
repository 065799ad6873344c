"""`python -m backend warm --project N`: prepare a project's images before anyone opens them.

Reads the project's tasks from Label Studio and sends them to the running server one after the other. The server
prepares them at the lowest priority, so annotators hardly notice.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

import orjson
import requests
from tqdm import tqdm

from backend.http_client import DeadlineAdapter, new_session
from backend.label_studio.auth import LabelStudioAuth, as_is
from backend.label_studio.client import LabelStudioApi, get_object, patiently, project_tasks
from backend.settings import Settings, listening_url, revealed

_AT_ONCE = 2  # while one image is encoded, the next one is fetched
_TIMEOUT = 300.0  # seconds for one image: it waits behind all annotators
_SLACK = 16  # images that the server may still be copying to its largest cache


class ServerError(ValueError):
    """The running server cannot be used; the message says why."""


@dataclass
class Summary:
    """What became of a project's images."""

    total: int
    prepared: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    """Reasons, by task id."""
    stopped: str = ""
    """Why the remaining images were not tried; empty if all were."""

    def lines(self) -> Iterator[str]:
        """The summary in words, the most frequent reason first, each with a few of its tasks."""
        yield f"{self.prepared} of {self.total} images are prepared."
        for reason, count in Counter(self.failures.values()).most_common():
            tasks = [str(task) for task, why in self.failures.items() if why == reason]
            yield f"{count} failed (task {', '.join(tasks[:5])}{', ...' * (count > 5)}): {reason}"
        if self.stopped:
            yield f"Stopped early: {self.stopped}"


@dataclass(frozen=True)
class Server:
    """The running server's route /warm. `pause`: seconds before the first retry; each further pause is twice as
    long."""

    url: str
    login: tuple[str, str] | None = field(default=None, repr=False)
    pause: float = 1.0
    is_here: bool = False
    """Whether it runs on this machine, which is reached without a proxy."""

    def prepare(self, task: Mapping[str, Any], label_config: str, project: int) -> int:
        """Have one task's image prepared. Returns how many images the server has cached.

        Raises `ServerError` if the server cannot be used, `ValueError` with its reason if it refuses this image.
        """
        body = {"tasks": [task], "label_config": label_config, "project": str(project)}

        def ask() -> requests.Response:
            with new_session(DeadlineAdapter.within(_TIMEOUT)) as session:
                session.trust_env = not self.is_here
                answer = session.post(
                    f"{self.url}/warm", orjson.dumps(body), auth=self.login or as_is, timeout=_TIMEOUT
                )
            answer.raise_for_status()
            return answer

        try:
            return int(patiently(ask, _may_pass, self.pause).json()["kept"])
        except requests.HTTPError as error:
            status = error.response.status_code
            if status in (401, 403, 404, 405, 501):
                raise ServerError(f"{self.url}/warm answers with status {status}: another server or password") from None
            raise ValueError(_reason(error.response)) from None
        except (KeyError, TypeError):
            raise ServerError(f"{self.url}/warm does not answer like this server") from None
        except requests.RequestException as error:
            raise ServerError(f"no answer from {self.url} ({type(error).__name__}); is the server running?") from None


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0 if all images are prepared, 1 if some are not, 2 for wrong settings or options."""
    parser = argparse.ArgumentParser(prog="python -m backend warm", description=__doc__.partition("\n")[0])
    parser.add_argument("--project", type=int, required=True, help="id of the project in Label Studio")
    parser.add_argument("--server", help="address of the running server (default: this machine, at HOST and PORT)")
    options = parser.parse_args(arguments)
    try:
        settings = Settings.from_environment(os.environ)
        key, timeout = revealed(settings.label_studio_api_key), settings.image_timeout
        api = LabelStudioApi(LabelStudioAuth(settings.label_studio_url, key, timeout), timeout)
        password = revealed(settings.basic_auth_pass)
        login = (settings.basic_auth_user, password) if settings.basic_auth_user and password else None
        server = Server((options.server or listening_url(settings)).rstrip("/"), login, is_here=not options.server)
        summary = warm_project(api, server, options.project)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(summary.lines()))
    return 1 if summary.failures or summary.stopped else 0


def warm_project(api: LabelStudioApi, server: Server, project: int) -> Summary:
    """Have the images of all tasks prepared, or as many as the server can cache. Raises `ApiError` or `ServerError`."""
    label_config = str(get_object(api, f"/api/projects/{project}/", server.pause).get("label_config") or "")
    tasks = list(project_tasks(api, project, server.pause))
    summary = Summary(len(tasks))
    with ThreadPoolExecutor(_AT_ONCE) as pool, tqdm(total=len(tasks), unit="image", disable=None) as bar:
        asked = {pool.submit(server.prepare, task, label_config, project): int(task["id"]) for task in tasks}
        try:
            for answer in as_completed(asked):
                bar.update()
                _note(summary, asked[answer], answer.result)
                if summary.stopped:
                    break
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return summary


def _note(summary: Summary, task_id: int, result: Callable[[], int]) -> None:
    try:
        kept = result()
    except ServerError:
        raise
    except ValueError as error:
        summary.failures[task_id] = str(error)
        return
    summary.prepared += 1
    if summary.prepared > kept + _SLACK:
        summary.stopped = (
            f"the server caches no more than {kept} images and evicts the first ones; raise FEATURE_CACHE_BYTES, or "
            "set FEATURE_CACHE_DIR and FEATURE_CACHE_DIR_BYTES"
        )


def _may_pass(error: Exception) -> bool:
    """Whether a request to the server failed because it is busy or starting."""
    if isinstance(error, requests.HTTPError):
        return error.response.status_code in (502, 503, 504)
    return isinstance(error, requests.RequestException)


def _reason(answer: requests.Response) -> str:
    """The message of one of the server's errors."""
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"
