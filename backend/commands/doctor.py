"""`python -m backend doctor`: find out what is wrong between this server and Label Studio, and how to fix it.

For the most frequent complaint, "the smart tool does nothing". Annotators do not see a backend's errors, so the doctor
follows the path of a click: settings, model, Label Studio, project, connection, image, mask.
"""

from __future__ import annotations

import argparse
import json
import os
import ssl
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import numpy as np
import requests
from requests.utils import get_environ_proxies, select_proxy

from backend.commands import doctor_cvat
from backend.commands.finding import Finding, Trouble, find
from backend.commands.serve import in_container, listening_trouble
from backend.device import choose_device
from backend.factory import Service, build_service
from backend.http_client import DeadlineAdapter, connection_advice, new_session, trusted_certificates
from backend.images.decode import ImageError
from backend.images.loader import build_images
from backend.label_studio.auth import as_is, build_auth, redirect_trouble
from backend.label_studio.client import ApiError, LabelStudioApi
from backend.label_studio.editor import SmartTool
from backend.label_studio.labeling_config import (
    ConfigError,
    check_labeling_config,
    image_reference,
    labeling_config_doubts,
    parse_labeling_config,
)
from backend.label_studio.regions import read_mask
from backend.prompts import ImageReference
from backend.readiness import folder_trouble
from backend.settings import Settings, listening_url, revealed
from backend.web.app import create_app
from skipclick import Click
from skipclick.evaluation.datasets.label_studio import mask_shape

LAST_RESORT = """\
If the smart tool still does nothing, check the editor: switch on "Auto-Annotation" in the bottom bar, leave
"Auto-Accept Suggestions" off, pick the Auto-Detect tool, and choose a label before every click."""

_MODEL_PAGE = "Project > Settings > Model"


def main(arguments: Sequence[str]) -> int:
    """Print the findings as they come; the exit status is 1 if one of them is a fault."""
    parser = argparse.ArgumentParser(prog="python -m backend doctor", description=__doc__.partition("\n")[0])
    parser.add_argument("--url", help="address of Label Studio, in place of LABEL_STUDIO_URL")
    parser.add_argument("--project", type=int, help="id of the project; not needed if there is only one")
    parser.add_argument("--cvat", metavar="URL", help="address of CVAT: check the connection from there instead")
    options = parser.parse_args(arguments)
    environment = os.environ | ({"LABEL_STUDIO_URL": options.url} if options.url else {})
    num_faults = 0
    for finding in examine(environment, options.project, options.cvat):
        num_faults += bool(finding.todo)
        print(f"{'FAULT' if finding.todo else 'ok':<6}{finding.check:<12}{finding.says}", flush=True)
        if finding.todo:
            print(f"{'':<18}=> {finding.todo}", flush=True)
    print(
        f"\n{num_faults} fault{'s' * (num_faults != 1)} found."
        if num_faults
        else f"\nAll is well. {'' if options.cvat else LAST_RESORT}"
    )
    return 1 if num_faults else 0


def examine(environment: Mapping[str, str], project: int | None, cvat: str | None = None) -> Iterator[Finding]:
    """The findings along the path of a click; checks that depend on something broken are skipped."""
    try:
        settings = Settings.from_environment(environment)
    except ValueError as error:
        for complaint in str(error).splitlines():
            yield Finding("settings", complaint, "correct it; `python -m backend settings` lists all settings")
        return
    yield find("settings", lambda: _settings(settings))
    service = yield from _examine_model(settings)
    try:
        if cvat is None:
            yield from _examine_label_studio(settings, service, project)
        else:
            yield from doctor_cvat.examine(settings, cvat.rstrip("/"), environment)
    finally:
        if service is not None:
            service.annotator.close()


