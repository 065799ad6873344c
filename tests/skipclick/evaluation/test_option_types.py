"""Protects what command-line options take, and that what they refuse is named."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

import pytest

from skipclick.evaluation.option_types import named_folder, positive, positive_float


def test_what_is_taken() -> None:
    assert named_folder("DAVIS=/data/a=b") == ("DAVIS", Path("/data/a=b"))
    assert positive("12") == 12
    assert positive_float("1e-4") == 1e-4


@pytest.mark.parametrize(
    ("read", "text"),
    [
        *((named_folder, text) for text in ("DAVIS", "=/data", "DAVIS=", "")),
        *((positive, text) for text in ("0", "-1", "1.5", "two", "")),
        *((positive_float, text) for text in ("0", "-1", "inf", "nan", "two", "")),
    ],
)
def test_what_is_refused_is_named(read: Callable[[str], object], text: str) -> None:
    with pytest.raises(ArgumentTypeError, match=f"^{text!r} is not "):
        read(text)
