"""Protects the measurement of immediate adaptation: one object after the other, paired with the base, and tables that
say what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.learning import finetune_immediate
from bench.learning.finetune import Domain
from bench.learning.finetune_immediate import ClickCounts, SequenceResult, main, objects_of, run_sequence, table
from skipclick.evaluation.results import ObjectResult
from skipclick.model import SkipClick
from tests.support.commands import exit_status
from tests.support.small_models import bundled_at_160_pixels
from train.finetune import Example
from train.finetune.adapt import AdaptConfig, Adapted
from train.finetune.gate import Measured

CHECK = Path(__file__).parents[3] / "skipclick" / "evaluation" / "check_set"
PICTURES = Domain("pictures", "folder", str(CHECK), None)


def test_objects_come_photo_by_photo_and_no_more_than_asked_for() -> None:
    names = ["flower", "coins", "coffee"]
    photos = sorted((photo for photo in PICTURES.photos() if photo.name in names), key=lambda p: names.index(p.name))
    assert [(one.name, len(one.targets)) for one in objects_of(photos, 7)] == [
        ("flower", 2),
        ("coins", 4),
        ("coffee", 1),
    ]
    with pytest.raises(ValueError, match="the photos hold 41 fewer"):
        list(objects_of(photos, 50))


def test_every_object_is_clicked_on_what_was_adapted_to_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base adapts to nothing, the other to each accepted mask, together with those of the same photo."""
    base, seen = bundled_at_160_pixels(), []

    def remembering(before: Adapted, _: SkipClick, accepted: list[Example], config: AdaptConfig) -> Adapted:
        target = accepted[-1].target()
        assert target.shape == accepted[-1].image().shape[:2]
        assert set(np.unique(target)) == {0, 1}
        seen.append((before.num_steps, [example.key for example in accepted], config.recipe.seed))
        return replace(before, num_steps=before.num_steps + 1)

    monkeypatch.setattr(finetune_immediate, "adapt", remembering)
    retention = Measured((ObjectResult("a", 1, None, [0.1, 0.86, 0.95], [], 0.0, []),))
    found = run_sequence(PICTURES, base, 3, 7, AdaptConfig(), lambda _: retention)
    assert [steps for steps, _, _ in seen] == [0, 1, 2]
    assert {seed for _, _, seed in seen} == {7}
    assert [keys[-1] for _, keys, _ in seen] == list(found.objects.images)
    assert all(len(set(keys)) == 1 for _, keys, _ in seen)
    assert found.objects.base == found.objects.adapted  # nothing was learnt
    assert found.retention == ClickCounts(("a",), ((2, 3),), ((2, 3),))
    assert (found.num_steps, len(found.seconds)) == (3, 3)


def test_the_table_pairs_object_by_object() -> None:
    clicked = ClickCounts(("a", "a", "b", "c"), ((4, 6), (2, 4), (8, 12), (6, 8)), ((4, 6), (2, 4), (6, 8), (4, 6)))
    retention = ClickCounts(("x", "y"), ((2, 4), (2, 4)), ((2, 4), (4, 6)))
    lines = table([SequenceResult("horses", 0, clicked, retention, (2.0, 3.0, 4.0, 3.0), 30)]).splitlines()
    # clicks: (5 + 3 + 10 + 7) / 4 = 6.25, then (5 + 3 + 7 + 5) / 4 = 5
    assert lines[2].startswith("| horses | 4 (3) | 5.00 / 7.50 | 4.00 / 6.00 | -1.25 (-20%) | ")
    assert lines[2].endswith(" | 3.0 | 7.5 |")
    assert lines[3].startswith(
        "| its second half | 2 (2) | 7.00 / 10.00 | 5.00 / 7.00 | -2.50 (-29%) | -3.00 to -2.00 |"
    )
    assert lines[4].startswith(
        "| retention set after it | 2 (2) | 2.00 / 4.00 | 3.00 / 5.00 | +1.00 (+33%) | +0.00 to +2.00 |"
    )


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(tmp_path / "out.jsonl")]
    for wrong in (
        ["--domain", "horses"],
        ["--domain", "a=folder:b", "--objects", "0"],
        ["--domain", "a=folder:b", "--share", "2"],
    ):
        assert exit_status(main, [*wrong, *output]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_the_whole_of_it_on_the_check_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "runs" / "out.jsonl"
    arguments = ["--domain", f"pictures=folder:{CHECK}", "--objects", "2", "--seeds", "1", "--threads", "1"]
    assert main([*arguments, "--steps", "1", "--views", "1", "--output", str(output)]) == 0
    assert "| pictures | 2 (" in capsys.readouterr().out
    [line] = output.read_text().splitlines()
    assert json.loads(line)["settings"]["recipe"]["steps"] == 1
    assert json.loads(line)["num_steps"] == 2
