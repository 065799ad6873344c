"""Protects DAVIS-585: each object with the masks to start from, which are never the object itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.noc import main
from skipclick.evaluation.datasets import open_dataset
from skipclick.evaluation.results import read_results
from tests.support.bench_models import write_davis585


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_davis585(tmp_path / "davis585")


def test_each_object_of_a_frame_is_an_entry(folder: Path) -> None:
    dataset = open_dataset("DAVIS-585", folder)
    assert [photo.name for photo in dataset.photos] == [
        "bear/object1_00009",
        "bear/object2_00009",
        "cows/object1_00000",
    ]
    first, second, _ = dataset
    np.testing.assert_array_equal(first.image, second.image)
    assert first.targets[1].sum() != second.targets[1].sum() > 0
    assert first.starts["sp"].name == "init_sp_object1_00009.png"


@pytest.mark.parametrize("start", ["sp", "stm"])
def test_the_benchmark_starts_from_the_masks_that_come_with_it(folder: Path, start: str) -> None:
    output = folder / "noc.json"
    command = ["--model", "tests.support.bench_models:keeps_the_mask", "--dataset", f"DAVIS-585={folder}"]
    assert main([*command, "--num-clicks", "1", "--start", start, "--output", str(output)]) == 0
    ious = [one.ious[0] for one in read_results(output).runs[0].measurements[0].objects]
    assert ious == [pytest.approx({"sp": 0.5, "stm": 0.75}[start], abs=0.05)] * 3


def test_a_lacking_mask_and_another_data_set_are_said_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--model", "grabcut", "--dataset", f"DAVIS-585={folder}", "--start", "sp"]
    (folder / "bear" / "init_sp_object2_00009.png").unlink()
    assert main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "init_sp_object2_00009.png: the mask to start from cannot be read (No such file or directory)" in error
    assert main([*command[:4], f"DAVIS={folder}", *command[4:]]) == 2
    assert "come with DAVIS-585 alone: omit DAVIS" in capsys.readouterr().err
