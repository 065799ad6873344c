"""What became of each photo: a line per photo while the set is built, from which an interrupted build goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skipclick.atomic_io import replaced_atomically
from train.cocolvis.combine import Counts
from train.cocolvis.hierarchy import Node

FORMAT = "skipclick-cocolvis-1"


@dataclass(frozen=True)
class Record:
    """One photo that was done."""

    name: str
    nodes: list[Node]
    """Of its objects; empty where nothing was kept and so nothing was written."""
    counts: Counts


def annotation(record: Record) -> dict[str, Any]:
    """A photo's entry in hannotation.pickle."""
    hierarchy = {
        index: None
        if node.alone
        else {"children": list(node.children), "parent": node.parent, "node_level": node.level}
        for index, node in enumerate(record.nodes)
    }
    return {"num_instance_masks": len(record.nodes), "hierarchy": hierarchy}


def write_records(path: Path, sources: Mapping[str, str], records: Iterable[Record]) -> None:
    """A file with these records in place of any other. sources: SHA-256 of the files that they come from, by name."""
    with replaced_atomically(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"format": FORMAT, "sources": dict(sources)}) + "\n")
        file.writelines(_line(record) for record in records)


def append_record(path: Path, record: Record) -> None:
    """Adds a line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(record))


def _line(record: Record) -> str:
    return json.dumps(asdict(record)) + "\n"


def read_records(path: Path, sources: Mapping[str, str]) -> list[Record]:
    """The records of a file, without a last line that was not finished; none where there is no file.

    Raises ValueError where it was begun from other sources or is no such file.
    """
    if not path.is_file():
        return []
    text = path.read_bytes()
    finished = text[: text.rfind(b"\n") + 1]
    try:
        begun, *lines = map(json.loads, finished.splitlines())
        if begun["format"] != FORMAT:
            raise ValueError
        same_sources = begun["sources"] == dict(sources)
        records = [_read(line) for line in lines]
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{path} is damaged: delete it, and everything is built anew") from None
    if not same_sources:
        raise ValueError(f"{path.parent} was begun from other annotation files: give another --out, or delete it")
    return records


def _read(content: dict[str, Any]) -> Record:
    nodes = [Node(one["parent"], tuple(one["children"]), one["level"]) for one in content["nodes"]]
    return Record(content["name"], nodes, Counts(**content["counts"]))
