"""A stand-in for the package `label-studio-ml` 2.x, which installs only from its repository.

Its signatures, and what its runner passes to a model and takes from it, are those of `LabelStudioMLBase` and of the
routes in github.com/HumanSignal/label-studio-ml-backend (label_studio_ml/model.py and api.py as of 2024 to 2026).
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from flask import Flask, Response, jsonify, request

_CACHE: dict[tuple[str, str], Any] = {}


class LabelStudioMLBase:
    """What a model inherits: a store of strings by project, and `setup` at the end of the constructor."""

    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        self.project_id = project_id or ""
        if label_config is not None:
            self.set("label_config", label_config)
        if not self.get("model_version"):
            self.set("model_version", "0.0.1")
        self.setup()

    def setup(self) -> None: ...

    def get(self, key: str) -> Any:
        return _CACHE.get((self.project_id, key))

    def set(self, key: str, value: str) -> None:
        _CACHE[self.project_id, key] = value

    @property
    def label_config(self) -> str | None:
        return self.get("label_config")

    def predict(self, tasks: list[dict[str, Any]], context: dict[str, Any] | None = None, **kwargs: Any) -> Any: ...

    def fit(self, event: str, data: dict[str, Any], **additional_params: Any) -> Any: ...


def init_app(
    model_class: type[LabelStudioMLBase], basic_auth_user: str | None = None, basic_auth_pass: str | None = None
) -> Flask:
    """The runner's routes around a model class; open to all unless it has both a user and a password."""
    app = Flask("label_studio_ml")
    user = basic_auth_user or os.environ.get("BASIC_AUTH_USER")
    password = basic_auth_pass or os.environ.get("BASIC_AUTH_PASS")

    @app.before_request
    def check_auth() -> Response | None:
        given = request.authorization
        if not (user and password) or (given and (given.username, given.password) == (user, password)):
            return None
        return Response("Unauthorized", 401, {"WWW-Authenticate": 'Basic realm="Login required"'})

    @app.get("/health")
    def health() -> Any:
        return jsonify(status="UP", model_class=model_class.__name__)

    @app.post("/setup")
    def setup() -> Any:
        body = request.get_json()
        model = model_class(project_id=body["project"].split(".", 1)[0], label_config=body.get("schema"))
        return jsonify(model_version=model.get("model_version"))

    @app.post("/predict")
    def predict() -> Any:
        body = request.get_json()
        params = body.get("params", {})
        context = params.pop("context", {})
        project_id = str(body.get("project")).split(".", 1)[0]
        model = model_class(project_id=project_id, label_config=body.get("label_config"))
        answer = model.predict(body.get("tasks"), context=context, **params)
        return jsonify(results=[] if answer is None else answer)

    @app.post("/webhook")
    def webhook() -> Any:
        body = request.get_json()
        event = body.pop("action")
        if event not in ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATION_DELETED", "START_TRAINING"):
            return jsonify(status="Unknown event")
        model = model_class(str(body["project"]["id"]), label_config=body["project"]["label_config"])
        return jsonify(result=model.fit(event, body), status="ok"), 201

    return app


def modules() -> dict[str, ModuleType]:
    """The package's modules by name, for `sys.modules`."""
    package, api, model = (ModuleType(f"label_studio_ml{part}") for part in ("", ".api", ".model"))
    vars(api)["init_app"] = init_app
    vars(model)["LabelStudioMLBase"] = LabelStudioMLBase
    return {module.__name__: module for module in (package, api, model)}
