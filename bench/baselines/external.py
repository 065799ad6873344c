"""Methods from outside this project: any Python object with `encode` and `click`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipclick import Click


@dataclass(frozen=True, eq=False)
class ExternalFeatures:
    """What the method's `encode` returned, and the (H, W) of the photo."""

    features: Any
    image_size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class ExternalModel:
    """A method whose answers are checked before they are measured."""

    method: Any
    version: str
    """What the method calls itself by `version`, else how it was named."""

    def encode(self, image: NDArray[np.uint8]) -> ExternalFeatures:
        """Whatever the method makes of the photo, uint8 RGB (H, W, 3)."""
        return ExternalFeatures(self.method.encode(image), (image.shape[0], image.shape[1]))

    def click(
        self, features: ExternalFeatures, clicks: Sequence[Click], previous: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """The method's answer as float32 (H, W). Raises ValueError where it has another shape or is not a number."""
        answer = np.asarray(self.method.click(features.features, clicks, previous), np.float32)
        if answer.shape != features.image_size or np.isnan(answer).any():
            raise ValueError(
                f"{self.version} answered a click with {'NaN in ' if np.isnan(answer).any() else ''}an array of shape "
                f"{answer.shape}; return probabilities of shape {features.image_size}, the photo's"
            )
        return answer


def load_external(name: str) -> ExternalModel:
    """The method that "module:factory" names; `factory()` returns an object with `encode` and `click`.

    Raises ValueError where there is no such module or factory, or it returns something else.
    """
    module_name, _, factory_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"{name}: cannot import {module_name!r} ({error}); PYTHONPATH must hold its folder, or, if a baseline was "
            "meant, --list has the names"
        ) from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise ValueError(f"{name}: module {module_name!r} has no callable {factory_name!r}")
    method = factory()
    lacking = [call for call in ("encode", "click") if not callable(getattr(method, call, None))]
    if lacking:
        raise ValueError(
            f"{name}: a {type(method).__name__} has no {' and no '.join(lacking)}; a method is an object with "
            "encode(image) and click(features, clicks, previous)"
        )
    return ExternalModel(method, str(getattr(method, "version", name)))
