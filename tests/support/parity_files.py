"""Finds the golden files of the parity tests by pattern, in the folder that PARITY_DIR names.

The default is tests/parity (see SOURCE.md there). Any other folder of the same form works unchanged, whatever
sizes and seeds its files have: a test is parametrised over the files found and reads everything from them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

PARITY_DIR = Path(os.environ.get("PARITY_DIR", Path(__file__).parents[1] / "parity"))


def golden_paths(pattern: str) -> list[Path]:
    """All files of PARITY_DIR that match a glob pattern, sorted by name."""
    return sorted(PARITY_DIR.glob(pattern))


def for_each_golden(pattern: str, without: str = "") -> Callable[..., Any]:
    """Run a test once for each golden, its path passed as `golden`; without any file the test is skipped.

    Files that also match the pattern `without` are left out.
    """
    excluded = set(golden_paths(without)) if without else set()
    paths = [path for path in golden_paths(pattern) if path not in excluded]
    missing = pytest.param(None, marks=pytest.mark.skip(reason=f"no {pattern} in {PARITY_DIR}"))
    return pytest.mark.parametrize("golden", paths or [missing], ids=[path.stem for path in paths] or [pattern])


def load_golden(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an .npz file by name."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def unpack_bits(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Undo np.packbits and cut to a shape."""
    return np.unpackbits(packed)[: int(np.prod(shape))].reshape(shape).astype(bool)
