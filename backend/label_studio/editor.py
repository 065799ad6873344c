"""What Label Studio's editor sends for a click, for measurements and checks that click without an editor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.label_studio.labeling_config import PROMPT_KINDS, ConfigError, Control, parse_labeling_config
from skipclick import Click


@dataclass(frozen=True)
class SmartTool:
    """A smart tool of a labeling config, and the image tag that it is used on."""

    xml: str
    control: Control
    image_tag: str
    project: int

    @staticmethod
    def of(xml: str, project: int = 1, data: Mapping[str, Any] | None = None) -> SmartTool:
        """The first smart tool of a labeling config for a task with these `data`, which matter if the config has
        Repeater tags or takes labels from them. Raises `ConfigError` if there is none."""
        config = parse_labeling_config(xml)
        config = config if data is None else config.for_task(data)
        for control in config.controls.values():
            tags = [name for name in control.to_names if name in config.images]
            if control.kind in PROMPT_KINDS and control.smart and tags:
                return SmartTool(xml, control, tags[0], project)
        raise ConfigError('the labeling config has no KeyPointLabels or RectangleLabels with smart="true"')

    def predict_body(self, task: Mapping[str, Any], size: tuple[int, int], clicks: Sequence[Click]) -> dict[str, Any]:
        """The /predict body for all clicks so far on an object, in pixels of the task's image of `size` (H, W).

        For each click a rectangle tool sends a rectangle around it, with half the image's width and height.
        """
        items = [self._item(number, click, size) for number, click in enumerate(clicks)]
        params = {"login": None, "password": None, "context": {"result": items}}
        return {"tasks": [dict(task)], "project": f"{self.project}.1", "label_config": self.xml, "params": params}

    def _item(self, number: int, click: Click, size: tuple[int, int]) -> dict[str, Any]:
        height, width = size
        x, y = 100 * (click.x + 0.5) / width, 100 * (click.y + 0.5) / height
        place = {"x": x, "y": y, "width": 0.2}
        if self.control.kind == "rectanglelabels":
            place = {"x": x - 25, "y": y - 25, "width": 50, "height": 50, "rotation": 0}
        labels = list(self.control.labels[:1] or ["Object"])
        return {
            "id": f"{number}-{click.x}-{click.y}",
            "type": self.control.kind,
            "from_name": self.control.name,
            "to_name": self.image_tag,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "is_positive": click.positive,
            "value": place | {"labels": labels, self.control.kind: labels},
            "origin": "manual",
        }
