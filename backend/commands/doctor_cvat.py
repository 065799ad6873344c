"""The doctor's checks of a CVAT: whether it answers, in which version, and whether it lists this server's function."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import requests

from backend.commands.finding import Finding, Trouble, find
from backend.cvat.protocol import FUNCTION
from backend.http_client import DeadlineAdapter, connection_advice, new_session
from backend.label_studio.auth import as_is
from backend.settings import Settings

TOKEN = "CVAT_ACCESS_TOKEN"
"""The variable that `cvat-cli` reads too."""

SHAPES_SINCE, NEWEST_READ = (2, 60), (2, 80)
"""The first version whose answers are shapes, and the newest whose protocol this server was written for."""

_VARIABLES = (
    "set CVAT_SERVERLESS=1, CVAT_NUCLIO_HOST and CVAT_NUCLIO_PORT to this server as CVAT's containers reach it, and "
    "CVAT_NUCLIO_INVOKE_METHOD=dashboard, for cvat_server and cvat_worker_annotation (docs/cvat.md); restart both"
)


def examine(settings: Settings, url: str, environment: Mapping[str, str]) -> Iterator[Finding]:
    """The findings about the CVAT at `url`."""
    server = find("cvat", lambda: check_server(settings, url))
    yield server
    if not server.todo or "CVAT_ANSWER" in server.todo:
        yield find("function", lambda: check_function(settings, url, environment))


def check_server(settings: Settings, url: str) -> str:
    """Whether CVAT answers at `url`, and in which version. Raises `Trouble`."""
    found = _get(settings, f"{url}/api/server/about", {})
    version = str(found.get("version")) if isinstance(found, dict) else ""
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None:
        raise Trouble(f"{url} answers, but is not CVAT", "name the address that the browser shows, without a path")
    number = int(match[1]), int(match[2])
    if number < SHAPES_SINCE and settings.cvat_answer != "mask":
        raise Trouble(f"CVAT {version} at {url} does not understand shapes", "set CVAT_ANSWER=mask, or update CVAT")
    if number >= SHAPES_SINCE and settings.cvat_answer != "shapes":
        raise Trouble(f"CVAT {version} at {url} accepts shapes, which are far smaller", "leave CVAT_ANSWER out")
    known = "" if number <= NEWEST_READ else "; it is newer than what this server was written against"
    return f"CVAT {version} answers at {url}{known}"


def check_function(settings: Settings, url: str, environment: Mapping[str, str]) -> str:
    """Whether CVAT lists this server's function, as its own users see it. Raises `Trouble`."""
    if settings.cvat != "on":
        raise Trouble("CVAT=off: this server does not answer CVAT", "start it with CVAT=on")
    token = environment.get(TOKEN)
    if not token:
        raise Trouble(
            f"{TOKEN} is not set: CVAT lists its models only to logged-in users",
            f"create a personal access token in CVAT (your name > Profile > Security) and set {TOKEN}",
        )
    try:
        found = _get(settings, f"{url}/api/lambda/functions", {"Authorization": f"Bearer {token}"})
    except _StatusError as error:
        if error.status in (401, 403):
            raise Trouble(f"CVAT refuses {TOKEN} ({error.status})", "create a new token") from None
        raise Trouble(f"CVAT lists no models (status {error.status})", _VARIABLES) from None
    models = found if isinstance(found, list) else []
    names = [str(one.get("id")) for one in models if isinstance(one, dict)]
    mine = next((one for one in models if isinstance(one, dict) and one.get("id") == FUNCTION), None)
    if mine is None:
        raise Trouble(f"CVAT's models do not include {FUNCTION}; it has {', '.join(names) or 'none'}", _VARIABLES)
    if mine.get("kind") != "interactor":
        raise Trouble(f"CVAT's {FUNCTION} is another function, of kind {mine.get('kind')}", _VARIABLES)
    return f"CVAT offers {', '.join(name for name in names if name.startswith(FUNCTION))} under AI tools > Interactors"


class _StatusError(Trouble):
    def __init__(self, address: str, status: int) -> None:
        super().__init__(f"GET {address}: status {status}", "check CVAT's log")
        self.status = status


def _get(settings: Settings, address: str, headers: Mapping[str, str]) -> Any:
    try:
        with new_session(DeadlineAdapter.within(settings.image_timeout)) as session:
            answer = session.get(address, headers=headers, auth=as_is, timeout=settings.image_timeout)
        if answer.status_code != 200:
            raise _StatusError(address, answer.status_code)
        return answer.json()
    except requests.JSONDecodeError:
        return None
    except (OSError, ValueError) as error:
        advice = connection_advice(error) or "start CVAT, or name an address at which this machine reaches it"
        raise Trouble(f"GET {address} fails ({type(error).__name__})", advice) from None
