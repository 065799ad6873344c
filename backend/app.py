"""The HTTP side: routes, authorization, limits, errors. What requests mean is `protocol`'s, what they do
`annotator`'s."""

from __future__ import annotations

import logging
import re
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from http import HTTPStatus
from threading import BoundedSemaphore
from typing import Any

import numpy as np
import orjson
from flask import Flask, Response, g, jsonify, request, send_file
from gunicorn.http.errors import ParseException
from numpy.typing import NDArray
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge

from backend.access import foreign_page, password_check, unknown_host
from backend.annotator import Annotator, GivenUp, OverloadedError, SizeMismatchError
from backend.cvat.protocol import InteractionError
from backend.factory import Service
from backend.finetune.job_store import RefusedError
from backend.finetune.locks import BusyError
from backend.finetune.scheduler import Training
from backend.finetune.store import BacklogError
from backend.http import has_left
from backend.images.decode import ImageError
from backend.label_studio import next_editor
from backend.label_studio.auth import AuthorizationError
from backend.label_studio.click_history import Decode, SignMemory, without_accepted_clicks
from backend.label_studio.corrections import corrected_region
from backend.label_studio.labeling_config import (
    ConfigError,
    check_labeling_config,
    labeling_config_doubts,
    parse_labeling_config,
)
from backend.label_studio.protocol import (
    MOST_PAINTED,
    Json,
    Limits,
    MaskRequest,
    PredictBody,
    ProtocolError,
    empty_response,
    mask_request,
    nothing_to_store,
    one_by_one,
    project_number,
    read_json,
    read_predict,
    read_setup,
    read_webhook,
    task_image,
    task_key,
    untouched_task,
)
from backend.label_studio.regions import (
    Output,
    marks_of,
    mask_response,
    proposals_response,
    read_mask,
    read_start,
)
from backend.memory_budget import MemoryBudget
from backend.nuclio import build_nuclio
from backend.pages import build_pages
from backend.places import places
from backend.prompts import Start, StartMask
from backend.proposing import Proposing
from backend.readiness import NotReadyError, Readiness
from backend.settings import Settings, revealed, size_text
from backend.telemetry import Telemetry, one_line
from skipclick.cleaning import clean
from skipclick.masks import BoxMask
from skipclick.prompts import Click
from skipclick.proposals import DEFAULT_RULE
from skipclick.strokes import Stroke

SETUP_MAX_BYTES = 4 << 20
"""Of a /setup body: a labeling config, and little else."""

WEBHOOK_MAX_BYTES = 24 << 20
"""Of an event: a task with its masks. Applying one takes up to 45 times its bytes; what a larger one tells, the next
training asks Label Studio for."""

SETUP_PATIENCE = 2.0
"""Seconds that /setup waits for a model that is being loaded: Label Studio waits 3, and shows an error until it asks
again, when the next page is opened."""

logger = logging.getLogger(__name__)

_BAD_INPUT = (
    ProtocolError,
    InteractionError,
    ConfigError,
    ImageError,
    SizeMismatchError,
    AuthorizationError,
    RefusedError,
)
_SWITCHED_OFF = "this server does not learn: it was started with FINETUNE=off or follow"

_LONG_BODY = 1 << 20
"""Bytes of a body from which on it takes one of the places for bodies, and its share of the memory for them."""

_BODIES_BYTES = 256 << 20
"""Memory for long bodies, all together, or REQUEST_MAX_BYTES if that is more. Each is there up to four times while it
is read and parsed."""

_BODIES_PATIENCE = 5.0
"""Seconds that a long body waits for memory."""

_SANE_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)


def create_app(settings: Settings, annotator: Annotator) -> Flask:
    """The server around an annotator."""
    return build_app(settings, Readiness.of(Service(annotator)))


