"""The journal of a running measurement, from which an interrupted one is resumed.

A text file beside the output. Its first line says what is measured; each further line is a group of photos that is
done. Lines are only ever appended, so whatever ends the run costs one unfinished line at most.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skipclick.evaluation.results import ObjectResult, Problem, read_object

FORMAT = "skipclick-noc-journal-1"


@dataclass(frozen=True)
class Entry:
    """What one model found on a group of photos."""

    model: str
    dataset: str
    seed: int | None
    photos: list[str]
    objects: list[ObjectResult]
    problems: list[Problem]


def start_journal(path: Path, subject: dict[str, Any]) -> None:
    """A new journal in place of any other. subject: JSON, all that must be the same when it is resumed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": FORMAT} | subject) + "\n", encoding="utf-8")


def append_entry(path: Path, entry: Entry) -> None:
    """Adds a line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(entry)) + "\n")


def resume_journal(path: Path, subject: dict[str, Any]) -> list[Entry]:
    """All finished entries; an unfinished last line is cut off, and the journal can be appended to.

    Raises ValueError where the file is no journal or was begun for another subject.
    """
    text = path.read_bytes()
    finished = text[: text.rfind(b"\n") + 1]
    try:
        begun, *lines = map(json.loads, finished.splitlines())
        if begun.pop("format") != FORMAT:
            raise ValueError
        entries = [_read_entry(line) for line in lines]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{path} is no journal of this benchmark: run without --resume") from None
    subject = json.loads(json.dumps(subject))
    if differing := [key for key in subject if begun.get(key) != subject[key]]:
        raise ValueError(
            f"{path} was begun with other {', '.join(differing)}: give the command that was interrupted, "
            "or run without --resume to begin anew"
        )
    if len(finished) < len(text):
        with path.open("r+b") as file:
            file.truncate(len(finished))
    return entries


def _read_entry(content: dict[str, Any]) -> Entry:
    objects = [read_object(one) for one in content["objects"]]
    return Entry(**content | {"objects": objects, "problems": [Problem(**one) for one in content["problems"]]})
