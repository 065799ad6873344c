"""Protects interrupted runs: what was finished comes back, a torn line costs nothing, nothing foreign is continued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from skipclick.evaluation.journal import append_entry, resume_journal, start_journal

SUBJECT = {"rules": {"num_clicks": 20}, "data sets": [("DAVIS", 3)], "batch": 1}
FIRST = {"photos": ["a"], "ious": [0.1, 1e-17]}
SECOND = {"photos": ["b", "ü"], "ious": []}


def resume(path: Path, subject: dict[str, Any] = SUBJECT) -> list[list[str]]:
    return resume_journal(path, "test-1", subject, lambda entry: entry["photos"], "start over")


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "noc.json.journal"
    start_journal(path, "test-1", SUBJECT, about={"software": "1.0"})
    append_entry(path, FIRST)
    append_entry(path, SECOND)
    return path


def test_finished_entries_come_back(journal: Path) -> None:
    assert resume(journal) == [["a"], ["b", "ü"]]
    assert [json.loads(line) for line in journal.read_text().splitlines()[1:]] == [FIRST, SECOND]


def test_a_journal_can_start_with_entries(journal: Path) -> None:
    before = journal.read_bytes()
    start_journal(journal, "test-1", SUBJECT, [FIRST, SECOND], {"software": "1.0"})
    assert journal.read_bytes() == before


def test_wherever_the_run_was_cut_the_journal_goes_on(journal: Path) -> None:
    whole = journal.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(ends[0], len(whole)):
        journal.write_bytes(whole[:length])
        finished = [["a"], ["b", "ü"]][: sum(end <= length for end in ends[1:])]
        assert resume(journal) == finished
        append_entry(journal, SECOND)
        assert resume(journal) == [*finished, ["b", "ü"]]


def test_another_subject_is_refused_by_name(journal: Path) -> None:
    with pytest.raises(ValueError, match="started with different rules, batch: start over"):
        resume(journal, SUBJECT | {"rules": {"num_clicks": 10}, "batch": 8})


@pytest.mark.parametrize(
    "text", ["", "half a line", "{}\n", '{"format": "other"}\n', "no JSON\n", '{"format": "test-1"}\n{}\n', "[]\n"]
)
def test_other_files_are_refused(journal: Path, text: str) -> None:
    journal.write_text(text)
    with pytest.raises(ValueError, match="is damaged, or not a journal of this command: start over"):
        resume(journal)
