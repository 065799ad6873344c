"""Protects the recipes: the paper's is the default, its wordings are flags, networks can be exchanged."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from skipclick import load_checkpoint
from skipclick.checkpoint import save_checkpoint
from skipclick.config import DINOV2, PRESETS, TINY, preset
from skipclick.model import SkipClick
from tests.support.small_models import SMALL_CONV
from tests.support.training_process import SMALL_VIT
from train.__main__ import _parser, configured, main
from train.config import RECIPES, TrainConfig, with_network
from train.init_weights import new_model
from train.sources import KINDS

FIT = ["fit", "--data", "DIR", "--output", "RUN"]


def of_flags(*flags: str) -> TrainConfig:
    return configured(_parser().parse_args([*FIT, *flags]))


def test_the_papers_recipe_is_the_default() -> None:
    """Section 4.1, where released code and paper agree; otherwise the released code."""
    paper = of_flags()
    assert paper == RECIPES["paper"]
    assert paper.model == preset("skip") == DINOV2["dinov2_vitb14_reg"]
    assert (paper.augment.crop, paper.batch_size, paper.steps) == (448, 32, 55 * 937)
    assert (paper.learning_rate, paper.betas, paper.weight_decay) == (5e-5, (0.9, 0.999), 0.0)
    assert (paper.max_num_next_clicks, paper.loss, paper.precision) == (3, "nfl", "float32")


def test_what_the_paper_says_otherwise_has_flags() -> None:
    config = of_flags("--loss", "focal", "--next-clicks", "fixed", "--previous-mask", "binary")
    assert (config.loss, config.previous_mask) == ("focal", "binary")
    assert {config.num_next_clicks_at(step) for step in range(20)} == {3}
    assert {RECIPES["paper"].num_next_clicks_at(step) for step in range(50)} == {0, 1, 2, 3}
    assert of_flags("--preset", "frozen", "--tap", "paper").model == preset("frozen", tap="paper")
    assert of_flags("--backbone", "dinov2_vitb14").model == preset("skip", DINOV2["dinov2_vitb14"])


def test_the_mixers_depth_is_a_flag() -> None:
    """Table 6."""
    assert of_flags("--mixer-depth", "6").model == replace(preset("skip"), mixer_depth=6)
    learning = of_flags("--mixer-depth", "2", "--backbone-learning-rate", "1e-5").model
    assert (learning.mixer_depth, learning.train_backbone) == (2, True)


def test_schedules() -> None:
    paper = RECIPES["paper"]
    assert paper.learning_rate_at(0) == 5e-5
    assert paper.learning_rate_at(50 * 937 - 1) == 5e-5
    assert paper.learning_rate_at(50 * 937) == pytest.approx(5e-6)
    cosine = replace(SMALL_VIT, schedule="cosine", steps=100, warmup_steps=10)
    rates = [cosine.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(cosine.learning_rate / 10)
    assert max(rates) == rates[9] or max(rates) == rates[10]
    assert rates[-1] < 0.02 * cosine.learning_rate


def test_epochs_are_of_30000_photos() -> None:
    assert of_flags("--epochs", "2").steps == 2 * 937
    assert of_flags("--epochs", "2", "--batch-size", "64").steps == 2 * 468


@pytest.mark.parametrize("row", PRESETS)
def test_the_rows_of_table_1_stand_on_a_checkpoints_backbone(row: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = SkipClick(SMALL_CONV)
    path = tmp_path / "backbone.safetensors"
    save_checkpoint(trained, path, version="trained")
    config = with_network(SMALL_VIT_ON_64, str(path), row, "paper" if row in ("baseline", "frozen") else None)  # type: ignore[arg-type]
    assert config.model.train_backbone == (row == "baseline")
    model, given = new_model(config), trained.backbone.state_dict()
    for key, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, given[key]), key
    assert all(p.requires_grad == (row == "baseline") for p in model.backbone.parameters())


SMALL_VIT_ON_64 = replace(SMALL_VIT, model=SMALL_CONV, augment=replace(SMALL_VIT.augment, crop=64))


def test_a_preset_alone_keeps_the_recipes_backbone() -> None:
    assert of_flags("--recipe", "tiny", "--preset", "frozen").model == preset("frozen", TINY)
    assert of_flags("--recipe", "tiny").model == TINY
    bundled = of_flags("--recipe", "tiny", "--backbone", "bundled")
    assert bundled.model == preset("skip", load_checkpoint("bundled").config)
    assert bundled.backbone_weights == "bundled"


def test_a_backbone_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_checkpoint(SkipClick(SMALL_CONV), path, version="small")
    wider = replace(SMALL_VIT_ON_64, model=TINY, backbone_weights=str(path))
    with pytest.raises(ValueError, match=r"backbone of .* does not fit this network"):
        new_model(wider)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--crop", "100"], "multiple of 14"),
        (["--tap", "paper"], "--tap says which block"),
        (["--backbone", "nothing"], "--backbone is none of dinov2_vits14"),
        (["--device", "gpu"], "--device gpu is unknown"),
        (["--device", "cuda:7"], "CUDA devices"),
        (["--data", "/nowhere", "--recipe", "tiny"], "/nowhere"),
        (["--recipe", "tiny", "--precision", "float16", "--device", "cpu"], "float16 trains on CUDA only"),
        (["--recipe", "tiny", "--accumulate", "5000", "--device", "cpu"], "--batch-size of at least 5000"),
        (["--recipe", "tiny", "--init", "none.pt", "--device", "cpu"], "none.pt does not exist"),
        (["--recipe", "tiny", "--resume", "--device", "cpu"], "last.pt does not exist"),
        (["--recipe", "tiny", "--validate", "GrabCut=/nowhere", "--device", "cpu"], "GrabCut=/nowhere"),
    ],
)
def test_mistakes_get_one_line(
    flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_set = Path(__file__).parents[2] / "skipclick" / "evaluation" / "check_set"
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--data", str(check_set), "--output", "run", *flags]) == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert message.startswith("train: ")
    assert message.count("\n") == 1


@pytest.mark.parametrize("arguments", [["export", "nothing.pt", "out.safetensors"], ["plot", "nothing"]])
def test_mistakes_of_other_commands_get_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert re.fullmatch(r"train: .*nothing.*\n", capsys.readouterr().err)


def test_sides_that_are_no_numbers_are_refused_by_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (
        ["--steps", "0"],
        ["--learning-rate", "-1"],
        ["--validate", "DIR"],
        ["--steps", "3", "--epochs", "1"],
    ):
        with pytest.raises(SystemExit) as exit_:
            main([*FIT, *flags])
        assert exit_.value.code == 2


def test_the_licence_of_dinov3_is_named_before_its_weights_are_fetched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("train.init_weights.SkipClick", lambda config, pretrained: pretrained)
    assert new_model(with_network(RECIPES["paper"], "dinov3_vitb16"))
    assert "DINOv3 License, https://" in capsys.readouterr().out
    assert new_model(with_network(RECIPES["paper"], "dinov2_vitb14"))
    assert not capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    assert "DINOv3 License" in " ".join(capsys.readouterr().out.split())


def test_the_help_names_every_command_and_kind_of_source(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out.replace("-\n", "-").replace("\n", " ").lower().replace("'s", "").replace(" ", "-")
    for name in ("fit", "export", "validate", "plot", "show", "inspect", "build-cocolvis", *KINDS):
        assert name in shown.replace("coco-and-lvis", "cocolvis"), name