def build_app(settings: Settings, readiness: Readiness, training: Training | None = None) -> Flask:
    """The server around an annotator that may still be loading; without `training` it learns nothing."""
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.request_max_bytes + 1  # see `_Bodies`
    limits = Limits(settings.request_max_clicks, settings.image_max_pixels)
    output = Output(
        settings.mask_min_part, settings.polygon_min_iou, settings.polygon_max_points, settings.correct_regions
    )
    telemetry = Telemetry(readiness, training)
    signs = SignMemory()
    shares = places(settings.threads)
    slots, warming = BoundedSemaphore(shares.predictions), BoundedSemaphore(shares.warming)
    learning, pages = BoundedSemaphore(shares.learning), BoundedSemaphore(shares.pages)
    bodies = _Bodies(settings, BoundedSemaphore(shares.bodies))
    proposing = Proposing(settings.predict_seconds) if settings.predict == "similar" else None
    _observe_requests(app, telemetry)
    _refuse_strangers(app, settings)
    _answer_errors(app, settings)
    app.register_blueprint(build_pages(readiness, training, lambda: _slot(pages), proposing is not None))
    if settings.cvat == "on":
        app.register_blueprint(build_nuclio(settings, readiness, bodies.read, lambda: _slot(slots)))

    @app.get("/")
    @app.get("/health")
    def health() -> Response:
        return jsonify(status="UP", model_class="SkipClick")

    @app.get("/ready")
    def ready() -> Response:
        trouble = readiness.trouble()
        return jsonify(status="READY") if trouble is None else _not_now(trouble)

    @app.post("/setup")
    def setup() -> Response:
        body = read_setup(read_json(bodies.read(SETUP_MAX_BYTES)))
        g.facts["project"] = body.project
        config = parse_labeling_config(body.label_config)
        check_labeling_config(config)
        doubts = labeling_config_doubts(config)
        if doubts:
            g.facts["warning"] = "; ".join(doubts)
        service = readiness.service(SETUP_PATIENCE)
        service.names.tell(body.hostname)
        return jsonify(model_version=service.annotator.version_of(project_number(body.project)), warnings=doubts)

    @app.post("/predict")
    def predict() -> Response:
        deadline = time.monotonic() + settings.request_timeout
        annotator = readiness.service().annotator
        answer = _predict(bodies, annotator, signs, slots, limits, output, deadline, proposing)
        return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), content_type="application/json")

    @app.post("/warm")
    def warm() -> Response:
        """Like /predict for a task that was opened, but answered when its image is ready, for `backend warm`."""
        body = read_predict(read_json(bodies.read()))
        if len(body.tasks) != 1:
            raise ProtocolError(f"one task is warmed at a time, this request has {len(body.tasks)}")
        annotator = readiness.service().annotator
        with _slot(warming), _slot(slots):
            annotator.prepare(task_image(body, body.tasks[0]), project_number(body.project))
        return jsonify(kept=max(stats.entries for stats in annotator.feature_stats().values()))

    @app.post("/webhook")
    def webhook() -> tuple[Response, int]:
        """Answered as soon as the event is written down: Label Studio sends it inside the annotator's own request."""
        raw = bodies.read(WEBHOOK_MAX_BYTES)
        body = read_json(raw)
        action = read_webhook(body)
        g.facts["action"] = action[:40]
        result = None
        with _slot(learning):
            if action == "START_TRAINING":
                result = _start_training(training, project_number(body.get("project")))
            elif training is not None:
                training.note(body, raw)
        return jsonify(result=result, status="ok"), HTTPStatus.CREATED

    @app.get("/training")
    def training_report() -> Response:
        """What was learnt of a project and how its training goes."""
        project, switched_on = _asked_project(), _switched_on(training)
        service = readiness.loaded()
        version = service.annotator.version_of(project) if service is not None else None
        with _slot(learning):
            return jsonify(switched_on.report(project) | {"version": version})

    @app.get("/training/picture")
    def training_picture() -> Response:
        """What a training changed, for people."""
        number = request.args.get("number", type=int)
        if number is None:
            raise ProtocolError("name a training's number, as in /training/picture?project=1&number=1")
        return send_file(_switched_on(training).jobs.picture(_asked_project(), number))

    @app.delete("/training")
    def cancel_training() -> Response:
        with _slot(learning):
            return jsonify(job=asdict(_switched_on(training).cancel(_asked_project())))

    @app.get("/versions")
    def versions() -> Response:
        return jsonify(versions=readiness.service(SETUP_PATIENCE).annotator.versions())

    @app.get("/metrics")
    def metrics() -> Response:
        with _slot(pages):
            return Response(telemetry.exposition(), content_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def _predict(
    bodies: _Bodies,
    annotator: Annotator,
    signs: SignMemory,
    slots: BoundedSemaphore,
    limits: Limits,
    output: Output,
    deadline: float,
    proposing: Proposing | None,
) -> dict[str, Any]:
    """The answer to a /predict request; at the monotonic time `deadline` nobody waits for it any more."""
    raw = bodies.read()
    body = read_predict(read_json(raw))
    project = project_number(body.project)
    g.facts |= {"project": body.project, "tasks": len(body.tasks)}
    if len(body.tasks) == 1:
        g.facts["task"] = body.tasks[0].get("id")
    if body.event:
        return _event(body, annotator)
    left = has_left(request.environ)

    def given_up() -> bool:
        return left() or time.monotonic() > deadline

    prompts = next_editor.read_prompts(body.context, limits)
    if prompts is not None:
        with _slot(slots):
            return _picture(body, prompts, project, annotator, output, given_up)

    is_room_held = False

    def decode(region: Json, height: int, width: int) -> NDArray[np.bool_]:
        nonlocal is_room_held
        if given_up():
            raise OverloadedError("the request was given up, or took longer than REQUEST_TIMEOUT")
        if not is_room_held:  # one at a time is decoded
            bodies.hold_mask(2 * height * width)
            is_room_held = True
        return read_mask(region, raw, height, width)

    def painted(region: Json, positive: bool, height: int, width: int) -> Stroke:
        bodies.hold_mask(height * width)
        return Stroke(decode(region, height, width), positive)

    with _slot(slots) if body.context else nullcontext():
        asked = mask_request(body, signs.recall, limits, painted)
        if asked is not None:
            signs.remember(task_key(body.tasks[0]), asked.clicks)
            return _mask(body, asked, decode, project, annotator, output, given_up)
    if proposing is not None and body.context is None:
        proposals = _proposals(body, project, annotator, slots, output, proposing)
        if proposals is not None:
            return proposals
    _warm(body, annotator)
    return nothing_to_store() if body.context is None else empty_response(annotator.version_of(project))


def _proposals(
    body: PredictBody,
    project: int | None,
    annotator: Annotator,
    slots: BoundedSemaphore,
    output: Output,
    proposing: Proposing,
) -> dict[str, Any] | None:
    """The answer with proposals to opened tasks and to "retrieve predictions"; None where there are none."""
    if not body.tasks or not annotator.can_propose(project):
        return None
    if len(body.tasks) > 1:
        return one_by_one(annotator.version_of(project))
    try:
        task = untouched_task(body)
        if task is None:
            return None
        rule = replace(DEFAULT_RULE, min_part=output.mask_min_part)
        with _slot(proposing.slots), _slot(slots), proposing.only(task.name) as is_only:
            proposals = annotator.propose(task.image, project, proposing.seconds, rule) if is_only else None
        if proposals is None:
            return nothing_to_store()
        placed = [(task.target(one.label, proposals.size), one) for one in proposals.found]
    except (ValueError, OverloadedError) as error:  # opening a task must not fail; it is asked again
        logger.warning("no proposals for a task: %s", one_line(error))
        return None
    masks = [(target, one.mask, one.quality) for target, one in placed if target is not None]
    g.facts["proposals"] = len(masks)
    return proposals_response(task.name, masks, proposals.version, output) if masks else None


def _event(body: PredictBody, annotator: Annotator) -> dict[str, Any]:
    """The answer to what the next editor reports or asks."""
    version = annotator.version_of(project_number(body.project))
    if body.event == next_editor.CAPABILITIES:
        return next_editor.capabilities(version)
    if body.event == next_editor.PREWARM:
        _warm(body, annotator)
    return next_editor.acknowledged(version)


def _picture(
    body: PredictBody,
    prompts: next_editor.Prompts,
    project: int | None,
    annotator: Annotator,
    output: Output,
    given_up: GivenUp,
) -> dict[str, Any]:
    """The answer to prompts of the next editor."""
    if len(body.tasks) != 1:
        raise ProtocolError(f"a request with clicks concerns one task, this one has {len(body.tasks)}")
    image = task_image(body, body.tasks[0])
    size = annotator.size_of(image, given_up, project)
    clicks, box = prompts.placed(size)
    g.facts["clicks"] = len(clicks)
    if box is None and not any(click.positive for click in clicks):
        return next_editor.picture_response(BoxMask.of(np.zeros(size, np.bool_)), 0.0, annotator.version_of(project))
    annotation = annotator.annotate(image, clicks, box, size, given_up, project)
    mask = clean(annotation.mask, [Click(c.x, c.y, c.positive) for c in clicks], output.mask_min_part)
    g.facts["stages"] = annotation.stages
    return next_editor.picture_response(mask, annotation.score, annotation.version)


def _mask(
    body: PredictBody,
    asked: MaskRequest,
    decode: Decode,
    project: int | None,
    annotator: Annotator,
    output: Output,
    given_up: GivenUp,
) -> dict[str, Any]:
    """The answer to a request for a mask."""
    asked = without_accepted_clicks(asked, body.tasks[0], decode)
    size = asked.target.height, asked.target.width
    start: Start | None = read_start(body.start, *size) if body.start else asked.box
    corrected = None if body.start else corrected_region(asked, body.tasks[0], decode, output.correct_regions)
    if corrected is not None:
        start = StartMask.of(corrected.mask)
    g.facts["clicks"] = len(asked.clicks)
    is_known = start is not None and (asked.box is not None or bool(asked.clicks))
    if not is_known and not asked.has_positive:
        _warm(body, annotator)
        return empty_response(annotator.version_of(project))
    annotation = annotator.annotate(asked.image, asked.clicks, start, size, given_up, project)
    begin = time.perf_counter()
    marks = marks_of(asked)
    mask = clean(annotation.mask, marks, output.mask_min_part)
    if mask.empty:
        answer = empty_response(annotation.version)
    else:
        answer = mask_response(asked.target, mask, annotation.score, annotation.version, output, corrected, marks)
    g.facts["stages"] = {**annotation.stages, "mask": (time.perf_counter() - begin) * 1000}
    return answer


def _start_training(training: Training | None, project: int | None) -> str:
    """Ask for a training; what became of it, in words."""
    if training is None:
        return _SWITCHED_OFF
    if project is None:
        raise ProtocolError('"project" must be an object with an id')
    job = training.ask(project)
    return f"training {job.number} of project {project} is {job.state}; GET /training?project={project} follows it"


def _switched_on(training: Training | None) -> Training:
    if training is None:
        raise RefusedError(_SWITCHED_OFF)
    return training


def _asked_project() -> int:
    """The project that the address names. Raises `ProtocolError`."""
    project = project_number(request.args.get("project", ""))
    if project is None:
        raise ProtocolError("name a project's id, as in /training?project=1")
    return project


class _Bodies:
    """Reads requests' bodies, the long ones within a number of places and an amount of memory."""

    def __init__(self, settings: Settings, places: BoundedSemaphore) -> None:
        self._most = settings.request_max_bytes
        self._places = places
        self._budget = MemoryBudget(max(_BODIES_BYTES, self._most), _BODIES_PATIENCE)
        # A byte for a pixel: the strokes of one request, which stay, and a mask of the largest photo as it is decoded.
        self._masks = MemoryBudget(MOST_PAINTED + 2 * settings.image_max_pixels, _BODIES_PATIENCE)

    def read(self, most: int | None = None) -> bytes:
        """The request's body; what a long one holds is let go of at the request's end. `most`: bytes, where fewer than
        REQUEST_MAX_BYTES are enough.

        Raises `ProtocolError`, `RequestEntityTooLarge`, and `OverloadedError` where other long bodies leave no room.
        """
        trouble = f"the body is larger than the {(most or 0) >> 20} MB that {request.path} takes"
        if most is not None and (request.content_length or 0) > most:
            raise ProtocolError(trouble)
        pieces, size = [], 0
        try:
            while piece := request.stream.read(_LONG_BODY):  # what a client only announces takes no memory
                pieces.append(piece)
                size += len(piece)
                # Werkzeug refuses announced lengths, but only cuts off bodies that come in chunks.
                if size > self._most:
                    raise RequestEntityTooLarge
                if most is not None and size > most:
                    raise ProtocolError(trouble)
                if len(pieces) == 2:
                    self._take_place()
                if len(pieces) > 1:
                    _hold(self._budget, size if len(pieces) == 2 else len(piece), "long bodies")
        except (OSError, ParseException) as error:  # chunks that are malformed, or end too early
            raise ProtocolError(f"the body cannot be read: {type(error).__name__}") from None
        return b"".join(pieces)

    def hold_mask(self, num_pixels: int) -> None:
        """Reserve memory for a mask in the body, until the request's end. Raises `OverloadedError`."""
        _hold(self._masks, num_pixels, "masks")

    def _take_place(self) -> None:
        if not self._places.acquire(blocking=False):
            raise OverloadedError("too many long bodies are worked on; try again, or raise THREADS")
        g.at_the_end.callback(self._places.release)


def _hold(budget: MemoryBudget, num_bytes: int, what: str) -> None:
    try:
        g.at_the_end.callback(budget.take(num_bytes).release)
    except MemoryError:
        raise OverloadedError(f"{what} of other requests take all the memory for them; try again") from None


@contextmanager
def _slot(slots: BoundedSemaphore) -> Iterator[None]:
    """One of the places for predictions. Raises `OverloadedError` if all are taken: this is the queue's bound."""
    if not slots.acquire(blocking=False):
        raise OverloadedError("all threads for this are busy; try again, or raise THREADS")
    try:
        yield
    finally:
        slots.release()


def _warm(body: PredictBody, annotator: Annotator) -> None:
    """Prepare the image of a task that was just opened. Many tasks at once are no annotator's next click."""
    if len(body.tasks) != 1:
        return
    try:
        annotator.warm(task_image(body, body.tasks[0]), project_number(body.project))
    except ValueError as error:  # opening a task must not fail; the first click will say the same
        logger.warning("cannot warm up a task: %s", one_line(error))


def _observe_requests(app: Flask, telemetry: Telemetry) -> None:
    """Give every request an id, a place for facts, and at the end its metrics and log line."""

    @app.before_request
    def begin() -> None:
        given = request.headers.get("X-Request-ID", "")  # of a proxy, whose log then speaks of the same request
        g.request_id = given if _SANE_ID.fullmatch(given) else secrets.token_hex(6)
        g.begin, g.facts = time.perf_counter(), {}
        g.at_the_end = ExitStack()

    @app.teardown_request
    def let_go(_: BaseException | None) -> None:
        at_the_end = g.pop("at_the_end", None)
        if at_the_end is not None:
            at_the_end.close()

    @app.after_request
    def end(response: Response) -> Response:
        route = request.url_rule.rule if request.url_rule else "unknown"
        milliseconds = (time.perf_counter() - g.begin) * 1000
        telemetry.record(g.request_id, route, response.status_code, milliseconds, g.facts)
        response.headers["X-Request-ID"] = g.request_id
        stages = g.facts.get("stages", {})
        if stages:  # what a browser's developer tools show, and the page /ui
            response.headers["Server-Timing"] = ", ".join(f"{name};dur={ms:.1f}" for name, ms in stages.items())
        return response


def _refuse_strangers(app: Flask, settings: Settings) -> None:
    """On all routes but /health: requests of other sites' pages, and those without the password, if one is set.

    A page that gives this server a name of its own cannot know the password: where there is one, any name is in order.
    """
    is_right = None
    if settings.basic_auth_user is not None and settings.basic_auth_pass is not None:
        is_right = password_check(settings.basic_auth_user, revealed(settings.basic_auth_pass) or "")

    @app.before_request
    def check() -> Response | None:
        if request.path == "/health":
            return None
        trouble = foreign_page(dict(request.headers), settings.allowed_hosts)
        if trouble is None and is_right is None:
            trouble = unknown_host(request.host, settings.allowed_hosts)
        if trouble is not None:
            return _error(HTTPStatus.FORBIDDEN, trouble)
        given = request.authorization
        is_basic = given is not None and given.type == "basic"
        if is_right is None or (given and is_basic and is_right(given.username or "", given.password or "")):
            return None
        refusal = _error(HTTPStatus.UNAUTHORIZED, "this server asks for BASIC_AUTH_USER and BASIC_AUTH_PASS")
        refusal.headers["WWW-Authenticate"] = 'Basic realm="skipclick"'
        return refusal


def _answer_errors(app: Flask, settings: Settings) -> None:
    """One handler for bad input, one for what HTTP itself refuses, one for our own mistakes."""

    @app.errorhandler(ValueError)
    def bad_input(error: ValueError) -> Response:
        # Of any other kind it may be a mistake of ours: then the log says where it comes from.
        traceback = None if isinstance(error, _BAD_INPUT) else error
        logger.warning("id=%s refused: %s", g.request_id, one_line(error), exc_info=traceback)
        return _error(HTTPStatus.BAD_REQUEST, str(error))

    @app.errorhandler(OverloadedError)
    @app.errorhandler(BacklogError)
    def overloaded(error: Exception) -> Response:
        return _not_now(str(error), seconds=1)

    @app.errorhandler(sqlite3.Error)
    @app.errorhandler(BusyError)
    def cannot_keep(error: Exception) -> Response:
        logger.error("id=%s: annotations cannot be kept or read: %s", g.request_id, one_line(error))
        return _not_now(f"annotations cannot be kept or read now: {error}")

    @app.errorhandler(NotReadyError)
    def not_ready(error: NotReadyError) -> Response:
        return _not_now(str(error))

    @app.errorhandler(RequestEntityTooLarge)
    def too_large(error: RequestEntityTooLarge) -> Response:
        limit = f"REQUEST_MAX_BYTES={size_text(settings.request_max_bytes)}"
        return _error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {limit} allows")

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> Response:
        response = _error(HTTPStatus(error.code or 500), error.name)
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            response.headers["Allow"] = ", ".join(error.valid_methods)
        return response

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Response:
        logger.error("id=%s failed", g.request_id, exc_info=error)
        return _error(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            f"the server failed on this request; its log says why under id={g.request_id}",
        )


def _not_now(sentence: str, seconds: int = 5) -> Response:
    response = _error(HTTPStatus.SERVICE_UNAVAILABLE, sentence)
    response.headers["Retry-After"] = str(seconds)
    return response


def _error(status: HTTPStatus, sentence: str) -> Response:
    """A JSON error. The sentence is the reason phrase too: of a failed request Label Studio keeps and shows
    no more than the status line, so this is the one way to a human's eyes (Settings > Model)."""
    response = jsonify(error=sentence[:2000])
    reason = "".join(char if " " <= char <= "~" else "?" for char in sentence)
    response.status = f"{status.value} {reason[:500]}"
    return response
