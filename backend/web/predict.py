"""The routes that answer with masks: /predict, and /warm, which prepares an image for it."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
from flask import Blueprint, Response, g, jsonify, request
from numpy.typing import NDArray

from backend.annotator import Annotator, Cancelled, OverloadedError
from backend.label_studio import next_editor
from backend.label_studio.click_history import SignMemory, without_accepted_clicks
from backend.label_studio.corrections import corrected_region
from backend.label_studio.protocol import (
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
from backend.prompts import Start, StartMask
from backend.web.http import AppContext, BodyReader, client_disconnected, slot
from backend.web.proposing import Proposing
from backend.web.telemetry import one_line
from skipclick.cleaning import clean
from skipclick.masks import BoxMask
from skipclick.prompts import Click
from skipclick.proposals import DEFAULT_RULE
from skipclick.strokes import Stroke

logger = logging.getLogger(__name__)


def build_predict(context: AppContext) -> Blueprint:
    """The routes."""
    blueprint = Blueprint("predict", __name__)
    predictions = Predictions(context)

    @blueprint.post("/predict")
    def predict() -> Response:
        deadline = time.monotonic() + context.settings.request_timeout
        is_disconnected = client_disconnected(request.environ)
        annotator = context.readiness.service().annotator
        raw = context.bodies.read()
        asked = PredictRequest(
            body=read_predict(read_json(raw)),
            raw=raw,
            annotator=annotator,
            is_cancelled=lambda: is_disconnected() or time.monotonic() > deadline,
            bodies=context.bodies,
        )
        answer = predictions.answer(asked)
        return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), content_type="application/json")

    @blueprint.post("/warm")
    def warm() -> Response:
        """Like /predict for a task that was opened, but answered when its image is ready, for `backend warm`."""
        body = read_predict(read_json(context.bodies.read()))
        if len(body.tasks) != 1:
            raise ProtocolError(f"one task is warmed at a time, this request has {len(body.tasks)}")
        annotator = context.readiness.service().annotator
        with slot(context.warming), slot(context.predictions):
            annotator.prepare(task_image(body, body.tasks[0]), project_number(body.project))
        return jsonify(kept=max(stats.entries for stats in annotator.feature_stats().values()))

    return blueprint


@dataclass(eq=False)
class PredictRequest:
    """A /predict body, and the annotator that answers it."""

    body: PredictBody
    raw: bytes
    """The body's bytes, from which masks are read."""
    annotator: Annotator
    is_cancelled: Cancelled
    bodies: BodyReader
    has_mask_memory: bool = False
    """Whether memory for decoding a mask is reserved; masks are decoded one at a time."""

    @property
    def project(self) -> int | None:
        """The project's number, if the body has one."""
        return project_number(self.body.project)

    @property
    def version(self) -> str:
        """Name of the weights that serve the project."""
        return self.annotator.version_of(self.project)

    def decode(self, region: Json, height: int, width: int) -> NDArray[np.bool_]:
        """A saved region's mask, bool (H, W). Raises `ValueError`, and `OverloadedError` if the request was
        cancelled."""
        if self.is_cancelled():
            raise OverloadedError("the request was cancelled, or took longer than REQUEST_TIMEOUT")
        if not self.has_mask_memory:
            self.bodies.reserve_mask(2 * height * width)
            self.has_mask_memory = True
        return read_mask(region, self.raw, height, width)

    def stroke(self, region: Json, positive: bool, height: int, width: int) -> Stroke:
        """A painted stroke, which takes the place of a click."""
        self.bodies.reserve_mask(height * width)
        return Stroke(self.decode(region, height, width), positive)

    def warm(self) -> None:
        """Prepare the image of a task that was just opened. Several tasks at once do not announce a click."""
        if len(self.body.tasks) != 1:
            return
        try:
            self.annotator.warm(task_image(self.body, self.body.tasks[0]), self.project)
        except ValueError as error:  # opening a task must not fail; the first click will report the same
            logger.warning("cannot warm up a task: %s", one_line(error))


