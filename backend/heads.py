"""Selects the head for a project: its promoted version, otherwise the base. All heads share one backbone."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from backend.finetune.versions import Version, Versions
from skipclick.cache import ByteLru, CacheStats, SharedCache
from skipclick.features import ImageFeatures
from skipclick.predictor import ClickRequest, Prediction
from skipclick.proposals import Prototypes

_TRY_AGAIN = 30.0
"""Seconds after which a version that could not be used is tried again."""

logger = logging.getLogger(__name__)


class PredictorLike(Protocol):
    """The part of `skipclick.Predictor` that the annotator uses."""

    @property
    def head(self) -> str: ...

    def encode(self, image: NDArray[np.uint8]) -> ImageFeatures: ...

    def prepare(self, features: ImageFeatures) -> ImageFeatures: ...

    def predict(self, requests: Sequence[ClickRequest]) -> Sequence[Prediction]: ...

    def start_state(self, area: NDArray[np.bool_], probability_inside: float = 1.0) -> torch.Tensor: ...


@dataclass(frozen=True, eq=False)
class Head:
    """One loaded head: the version's name, its predictor, and its bytes without the backbone."""

    version: str
    predictor: PredictorLike
    nbytes: int = 0
    accepted: Prototypes | None = None
    """What the project's objects look like, if masks like them are to be proposed."""


class Heads:
    """The head in service of each project. Thread-safe.

    The project's pointer is read for every request, so a promotion or a rollback takes effect with the next request;
    running requests keep their head. Loaded heads stay within a budget of bytes.
    """

    def __init__(
        self,
        base: Head,
        versions: Versions | None = None,
        load: Callable[[Version], Head] | None = None,
        budget_bytes: int = 0,
    ) -> None:
        """`load` raises `ValueError` for a version that does not fit. Without it and `versions` the base serves
        everybody."""
        self.base = base
        self._versions = versions
        self._load = load
        self._loaded: SharedCache[Head] = SharedCache("heads", ByteLru(budget_bytes))
        self._unfit: dict[tuple[int, int], float] = {}  # when to try again, monotonic time

    def of(self, project: int | None) -> Head:
        """The head that serves a project now, loaded if necessary; the base if its version cannot be used."""
        if self._versions is None or self._load is None or project is None:
            return self.base
        versions, load = self._versions, self._load
        try:
            number = versions.current(project)
        except (OSError, ValueError) as error:  # a missing disk, a damaged pointer: a click must not fail for that
            logger.error("project %d is served by the base model: %s", project, error)
            return self.base
        if number is None or time.monotonic() < self._unfit.get((project, number), 0.0):
            return self.base
        try:
            return self._loaded.get_or_make((project, number), lambda: load(versions.version(project, number)))
        except Exception as error:  # whatever a damaged version causes: the base still answers
            self._unfit[project, number] = time.monotonic() + _TRY_AGAIN  # a folder may be missing for a moment
            logger.error("project %d is served by the base model: %s", project, error)
            return self.base

    def promoted(self) -> dict[int, Version]:
        """By project, its version in service; projects served by the base are left out. Loads no weights."""
        found: dict[int, Version] = {}
        if self._versions is None:
            return found
        for project in self._versions.projects():
            try:
                number = self._versions.current(project)
                if number is not None:
                    found[project] = self._versions.version(project, number)
            except (OSError, ValueError) as error:  # such a project is served by the base, see `of`
                logger.error("the version of project %d cannot be read: %s", project, error)
        return found

    def names(self) -> list[str]:
        """The base's version and all that could be promoted, in service or not."""
        if self._versions is None:
            return [self.base.version]
        found = [self.base.version]
        for project in self._versions.projects():
            for number in self._versions.numbers(project):
                try:
                    found.append(self._versions.version(project, number).name)
                except (OSError, ValueError) as error:
                    logger.error("version %d of project %d cannot be read: %s", number, project, error)
        return found

    def stats(self) -> dict[str, CacheStats]:
        """Of the heads loaded besides the base; empty where the base serves everybody."""
        return {} if self._versions is None else self._loaded.stats()

    def close(self) -> None:
        """Stop the background work."""
        self._loaded.close()
