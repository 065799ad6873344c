"""The result of each photo: a line per photo while the set is built, from which an interrupted build continues."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skipclick.evaluation.journal import append_entry, resume_journal, start_journal
from train.cocolvis.combine import CombineCounts
from train.cocolvis.hierarchy import Node

FORMAT = "skipclick-cocolvis-1"


@dataclass(frozen=True)
class Record:
    """One photo that has been processed."""

    name: str
    nodes: list[Node]
    """Of its objects; empty if nothing was kept and so nothing was written."""
    counts: CombineCounts


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
    """Write a file with these records, replacing any other. sources: SHA-256 of the files they come from, by name."""
    start_journal(path, FORMAT, {"sources": sources}, map(asdict, records))


def append_record(path: Path, record: Record) -> None:
    """Adds a line."""
    append_entry(path, asdict(record))


def read_records(path: Path, sources: Mapping[str, str]) -> list[Record]:
    """The records of a file, without an unfinished last line; none if there is no file.

    Raises ValueError if it was started from other sources or is not such a file.
    """
    remedy = "give another --out, or delete the file, and everything is built again"
    return resume_journal(path, FORMAT, {"sources": sources}, _read, remedy) if path.is_file() else []


def _read(content: dict[str, Any]) -> Record:
    nodes = [Node(one["parent"], tuple(one["children"]), one["level"]) for one in content["nodes"]]
    return Record(content["name"], nodes, CombineCounts(**content["counts"]))
