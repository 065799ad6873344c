"""What the commands of this folder share: their parser, and how they write results."""

from __future__ import annotations

import argparse
import json
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
