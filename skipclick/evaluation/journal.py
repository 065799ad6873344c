"""JSON lines that survive an interruption: what a long run has done so far, so that it can be resumed.

The first line says what the run is about; each further line is one finished piece of it. Lines are only ever appended,
so an interruption costs one unfinished line at most.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from skipclick.atomic_io import atomic_write

T = TypeVar("T")


def start_journal(
    path: Path,
    name: str,
    subject: Mapping[str, Any],
    entries: Iterable[Mapping[str, Any]] = (),
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes a journal with these entries, replacing any other.

    Args:
        name: of the kind of journal.
        subject: JSON, what must be the same when the run is resumed.
        about: JSON, what is recorded as well but may change, such as software versions.
    """
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"format": name} | dict(subject) | dict(about or {})) + "\n")
        file.writelines(json.dumps(entry) + "\n" for entry in entries)


def append_entry(path: Path, entry: Mapping[str, Any]) -> None:
    """Adds a line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def resume_journal(
    path: Path, name: str, subject: Mapping[str, Any], parse: Callable[[dict[str, Any]], T], remedy: str
) -> list[T]:
    """All finished entries, parsed; an unfinished last line is removed, so that the journal can be appended to.

    Raises ValueError, which ends with the remedy, if the file is damaged or another run's.
    """
    text = path.read_bytes()
    finished = text[: text.rfind(b"\n") + 1]
    try:
        begun, *lines = map(json.loads, finished.splitlines())
        if begun["format"] != name:
            raise ValueError
        entries = [parse(line) for line in lines]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{path} is damaged, or not a journal of this command: {remedy}") from None
    wanted = json.loads(json.dumps(dict(subject)))
    if differing := [key for key in wanted if begun.get(key) != wanted[key]]:
        raise ValueError(f"{path} was started with different {', '.join(differing)}: {remedy}")
    if len(finished) < len(text):
        with path.open("r+b") as file:
            file.truncate(len(finished))
    return entries
