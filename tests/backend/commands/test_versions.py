"""Protects the command line of versions: what it changes, what it says, and one line for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from backend.commands.versions import main
from backend.finetune.versions import Versions
from skipclick.checkpoint import load_checkpoint, read_metadata, save_checkpoint
from tests.support.tuned_models import base_model, tuned_model


@pytest.fixture(autouse=True)
def versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Versions:
    """Three versions of project 12, the second in service, in the folder that the settings name."""
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    monkeypatch.setenv("CHECKPOINT", str(tmp_path / "base.safetensors"))
    versions = Versions(tmp_path)
    for seed in (1, 2, 3):
        versions.write(12, tuned_model(seed), base_model(), about={"objects": 10 * seed}, report={"reason": "fewer"})
    versions.promote(12, 1)
    versions.promote(12, 2)
    return versions


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(arguments) == 0
    return capsys.readouterr().out.splitlines()


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "list")
    assert [line[:13] for line in lines] == ["  project 12:", "  tiny+p12.v1", "* tiny+p12.v2", "  tiny+p12.v3"]
    assert said(capsys, "list", "--project", "12") == lines
    assert "30 objects" in lines[3]
    assert said(capsys, "list", "--project", "13") == ["* project 13: base"]
    shown = "\n".join(said(capsys, "show", "12", "v3"))
    about, end = json.JSONDecoder().raw_decode(shown)
    assert (about["name"], about["objects"]) == ("tiny+p12.v3", 30)
    assert json.loads(shown[end:]) == {"reason": "fewer"}


def test_promote_roll_back_and_prune(capsys: pytest.CaptureFixture[str], versions: Versions) -> None:
    assert said(capsys, "promote", "12", "v3") == ["project 12 is served by tiny+p12.v3"]
    assert said(capsys, "rollback", "12") == ["project 12 is served by tiny+p12.v2 again"]
    assert versions.current(12) == 2
    assert said(capsys, "promote", "12", "base") == ["project 12 is served by the base model"]
    assert said(capsys, "prune", "12", "--keep", "1") == ["deleted v1, v2"]
    assert said(capsys, "prune", "12") == ["deleted nothing"]


def test_export_is_a_checkpoint_like_any_other(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    save_checkpoint(base_model(), tmp_path / "base.safetensors", version="tiny")
    file = tmp_path / "exported.safetensors"
    assert said(capsys, "export", "12", "3", str(file))[0].startswith(f"{file} holds tiny+p12.v3")
    model = load_checkpoint(file)
    assert model.version == "tiny+p12.v3"
    wanted = tuned_model(3).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())
    assert read_metadata(file)["provenance"]["report"] == {"reason": "fewer"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("promote", "12", "v9"), "project 12 has no version v9; there is v1, v2, v3"),
        (("rollback", "13"), "project 13 is served by the base model; there is nothing to roll back"),
        (("show", "12", "base"), "base is not a version of a project; name one such as v3"),
        (("export", "12", "v1", "x.safetensors"), "base.safetensors does not exist"),
        (("prune", "12", "--keep", "0"), "at least one version must be kept"),
    ],
)
def test_what_cannot_be_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], complaint: str
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
