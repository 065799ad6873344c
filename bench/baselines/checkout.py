"""Code of a method's authors, from a checkout that lies on PYTHONPATH: docs/baselines.md says which."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def import_checkout(method: str, *names: str) -> list[Any]:
    """Modules of a checkout. Raises `ValueError` if it is not there."""
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise ValueError(
            f"{method} needs its authors' checkout on PYTHONPATH, see docs/baselines.md: {error}"
        ) from error


@contextmanager
def reading_checkpoint(method: str, checkpoint: str) -> Iterator[None]:
    """While a checkout reads a checkpoint: raises `ValueError` with the first line of whatever it raises."""
    try:
        yield
    except Exception as error:  # whatever another project's code raises
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"the checkout of {method} cannot read {checkpoint!r}: {reason}") from error
