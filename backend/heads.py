"""Whose head answers: a project's own, once one was promoted, else the base. All of them work on one backbone."""

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
    """What the annotator asks of `skipclick.Predictor`."""

    @property
    def head(self) -> str: ...

    def encode(self, image: NDArray[np.uint8]) -> ImageFeatures: ...

    def prepare(self, features: ImageFeatures) -> ImageFeatures: ...

    def predict(self, requests: Sequence[ClickRequest]) -> Sequence[Prediction]: ...

    def start_state(self, area: NDArray[np.bool_]) -> torch.Tensor: ...


@dataclass(frozen=True, eq=False)
class Head:
    """One head as it answers: the version's name, its predictor, and the bytes that it holds beside the backbone."""

    version: str
    predictor: PredictorLike
    nbytes: int = 0
    accepted: Prototypes | None = None
    """What the project's objects look like, where masks like them are to be proposed."""


class Heads:
    """The head in service of each project. Thread-safe.

    The project's pointer is read anew for every request, so a promotion or a rollback holds from the next request on;
    requests that have their head keep it. Loaded heads stay within a budget of bytes.
    """

    def __init__(
        self,
        base: Head,
        versions: Versions | None = None,
        load: Callable[[Version], Head] | None = None,
        budget_bytes: int = 0,
    ) -> None:
        """Without `versions` and `load`, which raises `ValueError` for an unfit version, the base answers everybody."""
        self.base = base
        self._versions = versions
        self._load = load
        self._loaded: SharedCache[Head] = SharedCache("heads", ByteLru(budget_bytes))
        self._unfit: dict[tuple[int, int], float] = {}  # when to try again, monotonic time

    def of(self, project: int | None) -> Head:
        """The head that answers a project now, loaded if need be; the base if its version cannot be used."""
        if self._versions is None or self._load is None or project is None:
            return self.base
        versions, load = self._versions, self._load
        try:
            number = versions.current(project)
        except (OSError, ValueError) as error:  # a disk that is gone, a damaged pointer; a click must not fail for it
            logger.error("project %d is served by the base model: %s", project, error)
            return self.base
        if number is None or time.monotonic() < self._unfit.get((project, number), 0.0):
            return self.base
        try:
            return self._loaded.get_or_make((project, number), lambda: load(versions.version(project, number)))
        except Exception as error:  # whatever a damaged version makes go wrong; the base answers every click
            self._unfit[project, number] = time.monotonic() + _TRY_AGAIN  # a folder may be missing for a moment
            logger.error("project %d is served by the base model: %s", project, error)
            return self.base

    def promoted(self) -> dict[int, Version]:
        """By project its version in service; without those that the base answers. Loads no weights."""
        found: dict[int, Version] = {}
        if self._versions is None:
            return found
        for project in self._versions.projects():
            try:
                number = self._versions.current(project)
                if number is not None:
                    found[project] = self._versions.version(project, number)
            except (OSError, ValueError) as error:  # its clicks are answered by the base too, see `of`
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
        """What is loaded beside the base; nothing where the base answers everybody."""
        return {} if self._versions is None else self._loaded.stats()

    def close(self) -> None:
        """Stop the background work."""
        self._loaded.close()
