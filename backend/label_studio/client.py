"""The part of Label Studio's REST interface that this server uses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import urljoin

import requests

from backend.http_client import DeadlineAdapter, connection_advice, content_of, new_session
from backend.label_studio import json_bodies
from backend.label_studio.auth import AuthorizationError, LabelStudioAuth, redirect_trouble

_TRIES = 4
_MAX_BYTES = 512 << 20  # of an answer: a page of tasks has all their masks

T = TypeVar("T")


class ApiError(ValueError):
    """Label Studio did not return what was requested; `status` is its HTTP status, None if there was no answer."""

    def __init__(self, sentence: str, status: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status


class LabelStudioApi:
    """Reads with the server's key. Thread-safe."""

    def __init__(self, auth: LabelStudioAuth, timeout: float) -> None:
        self._auth = auth
        self._timeout = timeout

    def get(self, path: str, **query: str | int) -> Any:
        """The decoded JSON of `GET path?query`. Raises `ApiError`."""
        try:
            header = self._auth.header()
            answer, content = self._get(path, header, query)
            if answer.status_code == 401 and header is not None:
                answer, content = self._get(path, self._auth.header(refused=header), query)
        except AuthorizationError as error:
            raise ApiError(str(error), 401) from None
        except (OSError, ValueError) as error:  # all of requests' errors, and missing certificate files
            advice = connection_advice(error)
            sentence = f"tried GET {self._auth.url}{path}: {type(error).__name__}"
            raise ApiError(f"{sentence}; {advice}" if advice else sentence) from None
        if answer.is_redirect:
            target = urljoin(answer.url, answer.headers["Location"])
            trouble = redirect_trouble(self._auth.url, answer.url, target) or f"it redirects to {target[:200]}"
            raise ApiError(f"tried GET {self._auth.url}{path}: {trouble}", answer.status_code)
        if answer.status_code != 200:
            raise ApiError(f"tried GET {self._auth.url}{path}: status {answer.status_code}", answer.status_code)
        try:
            return json_bodies.loads(content, is_trusted=True)  # masks as lists have millions of numbers
        except ValueError:
            raise ApiError(f"tried GET {self._auth.url}{path}: the answer is not JSON", 200) from None

    def _get(self, path: str, header: str | None, query: dict[str, str | int]) -> tuple[requests.Response, bytes]:
        def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
            if header is not None:
                request.headers["Authorization"] = header
            return request

        with (
            new_session(DeadlineAdapter.within(self._timeout)) as session,
            session.get(
                self._auth.url + path,
                params=query,
                auth=authorize,
                timeout=self._timeout,
                allow_redirects=False,
                stream=True,
            ) as answer,
        ):
            return answer, content_of(answer, _MAX_BYTES)


def project_tasks(
    api: LabelStudioApi, project: int, pause: float, page_size: int = 100, **query: str
) -> Iterator[Mapping[str, Any]]:
    """A project's tasks as Label Studio stores them, fetched page by page; `query` adds parameters. Raises
    `ApiError`."""
    num_read, total, page = 0, 1, 0
    while num_read < total:
        page += 1
        paging: dict[str, str | int] = {
            "project": project,
            "page": page,
            "page_size": page_size,
            "resolve_uri": "false",
        }
        try:
            answer = get_object(api, "/api/tasks/", pause, **paging, **query)
        except ApiError as error:
            if error.status == 404 and page > 1:
                return  # tasks were deleted while we read, and the last page with them
            raise
        tasks, total = answer.get("tasks") or [], int(answer.get("total") or 0)
        if not tasks:
            return
        num_read += len(tasks)
        yield from tasks


def get_object(api: LabelStudioApi, path: str, pause: float, **query: str | int) -> Mapping[str, Any]:
    """A JSON object from Label Studio, with retries. Raises `ApiError`."""

    def may_pass(error: Exception) -> bool:
        return isinstance(error, ApiError) and (error.status is None or error.status >= 500)

    answer = patiently(lambda: api.get(path, **query), may_pass, pause)
    if not isinstance(answer, dict):
        raise ApiError(f"tried GET {path}: the answer is not a JSON object")
    return answer


def may_exist(api: LabelStudioApi, project: int) -> bool:
    """Whether Label Studio has a project; also true if it does not answer, or refuses this server's key."""
    try:
        api.get(f"/api/projects/{project}/")
    except ApiError as error:
        return error.status != 404
    return True


def patiently(ask: Callable[[], T], may_pass: Callable[[Exception], bool], pause: float) -> T:
    """`ask()`, retried after increasing pauses while the error `may_pass`."""
    for attempt in range(_TRIES - 1):
        try:
            return ask()
        except Exception as error:
            if not may_pass(error):
                raise
        time.sleep(pause * 2**attempt)
    return ask()
