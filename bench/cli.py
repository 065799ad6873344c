"""What the commands of this folder share: types of their options, and how they write results."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any, NoReturn

from skipclick.atomic_io import atomic_write
from skipclick.evaluation.versions import software_versions


class CommandParser(argparse.ArgumentParser):
    """Shows the module's documentation as it is written, and refuses wrong options in one line with exit status 2."""

    def __init__(self, *, formatter_class: Any = argparse.RawDescriptionHelpFormatter, **options: Any) -> None:
        super().__init__(formatter_class=formatter_class, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def named_folder(text: str) -> tuple[str, Path]:
    """The name and the folder of NAME=DIR."""
    name, separator, folder = text.partition("=")
    if not (name and separator and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR")
    return name, Path(folder)


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def positive_float(text: str) -> float:
    """A number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return number


def image_size(text: str) -> tuple[int, int]:
    """The (H, W) of WIDTHxHEIGHT."""
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and 16 <= int(side) <= 20_000 for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 1920x1080")
    return int(sides[1]), int(sides[0])


def write_results(output: Path, facts: dict[str, Any], table: str | None = None) -> None:
    """Writes OUTPUT.json: the command, the versions and these facts; and OUTPUT.md with a table."""
    facts = {"command": sys.argv, "versions": software_versions()} | facts
    with atomic_write(output.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(facts, indent=1))
    if table is not None:
        with atomic_write(output.with_suffix(".md")) as temporary:
            temporary.write_text(table, encoding="utf-8")