def _examine_model(settings: Settings) -> Generator[Finding, None, Service | None]:
    """Checks device, checkpoint and disk; returns the loaded service."""
    service = None
    device = find("device", lambda: f"the model runs on {choose_device(settings.device)}")
    yield device
    if not device.todo:
        try:
            service = build_service(settings)
        except Exception as error:  # a bad file, a driver, no memory: each answers "does it load?"
            yield Finding(
                "checkpoint",
                f"CHECKPOINT={settings.checkpoint} does not run: {error}",
                "name a file that exists and fits, or leave CHECKPOINT out for the bundled model",
            )
        else:
            yield Finding(
                "checkpoint", f"{settings.checkpoint} ({service.annotator.version}) loads and answers a click"
            )
    yield find("disk", lambda: _disk(settings))
    return service


def _examine_label_studio(settings: Settings, service: Service | None, project: int | None) -> Iterator[Finding]:
    auth = build_auth(settings)
    api = LabelStudioApi(auth, settings.image_timeout)
    yield find("network", lambda: _network(settings))
    address = find("address", lambda: _address(settings))
    yield address
    if address.todo:
        return
    token = find("token", lambda: _token(api, auth.key_kind))
    yield token
    if token.todo:
        return
    try:
        record = _project(api, project)
    except Trouble as trouble:
        yield Finding("project", trouble.says, trouble.todo)
        return
    number, xml = int(record["id"]), str(record.get("label_config") or "")
    yield Finding("project", f'project {number} is "{record.get("title")}"')
    config = find("config", lambda: _config(xml))
    yield config
    try:
        yield from _examine_connection(settings, api, number)
        yield from _examine_click(settings, service, api, number, "" if config.todo else xml)
    except ApiError as error:
        yield Finding("project", str(error), "make sure that the key's user may manage the project")


def _examine_connection(settings: Settings, api: LabelStudioApi, project: int) -> Iterator[Finding]:
    """How Label Studio calls the backend; this request makes it try again."""
    backends: list[dict[str, Any]] = api.get("/api/ml/", project=project)
    if not backends:
        yield Finding(
            "connection",
            "no backend is connected to this project",
            f"{_MODEL_PAGE} > Connect Model: the address of this server, as Label Studio reaches it; here it "
            f"is {listening_url(settings)}",
        )
        return
    # The editor asks the first interactive one.
    chosen = next((backend for backend in backends if backend.get("is_interactive")), backends[0])
    yield find("connection", lambda: _connection(settings, chosen))
    if chosen.get("is_interactive"):
        yield Finding("interactive", f"clicks go to {chosen.get('url')}")
    else:
        yield Finding(
            "interactive",
            f"{chosen.get('url')} is connected, but not for clicks",
            f'{_MODEL_PAGE} > (...) > Edit: switch on "Use for interactive preannotations"',
        )


def _examine_click(
    settings: Settings, service: Service | None, api: LabelStudioApi, project: int, xml: str
) -> Iterator[Finding]:
    """One task's image, and one click on it through the server's own code."""
    tasks = api.get("/api/tasks/", project=project, page_size=1, resolve_uri="false").get("tasks", [])
    if not tasks:
        yield Finding("image", f"project {project} has no tasks", "import images into the project")
        return
    if not xml:
        return  # without a config nothing says which of the task's data are its image
    task = tasks[0]
    try:
        data = task.get("data") or {}
        tool = SmartTool.of(xml, project, data)
        url = image_reference(parse_labeling_config(xml).for_task(data), tool.image_tag, data, None)
        reference = ImageReference(url, int(task["id"]))
        height, width = build_images(settings, build_auth(settings)).load(reference).size
    except (ConfigError, ImageError) as error:
        yield Finding(
            "image", f"cannot load the image of task {task['id']}: {error}", "fix that, then run the doctor again"
        )
        return
    yield Finding("image", f"the image of task {task['id']} has {width} x {height} pixels")
    if service is not None:
        middle = Click((width - 1) / 2, (height - 1) / 2)
        body = tool.predict_body(task, (height, width), [middle])
        yield find("click", lambda: _click(settings, service, body))


def _settings(settings: Settings) -> str:
    trouble = listening_trouble(settings)
    if trouble is not None:
        raise ValueError(trouble)
    return f"all settings are valid; the server listens at {listening_url(settings)}"


