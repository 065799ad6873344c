"""The HTTP side: routes, authorization, limits, errors. What requests mean is `protocol`'s, what they do
`annotator`'s."""

from __future__ import annotations

import hmac
import logging
import secrets
import time
from collections.abc import Callable
from http import HTTPStatus
from threading import BoundedSemaphore
from typing import Any

from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException

from backend.annotator import Annotator
from backend.labeling_config import check_labeling_config, parse_labeling_config
from backend.leftovers import without_leftovers
from backend.protocol import (
    PredictBody,
    ProtocolError,
    empty_response,
    mask_request,
    mask_response,
    nothing_to_store,
    read_json,
    read_predict,
    region_rle,
    task_image,
    task_key,
)
from backend.settings import Settings
from backend.signs import SignMemory
from backend.telemetry import Telemetry, one_line
from skipclick import brush_rle

MAX_BODY_BYTES = 512 << 20
"""Every click carries all masks of its task, so bodies are megabytes; this only stops what no editor could
send."""

RESERVED_THREADS = 4
"""Threads that predictions never take, so that /health (1 s) and /setup (3 s) are answered in time."""

logger = logging.getLogger(__name__)


class BusyError(Exception):
    """All threads for predictions are taken."""


def create_app(settings: Settings, annotator: Annotator[Any]) -> Flask:
    """The server around an annotator, for gunicorn or a test client."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    telemetry = Telemetry(annotator.cache_stats)
    signs = SignMemory()
    slots = BoundedSemaphore(max(1, settings.threads - RESERVED_THREADS))
    _observe_requests(app, telemetry)
    _ask_for_password(app, settings)
    _answer_errors(app)

    @app.get("/")
    @app.get("/health")
    def health() -> Response:
        return jsonify(status="UP", model_class="SkipClick")

    @app.post("/setup")
    def setup() -> Response:
        body = _object(read_json(request.get_data()))
        g.facts["project"] = body.get("project")
        check_labeling_config(parse_labeling_config(str(body.get("schema") or "")))
        return jsonify(model_version=annotator.version)

    @app.post("/predict")
    def predict() -> Response:
        return jsonify(_predict(request.get_data(), annotator, signs, slots))

    @app.post("/webhook")
    def webhook() -> tuple[Response, int]:
        body = _object(read_json(request.get_data()))
        action = str(body.get("action"))
        g.facts["action"] = action[:40]
        result = "this version does not train yet" if action == "START_TRAINING" else None
        return jsonify(result=result, status="ok"), HTTPStatus.CREATED

    @app.get("/versions")
    def versions() -> Response:
        return jsonify(versions=[annotator.version])

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(telemetry.exposition(), content_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def _predict(raw: bytes, annotator: Annotator[Any], signs: SignMemory, slots: BoundedSemaphore) -> dict[str, Any]:
    """The answer to a /predict body."""
    body = read_predict(read_json(raw))
    g.facts |= {"project": body.project, "tasks": len(body.tasks)}
    if len(body.tasks) == 1:
        g.facts["task"] = body.tasks[0].get("id")
    asked = mask_request(body, signs.recall)
    if asked is None:
        _warm(body, annotator)
        return nothing_to_store() if body.context is None else empty_response(annotator.version)
    task = body.tasks[0]
    signs.remember(task_key(task), asked.clicks)
    asked = without_leftovers(asked, task, lambda region, *size: brush_rle.decode(region_rle(region, raw), *size))
    g.facts["clicks"] = len(asked.clicks)
    if not asked.has_positive:
        _warm(body, annotator)
        return empty_response(annotator.version)
    target = asked.target
    if not slots.acquire(blocking=False):
        raise BusyError
    try:
        annotation = annotator.annotate(asked.image, asked.clicks, asked.box, (target.height, target.width))
    finally:
        slots.release()
    begin = time.perf_counter()
    rle = brush_rle.encode(annotation.mask)
    g.facts["stages"] = {**annotation.stages, "rle": (time.perf_counter() - begin) * 1000}
    if not annotation.mask.any():
        return empty_response(annotator.version)
    return mask_response(target, rle, annotation.score, annotator.version)


def _warm(body: PredictBody, annotator: Annotator[Any]) -> None:
    """Prepare the image of a task that was just opened. Many tasks at once are no annotator's next click."""
    if len(body.tasks) != 1:
        return
    try:
        annotator.warm(task_image(body, body.tasks[0]))
    except ValueError as error:  # opening a task must not fail; the first click will say the same
        logger.warning("cannot warm up a task: %s", one_line(error))


def _object(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise ProtocolError("the body must be a JSON object")
    return body


def _observe_requests(app: Flask, telemetry: Telemetry) -> None:
    """Give every request an id, a place for facts, and at the end its metrics and log line."""

    @app.before_request
    def begin() -> None:
        g.begin, g.request_id, g.facts = time.perf_counter(), secrets.token_hex(6), {}

    @app.after_request
    def end(response: Response) -> Response:
        route = request.url_rule.rule if request.url_rule else "unknown"
        milliseconds = (time.perf_counter() - g.begin) * 1000
        telemetry.record(g.request_id, route, response.status_code, milliseconds, g.facts)
        response.headers["X-Request-ID"] = g.request_id
        return response


def _ask_for_password(app: Flask, settings: Settings) -> None:
    """HTTP Basic authorization on all routes but /health, if a user and a password are set."""
    if settings.basic_auth_user is None or settings.basic_auth_pass is None:
        return
    expected = f"{settings.basic_auth_user}:{settings.basic_auth_pass}".encode()

    @app.before_request
    def check() -> Response | None:
        given = request.authorization
        pair = f"{given.username}:{given.password}".encode() if given and given.type == "basic" else b""
        if request.path == "/health" or hmac.compare_digest(pair, expected):
            return None
        refusal = _error(HTTPStatus.UNAUTHORIZED, "this server asks for BASIC_AUTH_USER and BASIC_AUTH_PASS")
        refusal.headers["WWW-Authenticate"] = 'Basic realm="skipclick"'
        return refusal


def _answer_errors(app: Flask) -> None:
    """One handler for bad input, one for what HTTP itself refuses, one for our own mistakes."""
    app.register_error_handler(ValueError, _logged(lambda error: _error(HTTPStatus.BAD_REQUEST, str(error))))

    @app.errorhandler(BusyError)
    def busy(error: BusyError) -> Response:
        response = _error(HTTPStatus.SERVICE_UNAVAILABLE, "all threads are busy with predictions; raise THREADS")
        response.headers["Retry-After"] = "1"
        return response

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> Response:
        return _error(HTTPStatus(error.code or 500), error.name)

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Response:
        logger.error("id=%s failed", g.request_id, exc_info=error)
        return _error(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            f"the server failed on this request; its log says why under id={g.request_id}",
        )


def _logged(handler: Callable[[Exception], Response]) -> Callable[[Exception], Response]:
    def handle(error: Exception) -> Response:
        logger.warning("id=%s refused: %s", g.request_id, one_line(error))
        return handler(error)

    return handle


def _error(status: HTTPStatus, sentence: str) -> Response:
    """A JSON error. The sentence is the reason phrase too: of a failed request Label Studio keeps and shows
    no more than the status line, so this is the one way to a human's eyes (Settings > Model)."""
    response = jsonify(error=sentence)
    reason = "".join(char if " " <= char <= "~" else "?" for char in sentence)
    response.status = f"{status.value} {reason[:500]}"
    return response
