"""Protects the measurement of what proposals cost: photos are answered, and so are the clicks beside them."""

from __future__ import annotations

import subprocess  # noqa: F401  # the module starts a server: tests/conftest.py marks it by this
from pathlib import Path

import pytest

from bench.serving.proposals_latency import main


def test_clicks_and_proposals_are_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DTYPE", "float32")
    monkeypatch.setenv("RUNTIME", "torch")
    given = ["--photos", "2", "--size", "320x240", "--annotators", "1", "--think", "0.2", "--seconds", "3"]
    assert main(given) == 0
    lines = capsys.readouterr().out.splitlines()
    numbers = [int(line.split("|")[2]) for line in lines[2:]]
    assert numbers[0] > 0
    assert numbers[1] > 0
    assert numbers[2] + numbers[3] == 2
    assert numbers[2] >= 1


def test_a_folder_without_photos_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--images", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("proposals_latency: ")
