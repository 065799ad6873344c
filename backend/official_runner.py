"""The same backend under the official `label-studio-ml` 2.x runner, where that is installed:

    gunicorn --threads 8 'backend.official_runner:official_app()'

The runner parses Label Studio's requests and creates a model object for each; this module reassembles them and calls
our own app in this process. So nothing is decided here, and settings, limits, logs and answers are the same. The runner
requires the password on `/health` too. `/ready`, `/metrics` and error messages are missing: the runner turns errors
into status 500 and a traceback in its log.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from flask import Flask
from label_studio_ml.api import init_app
from label_studio_ml.model import LabelStudioMLBase

from backend.factory import build_service, build_training
from backend.readiness import Readiness
from backend.settings import Settings, revealed
from backend.web.app import build_app


def official_app() -> Flask:
    """The runner's app with our model, which is loaded now. Raises `ValueError` for settings that cannot be met."""
    settings = Settings.from_environment(os.environ)
    _our_app()
    # On its own the runner reads only BASIC_AUTH_USER and BASIC_AUTH_PASS, and is open if either is missing.
    app: Flask = init_app(
        SkipClick, basic_auth_user=settings.basic_auth_user, basic_auth_pass=revealed(settings.basic_auth_pass)
    )
    return app


@cache
def _our_app() -> Flask:
    """Our app, created once: the runner creates a new model for every request. It has checked the password already."""
    settings = Settings.from_environment(os.environ)
    settings = settings.model_copy(update={"basic_auth_user": None, "basic_auth_pass": None})
    training = build_training(settings)
    if training is not None:
        training.start()
    return build_app(settings, Readiness.of(build_service(settings)), training)


class SkipClick(LabelStudioMLBase):  # type: ignore[misc]  # the package has no types
    """The three methods that the runner calls. Each raises `ValueError` with the error message of a refusal."""

    def setup(self) -> None:
        """Refuse a labeling config that cannot work, and report the model version."""
        answer = _ask("/setup", {"project": self.project_id, "schema": self.label_config})
        self.set("model_version", answer["model_version"])

    def predict(
        self, tasks: list[dict[str, Any]], context: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Label Studio's `results` for clicks (`context`); none for a task that was opened."""
        body = {"tasks": tasks, "project": self.project_id, "label_config": self.label_config}
        results: list[dict[str, Any]] = _ask("/predict", body | {"params": kwargs | {"context": context}})["results"]
        return results

    def fit(self, event: str, data: dict[str, Any], **kwargs: Any) -> Any:
        """Pass on a webhook."""
        return _ask("/webhook", data | {"action": event}).get("result")


def _ask(route: str, body: dict[str, Any]) -> dict[str, Any]:
    """Our app's JSON answer. Raises `ValueError` with its error message if it refuses."""
    response = _our_app().test_client().post(route, json=body)
    answer: dict[str, Any] = response.get_json()
    if response.status_code >= 400:
        raise ValueError(answer["error"])
    return answer