class Predictions:
    """Answers /predict bodies from any number of threads."""

    def __init__(self, context: AppContext) -> None:
        settings = context.settings
        self._slots = context.predictions
        self._limits = Limits(settings.request_max_clicks, settings.image_max_pixels)
        self._output = Output(
            settings.mask_min_part, settings.polygon_min_iou, settings.polygon_max_points, settings.correct_regions
        )
        self._signs = SignMemory()
        self._proposing = Proposing(settings.predict_seconds) if settings.predict == "similar" else None

    def answer(self, asked: PredictRequest) -> dict[str, Any]:
        """The answer to a /predict body, as JSON."""
        body = asked.body
        g.facts |= {"project": body.project, "tasks": len(body.tasks)}
        if len(body.tasks) == 1:
            g.facts["task"] = body.tasks[0].get("id")
        if body.event:
            return _event(asked)
        prompts = next_editor.read_prompts(body.context, self._limits)
        if prompts is not None:
            with slot(self._slots):
                return self._next_editor_mask(asked, prompts)
        with slot(self._slots) if body.context else nullcontext():
            wanted = mask_request(body, self._signs.recall, self._limits, asked.stroke)
            if wanted is not None:
                self._signs.remember(task_key(body.tasks[0]), wanted.clicks)
                return self._mask(asked, wanted)
        if self._proposing is not None and body.context is None:
            proposals = self._proposals(asked, self._proposing)
            if proposals is not None:
                return proposals
        asked.warm()
        return nothing_to_store() if body.context is None else empty_response(asked.version)

    def _mask(self, asked: PredictRequest, wanted: MaskRequest) -> dict[str, Any]:
        """The answer to a request for a mask."""
        task, output = asked.body.tasks[0], self._output
        wanted = without_accepted_clicks(wanted, task, asked.decode)
        size = wanted.target.height, wanted.target.width
        start: Start | None = read_start(asked.body.start, *size) if asked.body.start else wanted.box
        corrected = None if asked.body.start else corrected_region(wanted, task, asked.decode, output.correct_regions)
        if corrected is not None:
            start = StartMask.of(corrected.mask)
        g.facts["clicks"] = len(wanted.clicks)
        is_known = start is not None and (wanted.box is not None or bool(wanted.clicks))
        if not is_known and not wanted.has_positive:
            asked.warm()
            return empty_response(asked.version)
        found = asked.annotator.annotate(wanted.image, wanted.clicks, start, size, asked.is_cancelled, asked.project)
        begin = time.perf_counter()
        marks = marks_of(wanted)
        mask = clean(found.mask, marks, output.mask_min_part)
        if mask.empty:
            answer = empty_response(found.version)
        else:
            answer = mask_response(wanted.target, mask, found.score, found.version, output, corrected, marks)
        g.facts["stages"] = {**found.stages, "mask": (time.perf_counter() - begin) * 1000}
        return answer

    def _next_editor_mask(self, asked: PredictRequest, prompts: next_editor.Prompts) -> dict[str, Any]:
        """The answer to prompts of the next editor."""
        body, annotator = asked.body, asked.annotator
        if len(body.tasks) != 1:
            raise ProtocolError(f"a request with clicks concerns one task, this one has {len(body.tasks)}")
        image = task_image(body, body.tasks[0])
        size = annotator.size_of(image, asked.is_cancelled, asked.project)
        clicks, box = prompts.placed(size)
        g.facts["clicks"] = len(clicks)
        if box is None and not any(click.positive for click in clicks):
            return next_editor.picture_response(BoxMask.of(np.zeros(size, np.bool_)), 0.0, asked.version)
        found = annotator.annotate(image, clicks, box, size, asked.is_cancelled, asked.project)
        mask = clean(found.mask, [Click(c.x, c.y, c.positive) for c in clicks], self._output.mask_min_part)
        g.facts["stages"] = found.stages
        return next_editor.picture_response(mask, found.score, found.version)

    def _proposals(self, asked: PredictRequest, proposing: Proposing) -> dict[str, Any] | None:
        """The answer with proposals for opened tasks and for "retrieve predictions"; None if there are none."""
        body, annotator, project = asked.body, asked.annotator, asked.project
        if not body.tasks or not annotator.can_propose(project):
            return None
        if len(body.tasks) > 1:
            return one_by_one(asked.version)
        try:
            task = untouched_task(body)
            if task is None:
                return None
            rule = replace(DEFAULT_RULE, min_part=self._output.mask_min_part)
            with slot(proposing.slots), slot(self._slots), proposing.only(task.name) as is_only:
                proposals = annotator.propose(task.image, project, proposing.seconds, rule) if is_only else None
            if proposals is None:
                return nothing_to_store()
            placed = [(task.target(one.label, proposals.size), one) for one in proposals.found]
        except (ValueError, OverloadedError) as error:  # opening a task must not fail; Label Studio asks again
            logger.warning("no proposals for a task: %s", one_line(error))
            return None
        masks = [(target, one.mask, one.quality) for target, one in placed if target is not None]
        g.facts["proposals"] = len(masks)
        return proposals_response(task.name, masks, proposals.version, self._output) if masks else None


def _event(asked: PredictRequest) -> dict[str, Any]:
    """The answer to what the next editor reports or asks."""
    if asked.body.event == next_editor.CAPABILITIES:
        return next_editor.capabilities(asked.version)
    if asked.body.event == next_editor.PREWARM:
        asked.warm()
    return next_editor.acknowledged(asked.version)
