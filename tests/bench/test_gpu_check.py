"""Protects the GPU check where there is no GPU: each check runs, what is measured is kept, a second run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import gpu_check
from bench.gpu_check import BUDGETS, full_scope, main, report
from bench.gpu_measures import CHECKS, Cases, Scope

QUICK = ["--device", "cpu", "--quick", "--output"]


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()]


@pytest.mark.process
@pytest.mark.timeout(900)
def test_the_dry_run_of_make_gpu_check(tmp_path: Path) -> None:
    """All that `make gpu-check DEVICE=cpu QUICK=1` does, before a GPU is there to pay for mistakes."""
    output = tmp_path / "gpu-check"
    assert main([*QUICK, str(output)]) == 0
    found = lines(output)
    assert "torch" in found[0]["versions"]
    assert {record["check"] for record in found if "seconds" in record} == set(CHECKS)
    cases = {(r["check"], r["case"]): r["figures"] for r in found if "figures" in r}
    assert cases["masks", "float32, graphs off"]["lowest IoU"] == 1
    assert (
        cases["memory", "skipclick-lite 128 float32"] | {"photos": 3, "refused": 0, "other masks": 0}
        == (cases["memory", "skipclick-lite 128 float32"])
    )
    assert all(figures["failed"] == 0 for (check, _), figures in cases.items() if check == "server")
    clicked = cases["clicks", "skipclick-lite 128 float32"]
    assert 0 < clicked["features, MB"] < clicked["with taps, MB"]
    assert min(figure for name, figure in clicked.items() if name.endswith("ms")) > 0
    text = output.with_suffix(".md").read_text()
    assert all(f"## {check}" in text for check in CHECKS)
    assert text.count("not measured") == len(BUDGETS) - 2  # masks can be compared here too


def fails(scope: Scope) -> Cases:
    yield "first", {"figure": 1.0}
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def works(scope: Scope) -> Cases:
    yield "all", {"failed": 0.0}


def test_a_second_run_does_what_the_first_did_not_finish(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output = tmp_path / "gpu-check"
    monkeypatch.setattr(gpu_check, "CHECKS", {"fails": fails, "works": works})
    assert main([*QUICK, str(output)]) == 1
    assert [(r["check"], *(r.keys() - {"check"})) for r in lines(output)[1:] if "case" not in r] == [
        ("fails", "error"),
        ("works", "seconds"),
    ]
    assert "| fails | | FAILED: RuntimeError: CUDA error: an illegal memory" in output.with_suffix(".md").read_text()
    with output.with_suffix(".jsonl").open("a") as file:
        file.write('{"check": "cut o')  # a kill in the middle of a line
    monkeypatch.setattr(gpu_check, "CHECKS", {"fails": works, "works": fails})  # were `works` run again, it would fail
    assert main([*QUICK, str(output), "--resume"]) == 0
    assert [record["check"] for record in lines(output)[1:] if "seconds" in record] == ["works", "fails"]


def test_results_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gpu-check.jsonl").write_text('{"check": "masks", "seconds": 1.0}\n')
    assert main([*QUICK, str(tmp_path / "gpu-check")]) == 2
    assert "--resume" in capsys.readouterr().err


def test_checks_for_which_there_is_no_time_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_check, "CHECKS", {"works": works})
    assert main([*QUICK, str(tmp_path / "gpu-check"), "--seconds", "0"]) == 0
    assert "| works | | not run |" in (tmp_path / "gpu-check.md").read_text()


def test_each_budget_belongs_to_a_case_that_the_full_run_measures() -> None:
    scope = full_scope("cuda")
    clicked = [f"{setting.model} {setting.resolution} {setting.dtype}" for setting in scope.settings()]
    served = [f"{setting.model} {setting.resolution} {setting.dtype}" for setting in scope.settings(served=True)]
    measured = {("tests", "requires_cuda")} | {("clicks", case) for case in clicked}
    measured |= {("masks", f"{dtype}, graphs {graphs}") for dtype in scope.dtypes for graphs in ("off", "on")}
    measured |= {("server", f"{case}, 1920x1080, annotators: 1") for case in served} | {("memory", served[-1])}
    assert {(budget.check, budget.case) for budget in BUDGETS} <= measured


def test_a_missed_budget_is_said() -> None:
    budget = BUDGETS[3]
    record = {"check": budget.check, "case": budget.case, "figures": {budget.figure: 2 * budget.limit}}
    assert f"MISSED: {2 * budget.limit:g}" in report([record])
