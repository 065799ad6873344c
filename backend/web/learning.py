"""The routes of fine-tuning: Label Studio's events, and trainings to start, follow and cancel."""

from __future__ import annotations

import logging
from dataclasses import asdict
from http import HTTPStatus

from flask import Blueprint, Response, g, jsonify, request, send_file

from backend.finetune.job_store import RefusedError
from backend.finetune.scheduler import Training
from backend.label_studio.protocol import ProtocolError, project_number, read_json, read_webhook
from backend.web.http import AppContext, slot, unavailable
from backend.web.telemetry import one_line

WEBHOOK_MAX_BYTES = 24 << 20
"""Of an event, a task with its masks. Applying one takes up to 45 times as much memory; the content of larger ones is
read from Label Studio by the next training."""

logger = logging.getLogger(__name__)

_SWITCHED_OFF = "this server does not learn: it was started with FINETUNE=off or follow"


def build_learning(context: AppContext) -> Blueprint:
    """The routes."""
    learning = Blueprint("learning", __name__)
    training = context.training

    @learning.errorhandler(OSError)
    def cannot_use(error: OSError) -> Response:
        """Whatever is wrong with the files of learning: a full disk, a folder under a file's name."""
        logger.error("id=%s: annotations cannot be stored or read: %s", g.request_id, one_line(error))
        return unavailable(f"annotations cannot be stored or read now: {error}")

    @learning.post("/webhook")
    def webhook() -> tuple[Response, int]:
        """Answered as soon as the event is recorded: Label Studio sends it inside the annotator's own request."""
        raw = context.bodies.read(WEBHOOK_MAX_BYTES)
        body = read_json(raw)
        action = read_webhook(body)
        g.facts["action"] = action[:40]
        result = None
        with slot(context.learning):
            if action == "START_TRAINING":
                result = _start_training(training, project_number(body.get("project")))
            elif training is not None:
                training.note(body, raw)
        return jsonify(result=result, status="ok"), HTTPStatus.CREATED

    @learning.get("/training")
    def report() -> Response:
        """What was learnt from a project, and the state of its training."""
        project, switched_on = _asked_project(), _switched_on(training)
        service = context.readiness.loaded()
        version = service.annotator.version_of(project) if service is not None else None
        with slot(context.learning):
            return jsonify(switched_on.report(project) | {"version": version})

    @learning.get("/training/picture")
    def picture() -> Response:
        """A picture of what a training changed."""
        number = request.args.get("number", type=int)
        if number is None:
            raise ProtocolError("name a training's number, as in /training/picture?project=1&number=1")
        return send_file(_switched_on(training).jobs.picture(_asked_project(), number))

    @learning.delete("/training")
    def cancel() -> Response:
        with slot(context.learning):
            return jsonify(job=asdict(_switched_on(training).cancel(_asked_project())))

    return learning


def _start_training(training: Training | None, project: int | None) -> str:
    """Ask for a training; returns its state, in words."""
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
    """The project in the query. Raises `ProtocolError`."""
    project = project_number(request.args.get("project", ""))
    if project is None:
        raise ProtocolError("name a project's id, as in /training?project=1")
    return project
