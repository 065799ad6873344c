"""Protects interrupted runs: what was finished comes back, a torn line costs nothing, nothing foreign is continued."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.journal import Entry, append_entry, resume_journal, start_journal
from skipclick import Click
from skipclick.evaluation.results import ObjectResult, Problem

SUBJECT = {"rules": {"num_clicks": 20}, "data sets": [("DAVIS", 3)], "batch": 1}
FIRST = Entry("grabcut", "DAVIS", None, ["a"], [ObjectResult("a", 1, None, [0.5], [Click(1, 2)], 3.0, [4.0])], [])
SECOND = Entry("grabcut", "DAVIS", 2, ["b", "c"], [], [Problem("b", "no such file"), Problem("c", "broken")])


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "noc.json.journal"
    start_journal(path, SUBJECT)
    append_entry(path, FIRST)
    append_entry(path, SECOND)
    return path


def test_finished_entries_come_back(journal: Path) -> None:
    assert resume_journal(journal, SUBJECT) == [FIRST, SECOND]


def test_whatever_the_run_was_cut_at_the_journal_goes_on(journal: Path) -> None:
    whole = journal.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(ends[0], len(whole)):
        journal.write_bytes(whole[:length])
        finished = sum(end <= length for end in ends[1:])
        assert resume_journal(journal, SUBJECT) == [FIRST, SECOND][:finished]
        append_entry(journal, SECOND)
        assert resume_journal(journal, SUBJECT) == [*[FIRST, SECOND][:finished], SECOND]


def test_another_subject_is_refused_by_name(journal: Path) -> None:
    with pytest.raises(ValueError, match="begun with other rules, batch: give the command that was interrupted"):
        resume_journal(journal, SUBJECT | {"rules": {"num_clicks": 10}, "batch": 8})


@pytest.mark.parametrize("text", ["", "half a line", "{}\n", '{"format": "other"}\n', "no JSON\n"])
def test_other_files_are_refused(journal: Path, text: str) -> None:
    journal.write_text(text)
    with pytest.raises(ValueError, match="is no journal"):
        resume_journal(journal, SUBJECT)
