"""A fine-tuning as a picture: clicks before and after, and what changed most on held-out images."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from skipclick import Predictor
from skipclick.drawing import draw_overlay
from skipclick.evaluation.datasets import Sample
from skipclick.evaluation.evaluate import replay
from skipclick.evaluation.results import ObjectResult
from skipclick.metrics import noc
from skipclick.model import SkipClick
from train.finetune.gate import RULES, ForAnnotator
from train.finetune.run import Candidate

WIDTH = 960
BAR = 26  # height of a line of the chart, pixels
PANEL = (312, 234)  # (width, height) of a photo in the gallery
BEFORE, AFTER, INK = (150, 150, 150), (0, 114, 178), (30, 30, 30)
SHOWN_AT = 0.9  # IoU to which the gallery counts clicks
MAX_SHOWN_CLICKS = 5
MAX_ANNOTATORS = 8  # to list
LINE = 20  # pixels for each


def picture(candidate: Candidate, in_service: SkipClick, num_rows: int = 4) -> NDArray[np.uint8]:
    """uint8 RGB: means as bars, then held-out objects with their true outline and the masks of both models: those that
    gained most, and the one that lost most."""
    rows = [_chart(candidate)]
    models = [Predictor(in_service), Predictor(candidate.model)]
    for place in _chosen(candidate, num_rows):
        pair = candidate.before.results[place], candidate.after.results[place]
        sample = next(one for one in candidate.held_out if one.name == pair[0].image)
        rows.append(_row(sample, models, pair))
    return np.concatenate(rows)


def _chart(candidate: Candidate) -> NDArray[np.uint8]:
    report = candidate.report
    differences = [one for one in (*report.held_out, *report.retention) if one.percent]
    bottom = 84 + 2 * BAR * len(differences)
    lines = annotator_lines(report.annotators)
    canvas = Image.new("RGB", (WIDTH, bottom + LINE * len(lines) + (12 if lines else 0)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    verdict = "to be promoted" if report.worth_promoting else "not promoted"
    draw.text((12, 10), f"{report.num_objects} objects in {report.num_images} images: {verdict}", INK, font)
    draw.text((12, 34), report.reason.replace("→", "to"), INK, ImageFont.load_default(13))
    for line, one in enumerate(differences):
        top, scale = 70 + 2 * BAR * line, (WIDTH - 330) / RULES.num_clicks
        draw.text((12, top + BAR // 2), f"{one.dataset}: clicks to {one.percent} %", INK, font)
        for index, (value, colour) in enumerate([(one.old, BEFORE), (one.new, AFTER)]):
            y = top + (BAR - 4) * index
            draw.rectangle((250, y, 250 + round(value * scale), y + BAR - 8), colour)
            draw.text((256 + round(value * scale), y), f"{value:.2f} {('before', 'after')[index]}", INK, font)
    for place, text in enumerate(lines):
        draw.text((12, bottom + 4 + LINE * place), text, INK, ImageFont.load_default(13))
    return np.asarray(canvas)


def annotator_lines(annotators: Sequence[ForAnnotator]) -> list[str]:
    """A line for each annotator: what they taught, and the effect on their held-out objects; none for a single one."""
    if len(annotators) < 2:
        return []
    lines = []
    for one in annotators[:MAX_ANNOTATORS]:
        old, new = (f"{np.mean(clicks):.2f}" if clicks else "-" for clicks in (one.old, one.new))
        measured_on = f"held out {len(one.old)}: {old} to {new} clicks" if one.old else "none held out"
        taught = f"taught {one.share:.0%} ({one.num_learnt} objects)"
        lines.append(f"annotator {one.annotator or 'unknown'}: {taught}, {measured_on}")
    if (rest := len(annotators) - MAX_ANNOTATORS) > 0:
        lines.append(f"and {rest} more, who taught less")
    return lines


def _chosen(candidate: Candidate, count: int) -> list[int]:
    """Places of the objects to show: those whose clicks fell most, and last the one whose clicks rose most, if any."""
    change = (candidate.after.nocs - candidate.before.nocs).mean(axis=1)
    order = [int(place) for place in np.argsort(change, kind="stable")]
    worst = order[-1:] if change[order[-1]] > 0 else []
    return order[: count - len(worst)] + worst


def _row(sample: Sample, models: Sequence[Predictor], pair: tuple[ObjectResult, ObjectResult]) -> NDArray[np.uint8]:
    """The ground truth, then each model's mask after the same number of its own clicks."""
    target = sample.targets[pair[0].object_id] == 1
    count = min(MAX_SHOWN_CLICKS, *(len(one.clicks) for one in pair))
    panels = [_panel(draw_overlay(sample.image, target, opacity=0.0), "the accepted mask")]
    for model, result, when in zip(models, pair, ("before", "after"), strict=True):
        mask = replay(model, sample.image, result.clicks[:count], RULES)
        shown = draw_overlay(sample.image, mask, result.clicks[:count])
        needed = noc(result.ious, SHOWN_AT)
        panels.append(_panel(shown, f"{when}: {result.ious[count - 1]:.0%} after {count}, needs {needed}"))
    return np.concatenate(panels, axis=1)


def _panel(photo: NDArray[np.uint8], caption: str) -> NDArray[np.uint8]:
    """A photo fitted into a white panel, a caption below it."""
    width, height = PANEL
    factor = min(width / photo.shape[1], height / photo.shape[0])
    size = max(1, round(photo.shape[1] * factor)), max(1, round(photo.shape[0] * factor))
    canvas = Image.new("RGB", (WIDTH // 3, height + 30), "white")
    fitted = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
    canvas.paste(Image.fromarray(fitted), ((WIDTH // 3 - size[0]) // 2, (height - size[1]) // 2))
    ImageDraw.Draw(canvas).text((8, height + 6), caption, INK, ImageFont.load_default(14))
    return np.asarray(canvas)