def _network(settings: Settings) -> str:
    """How requests leave this machine: the certificates that they trust, and the proxy to Label Studio."""
    trusted = trusted_certificates(os.environ)
    certificates = "the usual certificate authorities"
    if trusted is not None:
        name, path = trusted
        certificates = f"the certificates in {name}={path}"
        todo = f"name the file with your authority's certificate in PEM format, or unset {name}"
        if not path.exists():
            raise Trouble(f"{name}={path} does not exist", f"{todo}; in a container it must be mounted")
        if path.is_file() and not _holds_certificates(path):
            raise Trouble(f"{name}={path} contains no certificates", todo)
    proxy = select_proxy(settings.label_studio_url, get_environ_proxies(settings.label_studio_url))
    way = f"the proxy {proxy.rpartition('@')[2]}" if proxy else "no proxy"
    return f"requests trust {certificates} and use {way} to Label Studio"


def _holds_certificates(path: Path) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError:  # ssl.SSLError is one
        return False
    return True


def _disk(settings: Settings) -> str:
    folders = {"MODEL_DIR": settings.model_dir}
    if settings.feature_cache_dir is not None:
        folders["FEATURE_CACHE_DIR"] = settings.feature_cache_dir
    for name, folder in folders.items():
        trouble = folder_trouble(folder)
        if trouble is not None:
            raise Trouble(
                f"{name}={folder}: {trouble}",
                f"free space or fix the permissions there, or set {name} to another folder",
            )
    return f"{' and '.join(map(str, folders.values()))} can be written to"


