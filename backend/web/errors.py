"""Error handlers: for bad input, for errors of HTTP itself, and for our own bugs."""

from __future__ import annotations

import logging
import sqlite3
from http import HTTPStatus

from flask import Flask, Response, g
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge

from backend.annotator import OverloadedError, SizeMismatchError
from backend.cvat.protocol import InteractionError
from backend.finetune.job_store import RefusedError
from backend.finetune.locks import BusyError
from backend.finetune.store import BacklogError
from backend.images.decode import ImageError
from backend.label_studio.auth import AuthorizationError
from backend.label_studio.labeling_config import ConfigError
from backend.label_studio.protocol import ProtocolError
from backend.readiness import NotReadyError
from backend.settings import Settings, size_text
from backend.web.http import error_response, unavailable
from backend.web.telemetry import one_line

_BAD_INPUT = (
    ProtocolError,
    InteractionError,
    ConfigError,
    ImageError,
    SizeMismatchError,
    AuthorizationError,
    RefusedError,
)

logger = logging.getLogger(__name__)


def answer_errors(app: Flask, settings: Settings) -> None:
    """Let the app answer every error with JSON, and log those that need attention."""

    @app.errorhandler(ValueError)
    def bad_input(error: ValueError) -> Response:
        # Other types may be bugs of ours: then the log says where the error comes from.
        traceback = None if isinstance(error, _BAD_INPUT) else error
        logger.warning("id=%s refused: %s", g.request_id, one_line(error), exc_info=traceback)
        return error_response(HTTPStatus.BAD_REQUEST, str(error))

    @app.errorhandler(OverloadedError)
    @app.errorhandler(BacklogError)
    def overloaded(error: Exception) -> Response:
        return unavailable(str(error), seconds=1)

    @app.errorhandler(sqlite3.Error)
    @app.errorhandler(BusyError)
    def cannot_keep(error: Exception) -> Response:
        logger.error("id=%s: annotations cannot be stored or read: %s", g.request_id, one_line(error))
        return unavailable(f"annotations cannot be stored or read now: {error}")

    @app.errorhandler(NotReadyError)
    def not_ready(error: NotReadyError) -> Response:
        return unavailable(str(error))

    @app.errorhandler(RequestEntityTooLarge)
    def too_large(error: RequestEntityTooLarge) -> Response:
        limit = f"REQUEST_MAX_BYTES={size_text(settings.request_max_bytes)}"
        return error_response(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {limit} allows")

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> Response:
        response = error_response(HTTPStatus(error.code or 500), error.name)
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            response.headers["Allow"] = ", ".join(error.valid_methods)
        return response

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Response:
        logger.error("id=%s failed", g.request_id, exc_info=error)
        return error_response(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            f"the server failed on this request; its log says why under id={g.request_id}",
        )
