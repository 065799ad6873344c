"""Protects the command: its files, its exit statuses, what it refuses, and that an interrupted run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.noc import main
from bench.published import TABLES
from skipclick.evaluation.datasets.coco import Reason
from skipclick.evaluation.datasets.winter_sports import WSESEG_FOLDERS
from skipclick.evaluation.results import Results, read_results, write_results
from tests.support.bench_models import write_davis
from tests.support.coco_files import SQUARE, run_lengths, write_set
from tests.support.drawn_pictures import blank, save
from tests.support.processes import descendants, is_running

MODEL = ["--model", "tests.support.bench_models:small_discs"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    return write_davis(tmp_path / "davis", num_photos=3)


def without_times(results: Results) -> list[object]:
    return [
        (run.name, one.dataset, one.seed, found.image, found.object_id, found.ious, found.clicks)
        for run in results.runs
        for one in run.measurements
        for found in one.objects
    ]


def test_the_command_writes_every_click_and_its_tables(davis: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = davis / "runs" / "noc.json"
    command = ["--model", "grabcut", MODEL[1], "--dataset", f"DAVIS={davis}", "--limit", "2", "--output", str(output)]
    assert main(command) == 0
    results = read_results(output)
    assert results.command == command
    assert [run.name for run in results.runs] == ["grabcut", MODEL[1]]
    (measurement,) = results.runs[0].measurements
    assert [one.image for one in measurement.objects] == ["0", "1"]
    for one in measurement.objects:
        assert len(one.ious) == len(one.clicks) == len(one.click_ms)
    printed = capsys.readouterr().out
    assert "### DAVIS (2 objects)" in printed
    assert output.with_suffix(".md").read_text() == printed
    assert sorted(path.name for path in output.parent.iterdir()) == ["noc.json", "noc.md"]


def test_jittered_clicks_are_measured_under_each_seed(davis: Path) -> None:
    output = davis / "noc.json"
    jitter = ["--clicks", "jitter", "--seeds", "2", "--protocol", "serve"]
    assert main([*MODEL, "--dataset", f"DAVIS={davis}", *jitter, "--output", str(output)]) == 0
    results = read_results(output)
    assert [one.seed for one in results.runs[0].measurements] == [0, 1]
    assert results.rules["threshold"] == 0.5
    assert results.rules["flip"] is False
    assert results.rules["zoom"] is True


def test_an_object_gets_no_more_clicks_than_asked_for(davis: Path) -> None:
    output = davis / "noc.json"
    assert (
        main(["--model", "grabcut", "--dataset", f"DAVIS={davis}", "--num-clicks", "2", "--output", str(output)]) == 0
    )
    results = read_results(output)
    assert results.rules["num_clicks"] == 2
    assert max(len(one.ious) for one in results.runs[0].measurements[0].objects) <= 2
    assert main([*MODEL, "--dataset", f"DAVIS={davis}", "--num-clicks", "5", "--table", "4"]) == 2


def test_a_broken_photo_is_named_at_the_end(davis: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (davis / "gt" / "1.png").write_bytes(b"no picture")
    assert main([*MODEL, "--dataset", f"DAVIS={davis}"]) == 0
    printed = capsys.readouterr().out
    assert "### DAVIS (2 objects)" in printed
    assert "Not measured, 1 photos:" in printed
    assert "1.png" in printed


def test_what_is_left_out_is_counted_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the report, in the result file, and in the list of data sets."""
    masks = {1: [SQUARE], 2: [], 3: [SQUARE[:4]], 4: [SQUARE[:4]], 5: run_lengths(blank() == 0)}
    write_set(tmp_path, masks, crowds=(5,))
    output = tmp_path / "out" / "noc.json"
    assert main([*MODEL, "--dataset", f"coco={tmp_path}", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "### coco (1 objects)" in printed
    assert f"- coco: 1 × {Reason.NO_ANNOTATION}, for example empty.jpg\n" in printed
    assert f"- coco: 1 × {Reason.NO_MASK}, for example a.jpg, annotations[1]\n" in printed
    assert f"- coco: 2 × {Reason.SHORT}, for example a.jpg, annotations[2]\n" in printed
    assert f"- coco: 1 × {Reason.CROWD}, for example a.jpg, annotations[4]\n" in printed
    (run,) = read_results(output).runs
    assert {one.reason: one.count for one in run.measurements[0].left_out} == {
        Reason.NO_ANNOTATION: 1,
        Reason.NO_MASK: 1,
        Reason.SHORT: 2,
        Reason.CROWD: 1,
    }
    assert main(["--list", "--dataset", f"coco={tmp_path}"]) == 0
    assert f"  left out: 2 × {Reason.SHORT}, for example a.jpg" in capsys.readouterr().out


def test_a_worse_result_exits_with_1(davis: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = davis / "old.json"
    command = [*MODEL, "--dataset", f"DAVIS={davis}"]
    assert main([*command, "--output", str(output)]) == 0
    assert main([*command, "--compare", str(output)]) == 0
    old = read_results(output)
    measurement = old.runs[0].measurements[0]
    perfect = [
        replace(one, ious=[1.0], clicks=one.clicks[:1], click_ms=one.click_ms[:1]) for one in measurement.objects
    ]
    run = replace(old.runs[0], measurements=[replace(measurement, objects=perfect)])
    write_results(output, replace(old, runs=[run]))
    assert main([*command, "--compare", str(output), "--tolerance", "0.5"]) == 1
    assert "**worse**" in capsys.readouterr().out
    assert main([*command, "--compare", str(output), "--tolerance", "20"]) == 0


@pytest.fixture
def winter(tmp_path: Path) -> dict[str, Path]:
    """Drawn stand-ins: an object in each class of WSESeg, and one of SHSeg."""
    photo, ids = np.zeros((40, 48, 3), np.uint8), np.zeros((40, 48), np.uint8)
    ids[10:30, 10:30] = 7
    photo[ids > 0] = 200
    for folder in ("shseg", *(f"wseseg/{place}" for place in WSESEG_FOLDERS.values())):
        save(tmp_path / folder / "a.jpg", photo)
        save(tmp_path / folder / "mask_a.png", ids)
    return {"WSESeg": tmp_path / "wseseg", "SHSeg": tmp_path / "shseg"}


@pytest.mark.parametrize("number", TABLES)
def test_each_table_of_the_paper_runs(
    number: int, davis: Path, winter: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the data sets given those that it has, the others and what is missing named."""
    given = {"DAVIS": davis} | winter
    command = [*MODEL, "--dataset", *(f"{name}={folder}" for name, folder in given.items())]
    assert main([*command, "--thresholds", "80", "--table", str(number)]) == 0
    printed = capsys.readouterr().out
    table = TABLES[number]
    assert f"### Table {number}: {table.title}" in printed
    assert all(f"| {method}, published | {' | '.join(cells)} |" in printed for method, cells in table.rows.items())
    for name in given:
        assert (f"### {name} (" in printed) == (name in table.datasets)
        assert (f"{name}: " in printed.partition(f"### Table {number}")[2]) == (name in table.datasets)
    assert "these figures are not comparable" in printed


def test_without_its_data_sets_a_table_has_the_published_figures_alone(
    davis: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data sets that are given are measured by its metrics, and it says that they are others."""
    assert main([*MODEL, "--dataset", f"DAVIS={davis}", "--thresholds", "80", "--table", "3"]) == 0
    measured, _, printed = capsys.readouterr().out.partition("### Table 3")
    assert "### DAVIS (" in measured
    assert f"| `{MODEL[1]}` | – | – |" in printed
    assert "Data sets not given: SHSeg" in printed
    assert "not comparable with this one: DAVIS" in printed


def test_list_says_what_is_expected_and_found(davis: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--dataset", f"DAVIS={davis}"]) == 0
    printed = capsys.readouterr().out
    assert "GrabCut" in printed
    assert str(davis) in printed


def test_an_interrupted_run_resumes(davis: Path) -> None:
    """Killed after its first photo, then the same command with --resume: the result of an uninterrupted run."""
    output = davis / "noc.json"
    journal = davis / "noc.json.journal"
    slow = ["--model", "tests.support.bench_models:slow_discs", "--dataset", f"DAVIS={davis}", "--output", str(output)]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "bench" / "noc.py"), *slow],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (journal.exists() and journal.read_text().count("\n") >= 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    error = process.communicate()[1]
    assert process.returncode == 130
    assert error.strip().splitlines()[-1] == "noc: interrupted: the same command with --resume continues"
    assert not output.exists()
    first_photo = json.loads(journal.read_text().splitlines()[1])["objects"]

    assert main([*slow, "--resume"]) == 0
    assert not journal.exists()
    resumed = read_results(output)
    assert resumed.runs[0].measurements[0].objects[0].click_ms == first_photo[0]["click_ms"]
    assert main(slow) == 0
    assert without_times(read_results(output)) == without_times(resumed)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in Linux's /proc")
def test_workers_end_with_a_run_that_is_killed(davis: Path) -> None:
    output = davis / "noc.json"
    slow = ["--model", "tests.support.bench_models:slow_discs", "--dataset", f"DAVIS={davis}", "--output", str(output)]
    command = [sys.executable, "bench/noc.py", *slow, "--jobs", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal, deadline = davis / "noc.json.journal", time.monotonic() + 200
    while not (journal.exists() and journal.read_text().count("\n") >= 2):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = descendants(process.pid)
    process.kill()
    process.wait()
    assert len(workers) >= 2
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "DAVIS=nowhere"], "img"),
        (["--dataset", "Davis=."], "unknown data set 'Davis'"),
        (["--model", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--model", "grabcut", "grabcut"], "each model can be given once only"),
        (["--dataset", "DAVIS={davis}", "DAVIS={davis}"], "each data set can be given once only"),
        (["--seeds", "3"], "--clicks jitter"),
        (["--start", "sp"], "come with DAVIS-585 alone"),
        (["--no-mask-feedback"], "no such --model is given"),
        (["--resume"], "--output"),
        (["--output", "runs/noc.txt"], "ends in .json"),
        (["--protocol", "serve", "--flip"], "mirrored photo"),
        (["--zoom"], "published figures are without zoom-in"),
        (["--start", "box", "--plots", "runs/plots"], "omit --start"),
        (["--compare", "nowhere.json"], "nowhere.json"),
    ],
)
def test_failures_are_one_line_and_exit_code_2(
    davis: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*MODEL, "--dataset", f"DAVIS={davis}", *(argument.format(davis=davis) for argument in arguments)]
    assert main(command) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("noc: ")
    assert message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --model and --dataset"),
        ([*MODEL, "--dataset", "DAVIS"], "is not NAME=DIR"),
        ([*MODEL, "--dataset", "DAVIS=x", "--limit", "0"], "is not a positive number"),
        ([*MODEL, "--dataset", "DAVIS=x", "--thresholds", "0.9"], "is not a percentage"),
        ([*MODEL, "--dataset", "DAVIS=x", "--tolerance", "nan"], "is not a number of clicks"),
    ],
)
def test_a_malformed_option_is_refused_with_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_the_help_fits_one_screen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) <= 45
    assert max(map(len, shown)) <= 100


def test_the_script_runs_from_anywhere(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "bench" / "noc.py"), "--help"]
    shown = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 0
    assert "examples:" in shown.stdout