def _address(settings: Settings) -> str:
    url = settings.label_studio_url
    here = " Inside a container localhost is the container itself: name the host or the service." * (
        in_container() and urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
    )
    asked = f"{url}/api/version/"
    try:
        with new_session(DeadlineAdapter.within(settings.image_timeout)) as session:
            answer = session.get(asked, auth=as_is, timeout=settings.image_timeout, allow_redirects=False)
        if answer.is_redirect:
            trouble = redirect_trouble(url, asked, urljoin(asked, answer.headers["Location"]))
            if trouble is not None:
                says, _, todo = trouble.rpartition("; ")
                raise Trouble(says, todo)
        release = answer.json()["release"]
    except requests.ConnectionError as error:
        raise Trouble(
            f"nothing answers at LABEL_STUDIO_URL={url} ({type(error).__name__})",
            connection_advice(error)
            or f"start Label Studio, or set LABEL_STUDIO_URL to where this machine reaches it.{here}",
        ) from None
    except requests.Timeout:
        raise Trouble(
            f"LABEL_STUDIO_URL={url} did not answer within IMAGE_TIMEOUT={settings.image_timeout:g} seconds",
            "check whether Label Studio is still starting or overloaded; if it is only slow, raise IMAGE_TIMEOUT",
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        if advice := connection_advice(error):
            raise Trouble(f"LABEL_STUDIO_URL={url} cannot be reached ({type(error).__name__})", advice) from None
        raise Trouble(
            f"LABEL_STUDIO_URL={url} answers, but is not Label Studio",
            "set LABEL_STUDIO_URL to the address that the browser shows, up to the host and port (or path prefix)",
        ) from None
    return f"Label Studio {release} answers at {url}"


def _token(api: LabelStudioApi, kind: str | None) -> str:
    if kind is None:
        raise Trouble(
            "LABEL_STUDIO_API_KEY is not set: uploaded images cannot be fetched",
            "Label Studio > Account & Settings > Personal Access Token: create one, set LABEL_STUDIO_API_KEY to it",
        )
    try:
        user = api.get("/api/current-user/whoami")
    except ApiError as error:
        todo = "create a new personal access token in Label Studio (Account & Settings) and set LABEL_STUDIO_API_KEY"
        if kind == "legacy token":
            todo = "legacy tokens are off by default: " + todo
        raise Trouble(f"Label Studio refuses LABEL_STUDIO_API_KEY, a {kind} ({error})", todo) from None
    if kind == "access token":
        raise Trouble(
            "LABEL_STUDIO_API_KEY is an access token, which expires within minutes",
            "set the personal access token that it was made from",
        )
    return f"Label Studio accepts LABEL_STUDIO_API_KEY, a {kind} of {user.get('email')}"


def _project(api: LabelStudioApi, number: int | None) -> dict[str, Any]:
    try:
        if number is not None:
            found: dict[str, Any] = api.get(f"/api/projects/{number}/")
            return found
        projects: list[dict[str, Any]] = api.get("/api/projects/", page_size=20)["results"]
    except ApiError as error:
        if error.status not in (403, 404):
            raise
        raise Trouble(
            f"the key's user has no access to a project {number}",
            "take the number from the address of the project's page, or give that user access to the project",
        ) from None
    if len(projects) == 1:
        return projects[0]
    names = ", ".join(f'{project["id"]} ("{project["title"]}")' for project in projects) or "none"
    raise Trouble(f"which project? The key's user has access to: {names}", "name one with --project")


def _config(xml: str) -> str:
    config = parse_labeling_config(xml)
    where = "correct it in Project > Settings > Labeling Interface > Code"
    try:
        check_labeling_config(config)
    except ConfigError as error:
        raise Trouble(str(error), where) from None
    doubts = labeling_config_doubts(config)
    if doubts:
        raise Trouble("; ".join(doubts), where)
    return "the labeling config has a smart tool and a tag for masks with the same labels on the same image"


def _connection(settings: Settings, backend: Mapping[str, Any]) -> str:
    url = str(backend.get("url"))
    if backend.get("state") != "CO":
        message = " ".join(str(backend.get("error_message") or backend.get("readable_state")).split())[:500]
        raise Trouble(
            f"Label Studio cannot reach {url}: {message}",
            f"start this server; check in {_MODEL_PAGE} that Label Studio's machine can reach the address (in a "
            "container localhost is the container itself), and that user and password are set if this server "
            "requires them",
        )
    try:
        with new_session(DeadlineAdapter.within(10)) as session:
            health = session.get(f"{url}/health", auth=as_is, timeout=5).json()
            ready = session.get(f"{url}/ready", auth=_login(settings) or as_is, timeout=5)
    except (OSError, ValueError):
        return f"Label Studio reaches {url} (this machine does not, which may be intended)"
    kind = health.get("model_class") if isinstance(health, dict) else None
    if kind != "SkipClick":
        raise Trouble(
            f"clicks go to {url}, which is another backend ({kind})",
            f"{_MODEL_PAGE}: keep interactive preannotations on for this server only",
        )
    if ready.status_code == 503:
        raise Trouble(f"{url} is not ready: {ready.json().get('error')}", "wait, or fix what it says")
    return f"Label Studio reaches {url}"


def _login(settings: Settings) -> tuple[str, str] | None:
    user, password = settings.basic_auth_user, revealed(settings.basic_auth_pass)
    return (user, password) if user is not None and password is not None else None


def _click(settings: Settings, service: Service, body: Mapping[str, Any]) -> str:
    client = create_app(settings, service.annotator).test_client()
    begin = time.perf_counter()
    answer = client.post("/predict", data=json.dumps(body), content_type="application/json", auth=_login(settings))
    milliseconds = (time.perf_counter() - begin) * 1000
    reply = answer.get_json()
    if answer.status_code != 200:
        raise Trouble(f"a click in the middle of it fails: {reply['error']}", "fix that; the server's log has more")
    regions = reply["results"][0]["result"]
    if not regions:
        return f"a click in the middle of it took {milliseconds:.0f} ms; the model sees no object there"
    item = body["params"]["context"]["result"][0]
    size = item["original_height"], item["original_width"]
    if mask_shape(regions[0]) is None:
        return f"a click in the middle of it gave a {regions[0]['type']} region in {milliseconds:.0f} ms"
    share = np.mean([read_mask(region, b"", *size) for region in regions], axis=(1, 2)).sum()
    return f"a click in the middle of it gave a mask of {share:.1%} in {milliseconds:.0f} ms"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
