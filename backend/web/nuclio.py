"""CVAT's interactors over HTTP: the three routes of Nuclio's dashboard that CVAT calls, and its direct way, `POST /`.

Any self-hosted CVAT calls these if its CVAT_NUCLIO_HOST and CVAT_NUCLIO_PORT point to this server; Nuclio itself is not
needed. The protocol has no authentication. `docs/cvat.md` says how to set it up.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
import orjson
from flask import Blueprint, Response, g, jsonify, request

from backend.annotator import Annotator, Cancelled
from backend.cvat.protocol import (
    FUNCTION,
    Interaction,
    answer,
    describe_function,
    function_name,
    read_interaction,
)
from backend.images.decode import check_size
from backend.prompts import file_digest, sent_image
from backend.web.http import AppContext, client_disconnected, slot
from skipclick.image_file import read_size
from skipclick.masks import BoxMask

T = TypeVar("T")


class UnknownFunctionError(Exception):
    """CVAT asks for a function that does not exist here, or no longer."""


def build_nuclio(context: AppContext) -> Blueprint:
    """The routes."""
    nuclio, settings, readiness = Blueprint("nuclio", __name__), context.settings, context.readiness

    def functions() -> dict[str, dict[str, Any]]:
        """By name; those of projects once the model is loaded. Must not fail: CVAT would then show no model at all."""
        service = readiness.loaded()
        versions = {FUNCTION: settings.checkpoint if service is None else service.annotator.version}
        if service is not None:
            promoted = service.annotator.promoted()
            versions |= {function_name(project): version for project, version in promoted.items()}
        describe = partial(describe_function, ready=service is not None, port=settings.port)
        return {name: describe(name, version) for name, version in versions.items()}

    @nuclio.errorhandler(UnknownFunctionError)
    def unknown(error: UnknownFunctionError) -> tuple[Response, HTTPStatus]:
        return jsonify(error=str(error)), HTTPStatus.NOT_FOUND

    @nuclio.get("/api/functions")
    def list_functions() -> Response:
        return jsonify(functions())

    @nuclio.get("/api/functions/<name>")
    def get_function(name: str) -> Response:
        return jsonify(_chosen(functions(), name))

    @nuclio.post("/api/function_invocations")
    def invoke() -> Response:
        return interact(request.headers.get("X-Nuclio-Function-Name", FUNCTION))

    @nuclio.post("/")
    def invoke_directly() -> Response:
        """The invocation that names no function."""
        return interact(FUNCTION)

    def interact(name: str) -> Response:
        deadline = time.monotonic() + settings.request_timeout
        is_disconnected = client_disconnected(request.environ)
        interaction = read_interaction(context.bodies.read(), settings.request_max_clicks)
        annotator = readiness.service().annotator
        project = _project(annotator, name)
        g.facts |= {"function": name, "clicks": len(interaction.prompts.positive) + len(interaction.prompts.negative)}
        with slot(context.predictions):
            mask = _mask(
                annotator,
                interaction,
                project,
                lambda: is_disconnected() or time.monotonic() > deadline,
                settings.image_max_pixels,
            )
        reply = orjson.dumps(answer(mask, settings.cvat_answer), option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(reply, content_type="application/json")

    return nuclio


def _mask(
    annotator: Annotator, interaction: Interaction, project: int | None, is_cancelled: Cancelled, max_pixels: int
) -> BoxMask:
    """The object's mask; empty if no prompt says where it is. The picture is decoded only if its features are not
    cached."""
    picture, prompts = interaction.picture, interaction.prompts
    size = read_size(BytesIO(picture))
    check_size((size[1], size[0]), max_pixels)  # a header may claim anything
    if not prompts.has_positive:
        return BoxMask.of(np.zeros(size, np.bool_))
    image = sent_image(file_digest(picture), lambda: picture)
    annotation = annotator.annotate(image, prompts.clicks(size), prompts.box(size), size, is_cancelled, project)
    g.facts["stages"] = annotation.stages
    return annotation.mask


def _project(annotator: Annotator, name: str) -> int | None:
    """The project whose function has this name; None for the function of the base."""
    return _chosen({function_name(project): project for project in (None, *annotator.promoted())}, name)


def _chosen(functions: Mapping[str, T], name: str) -> T:
    if name not in functions:
        raise UnknownFunctionError(f"this server has no function {name}; it has {', '.join(functions)}")
    return functions[name]
