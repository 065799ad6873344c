"""Protects that the attacks are made, that what they leave is told, and that the server holds against each of them.

How long things take depends on the machine: `make attack` watches that.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.serving.attack import ATTACKS, Outcome, judge, main

HELD = Outcome("bombs", 0.2, 10, {}, 90.0, 120.0, 50.0, 900 << 20, {400: 3})


def test_a_limit_that_is_passed_is_named() -> None:
    assert judge(HELD, 1 << 30, 1.0, 2.0) == []
    assert judge(replace(HELD, health_seconds=1.5), 1 << 30, 1.0, 2.0) == ["/health took 1.50 s"]
    assert judge(replace(HELD, failed={503: 2}), 1 << 30, 1.0, 2.0) == ["clicks failed: {503: 2}"]
    assert judge(replace(HELD, p95_ms=150.0), 1 << 30, 1.0, 2.0) == ["clicks took 3.0 times as long as usual"]
    assert judge(HELD, 800 << 20, 1.0, 2.0) == ["the server took 900 MB, more than 800"]


def test_an_unknown_attack_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--only", "magic"])
    assert left.value.code == 2
    assert "magic" in capsys.readouterr().err


@pytest.mark.slow
def test_the_server_holds(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each attack for two seconds; no click fails and nothing is left, whatever the time it takes."""
    output = tmp_path / "attack"
    pace = ["--seconds", "2", "--annotators", "2", "--think", "0.3", "--health", "60", "--slowdown", "1e6"]
    status = main([*pace, "--output", str(output)])
    assert status == 0, capfd.readouterr().out
    found = json.loads(output.with_suffix(".json").read_text())
    told = {
        one["attack"]: {int(status): number for status, number in one["answers"].items()} for one in found["attacks"]
    }
    assert list(told) == list(ATTACKS)
    assert set(told["bombs"]) <= {200, 400}
    assert set(told["nested JSON"]) == {400}
    assert set(told["large events"]) == {201}
    assert {201} <= set(told["long bodies"]) <= {0, 201, 503}
    assert set(told["strange files"]) <= {200, 201, 503}
    assert set(told["forged trainings"]) <= {400, 503}
    assert told["forged trainings"][400] <= 20  # no more are looked into
    assert set(told["hanging photos"]) <= {400, 503}
    assert set(told["locked database"]) == {503}
    assert set(told["foreign pages"]) == {403}
    assert found["left"] == []
