"""The app: all routes together, and the small ones that report the server's state.

`label_studio/protocol.py` interprets Label Studio's requests, `annotator.py` carries them out.
"""

from __future__ import annotations

from flask import Blueprint, Flask, Response, g, jsonify

from backend.annotator import Annotator
from backend.factory import Service
from backend.finetune.scheduler import Training
from backend.label_studio.labeling_config import (
    check_labeling_config,
    labeling_config_doubts,
    parse_labeling_config,
)
from backend.label_studio.protocol import project_number, read_json, read_setup
from backend.readiness import Readiness
from backend.settings import Settings
from backend.web.access import restrict_access
from backend.web.errors import answer_errors
from backend.web.http import AppContext, slot, unavailable
from backend.web.learning import build_learning
from backend.web.nuclio import build_nuclio
from backend.web.pages import build_pages
from backend.web.predict import build_predict
from backend.web.telemetry import Telemetry, observe_requests

SETUP_MAX_BYTES = 4 << 20
"""Of a /setup body, a labeling config and little else."""

SETUP_PATIENCE = 2.0
"""Seconds that /setup waits while the model is being loaded: Label Studio waits 3, and then shows an error until it
asks again, when the next page is opened."""


def create_app(settings: Settings, annotator: Annotator) -> Flask:
    """The server around an annotator."""
    return build_app(settings, Readiness.of(Service(annotator)))


def build_app(settings: Settings, readiness: Readiness, training: Training | None = None) -> Flask:
    """The server around an annotator that may still be loading; without `training` it does not learn."""
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.request_max_bytes + 1  # see `BodyReader`
    context = AppContext.of(settings, readiness, training)
    telemetry = Telemetry(readiness, training)
    observe_requests(app, telemetry)
    restrict_access(app, settings)
    answer_errors(app, settings)
    app.register_blueprint(build_status(context, telemetry))
    app.register_blueprint(build_predict(context))
    app.register_blueprint(build_learning(context))
    with_proposals = settings.predict == "similar"
    app.register_blueprint(build_pages(readiness, training, lambda: slot(context.pages), with_proposals))
    if settings.cvat == "on":
        app.register_blueprint(build_nuclio(context))
    return app


def build_status(context: AppContext, telemetry: Telemetry) -> Blueprint:
    """The routes by which programs query the server's state, and /setup, by which Label Studio connects."""
    status, readiness = Blueprint("status", __name__), context.readiness

    @status.get("/")
    @status.get("/health")
    def health() -> Response:
        return jsonify(status="UP", model_class="SkipClick")

    @status.get("/ready")
    def ready() -> Response:
        trouble = readiness.trouble()
        return jsonify(status="READY") if trouble is None else unavailable(trouble)

    @status.post("/setup")
    def setup() -> Response:
        body = read_setup(read_json(context.bodies.read(SETUP_MAX_BYTES)))
        g.facts["project"] = body.project
        config = parse_labeling_config(body.label_config)
        check_labeling_config(config)
        doubts = labeling_config_doubts(config)
        if doubts:
            g.facts["warning"] = "; ".join(doubts)
        service = readiness.service(SETUP_PATIENCE)
        service.names.tell(body.hostname)
        return jsonify(model_version=service.annotator.version_of(project_number(body.project)), warnings=doubts)

    @status.get("/versions")
    def versions() -> Response:
        return jsonify(versions=readiness.service(SETUP_PATIENCE).annotator.versions())

    @status.get("/metrics")
    def metrics() -> Response:
        with slot(context.pages):
            return Response(telemetry.exposition(), content_type="text/plain; version=0.0.4; charset=utf-8")

    return status
