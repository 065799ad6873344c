"""HTTP helpers that the routes share: bodies within limits, places for requests, JSON errors, disconnected clients."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from threading import BoundedSemaphore
from typing import Any

from flask import Response, g, jsonify, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import RequestEntityTooLarge

from backend.annotator import OverloadedError
from backend.finetune.scheduler import Training
from backend.images.memory_budget import MemoryBudget
from backend.label_studio.protocol import MAX_MASK_PIXELS, ProtocolError
from backend.places import places
from backend.readiness import Readiness
from backend.settings import Settings

_LONG_BODY = 1 << 20
"""Bytes from which on a body takes one of the places for long bodies, and its share of the memory for them."""

_BODIES_BYTES = 256 << 20
"""Memory for all long bodies together, or REQUEST_MAX_BYTES if that is more. Each exists up to four times while it is
read and parsed."""

_BODIES_PATIENCE = 5.0
"""Seconds that a long body waits for memory."""

_NO_PLACE = "too many long bodies are worked on; try again, or raise THREADS"


@dataclass(frozen=True, eq=False)
class AppContext:
    """What all routes work with, and how many threads each kind of request may take at a time."""

    settings: Settings
    readiness: Readiness
    training: Training | None
    """None if this server does not learn."""
    predictions: BoundedSemaphore
    warming: BoundedSemaphore
    learning: BoundedSemaphore
    pages: BoundedSemaphore
    bodies: BodyReader

    @classmethod
    def of(cls, settings: Settings, readiness: Readiness, training: Training | None) -> AppContext:
        """With the threads divided as in `places.py`."""
        shares = places(settings.threads)
        return cls(
            settings,
            readiness,
            training,
            predictions=BoundedSemaphore(shares.predictions),
            warming=BoundedSemaphore(shares.warming),
            learning=BoundedSemaphore(shares.learning),
            pages=BoundedSemaphore(shares.pages),
            bodies=BodyReader(settings, BoundedSemaphore(shares.bodies)),
        )


class BodyReader:
    """Reads requests' bodies, the long ones within a number of places and an amount of memory."""

    def __init__(self, settings: Settings, places: BoundedSemaphore) -> None:
        """`places`: for requests with a long body."""
        self._max_bytes = settings.request_max_bytes
        self._places = places
        self._budget = MemoryBudget(max(_BODIES_BYTES, self._max_bytes), _BODIES_PATIENCE)
        # A byte per pixel: the strokes of one request, which stay, and a mask of the largest photo while it is decoded.
        self._masks = MemoryBudget(MAX_MASK_PIXELS + 2 * settings.image_max_pixels, _BODIES_PATIENCE)

    def read(self, max_bytes: int | None = None) -> bytes:
        """The request's body, of at most `max_bytes` if given; a long one gives its memory back at the request's end.

        Raises `ProtocolError`, `RequestEntityTooLarge`, and `OverloadedError` if other long bodies leave no room.
        """
        too_long = f"the body is larger than the {(max_bytes or 0) >> 20} MB that {request.path} takes"
        if max_bytes is not None and (request.content_length or 0) > max_bytes:
            raise ProtocolError(too_long)
        if (request.content_length or 0) > _LONG_BODY:
            self._check_place()
        pieces, size = [], 0
        try:
            while piece := request.stream.read(_LONG_BODY):  # a length that is only announced takes no memory
                pieces.append(piece)
                size += len(piece)
                # Werkzeug refuses announced lengths, but only cuts off bodies that come in chunks.
                if size > self._max_bytes:
                    raise RequestEntityTooLarge
                if max_bytes is not None and size > max_bytes:
                    raise ProtocolError(too_long)
                if len(pieces) == 2:
                    self._take_place()
                if len(pieces) > 1:
                    _reserve(self._budget, size if len(pieces) == 2 else len(piece), "long bodies")
        except (OSError, ParseException) as error:  # chunks that are malformed, or end too early
            raise ProtocolError(f"the body cannot be read: {type(error).__name__}") from None
        return b"".join(pieces)

    def reserve_mask(self, num_pixels: int) -> None:
        """Reserve memory for a mask in the body, until the request's end. Raises `OverloadedError`."""
        _reserve(self._masks, num_pixels, "masks")

    def _check_place(self) -> None:
        """Refuse a long body before it is read where there is no place for it."""
        if not self._places.acquire(blocking=False):
            raise OverloadedError(_NO_PLACE)
        self._places.release()

    def _take_place(self) -> None:
        if not self._places.acquire(blocking=False):
            raise OverloadedError(_NO_PLACE)
        g.at_the_end.callback(self._places.release)


def _reserve(budget: MemoryBudget, num_bytes: int, what: str) -> None:
    try:
        g.at_the_end.callback(budget.take(num_bytes).release)
    except MemoryError:
        raise OverloadedError(f"{what} of other requests take all the memory for them; try again") from None


@contextmanager
def slot(slots: BoundedSemaphore) -> Iterator[None]:
    """Holds one of the places. Raises `OverloadedError` if all are taken, which bounds the queue."""
    if not slots.acquire(blocking=False):
        raise OverloadedError("all threads for this are busy; try again, or raise THREADS")
    try:
        yield
    finally:
        slots.release()


def error_response(status: HTTPStatus, sentence: str) -> Response:
    """A JSON error. The sentence is also the reason phrase: of a failed request Label Studio stores and shows only the
    status line (Settings > Model), so this is the only way to reach a person."""
    response = jsonify(error=sentence[:2000])
    reason = "".join(char if " " <= char <= "~" else "?" for char in sentence)
    response.status = f"{status.value} {reason[:500]}"
    return response


def unavailable(sentence: str, seconds: int = 5) -> Response:
    """Status 503, with the seconds after which the client may try again."""
    response = error_response(HTTPStatus.SERVICE_UNAVAILABLE, sentence)
    response.headers["Retry-After"] = str(seconds)
    return response


def client_disconnected(environ: Mapping[str, Any]) -> Callable[[], bool]:
    """A function that tells whether the client of a WSGI request has closed its connection.

    Label Studio closes it when its own time limit expires. Only gunicorn provides the socket; with other servers, and
    if the connection cannot be inspected, the client counts as connected.
    """
    connection = environ.get("gunicorn.socket")
    if not isinstance(connection, socket.socket):
        return lambda: False

    def is_disconnected() -> bool:
        try:
            poll = select.poll()
            poll.register(connection, select.POLLIN)
            return bool(poll.poll(0)) and connection.recv(1, socket.MSG_PEEK) == b""
        except ConnectionError:
            return True
        except (OSError, ValueError):
            return False

    return is_disconnected
