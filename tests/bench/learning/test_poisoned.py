"""Protects the measurement of annotators who draw wrong masks: their share is what was asked for, and the table tells
what the gate decided with and without looking at annotators."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from bench.learning.finetune import Domain
from bench.learning.poisoned import (
    WRONG,
    Case,
    PoisonedResult,
    annotator_of_photos,
    dilated,
    examples_of,
    left_half,
    main,
    samples_to_annotate,
    table,
)
from skipclick.evaluation.datasets import Sample
from tests.support.commands import exit_status

CHECK = Path(__file__).parents[3] / "skipclick" / "evaluation" / "check_set"
PICTURES = Domain("pictures", "folder", str(CHECK), None)


def square() -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    mask = np.zeros((30, 40), np.bool_)
    mask[5:25, 10:30] = True
    return mask


def test_wrong_masks_are_wrong_always_in_the_same_way() -> None:
    mask = square()
    half = left_half(mask)
    assert np.array_equal(np.flatnonzero(half.any(axis=0)), np.arange(10, 20))
    assert half.sum() * 2 == mask.sum()
    large = dilated(mask)
    assert (large & mask).sum() == mask.sum() < large.sum() < 2 * mask.sum()


@pytest.mark.parametrize("percent", [0, 5, 20, 50, 100])
@pytest.mark.parametrize("of_photo", [1, 2])
def test_the_share_of_wrong_objects_is_what_was_asked_for(percent: int, of_photo: int) -> None:
    who = annotator_of_photos([of_photo] * 40, percent, 5)
    assert sum(wrong for _, wrong in who) == pytest.approx(0.4 * percent, abs=1)
    names = Counter(who)
    num_wrong = {0: 0, 5: 1, 20: 1, 50: 2, 100: 1}[percent]
    assert sum(wrong for _, wrong in names) == num_wrong
    assert len(names) == (1 if percent == 100 else 5)
    assert who[:20] != sorted(who[:20]) or percent in (0, 100)  # not one kind after the other


def test_examples_carry_their_annotators_and_masks() -> None:
    image = np.zeros((30, 40, 3), np.uint8)
    samples = [Sample(f"{n}", image, {1: square().astype(np.int8)}) for n in range(10)]
    examples = examples_of(samples, 50, 4, WRONG["half"])
    areas = {example.annotator[:5]: int(example.target().sum()) for example in examples}
    assert areas == {"true ": 400, "wrong": int(left_half(square()).sum())}
    assert len({example.annotator for example in examples}) == 4


def test_photos_for_testing_are_not_annotated() -> None:
    names = [photo.name for photo in PICTURES.photos()]
    samples = samples_to_annotate(PICTURES, 0, 10, 5, 2)
    assert sum(len(sample.targets) for sample in samples) == 5
    assert not {sample.name for sample in samples} & set(names[:10])
    with pytest.raises(ValueError, match="900 objects were asked for"):
        samples_to_annotate(PICTURES, 0, 10, 900, 2)


def test_the_table_and_the_file() -> None:
    images = ("a", "b")
    report = {"retention": [{"old": 4.0, "new": 4.25}]}
    base = PoisonedResult(Case("horses", "", None, 0), images, ((2, 4), (2, 4)))
    poisoned = PoisonedResult(Case("horses", "half", 50, 0), images, ((3, 5), (3, 5)), False, True, report, 9.0)
    lines = table([base, poisoned]).splitlines()
    assert lines[2] == "| horses (2 objects) | base | | 2.00 | 4.00 | | | | | |"
    assert lines[3] == "| | half | 50 % | 3.00 | 5.00 | +1.00 (+33%) | +1.00 to +1.00 | +0.25 | 1 of 1 | 0 of 1 |"
    for one in (base, poisoned):
        assert PoisonedResult.from_dict(json.loads(json.dumps(asdict(one)))) == one


def test_wrong_input_is_told_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = str(tmp_path / "out.jsonl")
    for wrong in (["--domain", "horses"], ["--domain", "a=folder:b", "--annotators", "1"]):
        assert exit_status(main, [*wrong, "--output", output]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert exit_status(main, ["--domain", "a=folder:b", "--percent", "70"]) == 2
