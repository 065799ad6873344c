"""What is asked for, as values: the photo, clicks in its pixels, a box. Knows no tool's JSON."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ImageReference:
    """Where a task says its image is, and what Label Studio sent along to get it."""

    url: str
    task_id: int | None = None
    login: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class SmartClick:
    """A click as an annotator made it: the pixel of the shown image that was hit (column x, row y) and the
    sign."""

    id: str
    x: int
    y: int
    positive: bool


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the shown image: top left corner, size, and degrees clockwise around that
    corner."""

    x: float
    y: float
    width: float
    height: float
    rotation: float = 0.0
