"""Protects the training of a head alone: views kept on disk, roll-outs, checkpoints that continue, a head refitted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from skipclick import Predictor, load_checkpoint
from skipclick.checkpoint import read_metadata, save_checkpoint
from skipclick.head import head_state
from skipclick.model import SkipClick
from tests.support.small_models import SMALL_CONV
from train.__main__ import main
from train.frozen.encode import encode_views
from train.frozen.fit import HeadConfig, HeadRun, fit_head, read_head
from train.frozen.refit import LinearFit, refit_head
from train.frozen.rollout import MAX_CLICKS, advanced, new_place
from train.frozen.store import list_views, read_view
from train.losses import bce_dice_loss

FROZEN = replace(SMALL_CONV, train_backbone=False, resolution=(64, 64))
SHORT = HeadConfig(steps=60, batch_size=4, learning_rate=3e-3, warmup_steps=5, ema_decay=0.9)


def network(seed: int = 0) -> SkipClick:
    torch.manual_seed(seed)
    return SkipClick(FROZEN, version=f"small {seed}").eval()


def encode(folder: Path, photos: Path, number: int, crop: int = 64, model: SkipClick | None = None) -> None:
    encode_views(
        model or network(),
        [str(photos)],
        folder,
        crop=crop,
        num_views=number,
        first_look=Predictor(network()),
        kind_weights={"odd": 3.0},
    )


@pytest.fixture(scope="module")
def views(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    encode(folder, photo_folder, 40)
    return folder


def about(path: Path) -> dict[str, Any]:
    """What a view's file says of its photo and kind."""
    with safe_open(str(path), framework="pt") as file:
        content: dict[str, Any] = json.loads(file.metadata()["about"])
    return content


def test_views_are_the_same_in_one_run_or_two(views: Path, photo_folder: Path, tmp_path: Path) -> None:
    encode(tmp_path / "two", photo_folder, 3)
    third = list_views(tmp_path / "two")[2].stat().st_mtime_ns
    encode(tmp_path / "two", photo_folder, 6)
    again = list_views(tmp_path / "two")
    assert [path.name for path in again] == [path.name for path in list_views(views)[:6]]
    assert again[2].stat().st_mtime_ns == third
    for one, other in zip(again, list_views(views), strict=False):
        assert about(one) == about(other)
        mine, theirs = read_view(one), read_view(other)
        assert all(torch.equal(a, b) for a, b in zip(mine.taps, theirs.taps, strict=True))
        assert np.array_equal(mine.scene.layers, theirs.scene.layers)
        if mine.start is not None:
            assert theirs.start is not None
            assert np.array_equal(mine.start.probability, theirs.start.probability)


def test_a_view_is_what_the_backbone_makes_of_it(views: Path) -> None:
    kinds = {about(path)["view"] for path in list_views(views)}
    assert kinds == {"whole", "window", "zoom"}
    odd = [about(path)["photo_kind"] == "odd" for path in list_views(views)]
    assert 0.5 < np.mean(odd) < 0.95  # drawn three times as often
    for path in list_views(views)[:10]:
        view = read_view(path)
        assert [tap.shape[1:] for tap in view.taps] == [(8, 16, 16), (8, 8, 8), (16, 4, 4), (16, 2, 2)]
        assert view.scene.layers.shape[1:] == (64, 64)
        assert (view.start is not None) <= (about(path)["view"] == "zoom")


def test_other_views_and_files_are_refused(views: Path, photo_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of another backbone, size or data"):
        encode(views, photo_folder, 41, crop=96)
    with pytest.raises(ValueError, match="multiple of 32"):
        encode(tmp_path / "new", photo_folder, 1, crop=70)
    with pytest.raises(ValueError, match="another backbone than this model's"):
        fit_head(network(1), HeadRun(views=views, output=tmp_path / "run"), SHORT)
    with pytest.raises(ValueError, match="holds no encoded views"):
        fit_head(network(), HeadRun(views=photo_folder, output=tmp_path / "run"), SHORT)
    (tmp_path / "view-00000000.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match="cannot be read"):
        read_view(tmp_path / "view-00000000.safetensors")
    with pytest.raises(ValueError, match="not a checkpoint of `fit-head`"):
        read_head(list_views(views)[0])


def test_an_object_stays_for_its_clicks(views: Path) -> None:
    lengths = []
    for number in range(60):
        place = new_place(list_views(views), np.random.default_rng(number))
        lengths.append(place.remaining)
        assert place.clicks
        wrong = np.where(place.target == 1, 0.1, 0.2).astype(np.float32)
        following = advanced(place, wrong)
        if place.remaining == 1:
            assert following is None
            continue
        assert following is not None
        assert following.remaining == place.remaining - 1
        assert following.clicks[:-1] == place.clicks
        click = following.clicks[-1]
        assert click.positive
        assert place.target[int(click.y), int(click.x)] == 1
        assert following.previous is wrong
        assert advanced(place, (place.target == 1).astype(np.float32)) is None  # nothing is wrong
    assert set(lengths) == set(range(1, MAX_CLICKS + 1))


def test_a_head_learns_and_goes_on_from_its_checkpoint(views: Path, tmp_path: Path) -> None:
    model = network()
    backbone = {key: tensor.clone() for key, tensor in model.backbone.state_dict().items()}
    run = HeadRun(views=views, output=tmp_path / "run", held_out=views, measure_every=60, num_measured=10)
    last = fit_head(model, run, SHORT)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    assert lines[-1]["mIoU@5"] > 0.5
    for key, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, backbone[key]), key
    saved = read_head(last)
    assert saved["step"] == 60
    assert not any(key.startswith("backbone.") for key in [*saved["head"], *saved["average"]])
    with pytest.raises(ValueError, match="continue it with --resume"):
        fit_head(network(), run, SHORT)
    on = fit_head(network(), replace(run, output=tmp_path / "on"), replace(SHORT, steps=80), resume=last)
    again = read_head(on)
    assert (again["step"], [one["to_step"] for one in again["history"]]) == (80, [60, 80])
    first = json.loads((tmp_path / "on" / "log.jsonl").read_text().splitlines()[0])
    assert first["loss"] < 0.8 * losses[0]


def test_resuming_without_steps_changes_nothing(views: Path, tmp_path: Path) -> None:
    last = fit_head(network(), HeadRun(views=views, output=tmp_path / "a"), replace(SHORT, steps=3))
    on = fit_head(network(), HeadRun(views=views, output=tmp_path / "b"), replace(SHORT, steps=3), resume=last)
    one, other = read_head(last), read_head(on)
    for part in ("head", "average"):
        assert one[part].keys() == other[part].keys()
        assert all(torch.equal(one[part][key], other[part][key]) for key in one[part])
    for key, moments in one["optimizer"].items():
        assert all(torch.equal(moments[name], other["optimizer"][key][name]) for name in moments)


def test_the_commands_lead_to_a_checkpoint_that_is_served(photo_folder: Path, tmp_path: Path) -> None:
    backbone, data, views = str(tmp_path / "backbone.safetensors"), str(photo_folder), str(tmp_path / "views")
    save_checkpoint(network(), backbone, version="backbone")
    shared = ["--backbone", backbone]
    encode = ["encode-views", "--data", data, *shared, "--crop", "64", "--views", "8", "--output", views]
    assert main([*encode, "--first-look", backbone, "--kind-weights", "odd=2"]) == 0
    init, run, out = str(tmp_path / "init.safetensors"), str(tmp_path / "run"), str(tmp_path / "out.safetensors")
    assert main(["refit-head", "--data", data, *shared, "--head", backbone, "--photos", "4", init]) == 0
    assert main(["fit-head", "--views", views, "--init", init, "--steps", "4", "--output", run]) == 0
    assert main(["fit-head", "--views", views, *shared, "--steps", "4", "--output", str(tmp_path / "fresh")]) == 0
    assert main(["export-head", f"{run}/head.pt", out, *shared, "--resolution", "96", "--version", "tried"]) == 0
    model = load_checkpoint(out)
    assert (model.version, model.config.resolution) == ("tried", (96, 96))
    average = read_head(Path(run, "head.pt"))["average"]
    for key, tensor in head_state(model).items():
        assert key not in average or torch.allclose(tensor, average[key], atol=2e-3, rtol=1e-3), key
    provenance = read_metadata(out)["provenance"]
    assert provenance["steps"] == 4
    assert provenance["runs"][0]["views"]["sources"] == [photo_folder.name]
    assert str(tmp_path) not in json.dumps(provenance)


def test_wrong_input_is_a_line(photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export-head", str(tmp_path / "none.pt"), "x", "--backbone", "bundled"]) == 2
    assert capsys.readouterr().err.strip() == f"train: {tmp_path / 'none.pt'} does not exist"
    with pytest.raises(SystemExit):
        main(["encode-views", "--data", "x", "--backbone", "bundled", "--crop", "64", "--kind-weights", "odd=-1"])


def test_a_head_put_on_its_own_backbone_is_itself(photo_folder: Path) -> None:
    donor, model = network(), network(1)
    model.backbone.load_state_dict(donor.backbone.state_dict())
    rng = np.random.default_rng(0)
    images = [torch.from_numpy(rng.random((1, 3, 96, 96), np.float32)) for _ in range(40)]
    explained = refit_head(model, donor, images)
    assert min(explained.values()) > 0.999
    prompt = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        one, other = (net.decode(net.encode(images[0]), prompt) for net in (donor, model))
    assert float((one - other).abs().max()) < 0.02 * float(one.std() + 1)


def test_a_head_of_other_sizes_is_refused() -> None:
    other = SkipClick(replace(FROZEN, mixer_width=48)).eval()
    with pytest.raises(ValueError, match="does not fit this network"):
        refit_head(other, network(), [])


def test_the_fit_is_that_of_least_squares() -> None:
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(500, 5, generator=rng) + 2
    outputs = inputs @ torch.randn(5, 3, generator=rng) + torch.randn(500, 3, generator=rng) * 0.5 - 4
    fit = LinearFit()
    for part in range(5):
        fit.add(inputs[part * 100 : part * 100 + 100], outputs[part * 100 : part * 100 + 100])
    weight, bias, explained = fit.solve()
    extended = np.column_stack([inputs.numpy(), np.ones(500)])
    solution, residual, *_ = np.linalg.lstsq(extended, outputs.numpy(), rcond=None)
    np.testing.assert_allclose(weight.numpy(), solution[:5].T, atol=5e-3)
    np.testing.assert_allclose(bias.numpy(), solution[5], atol=2e-2)
    centred = outputs.numpy() - outputs.numpy().mean(axis=0)
    assert explained == pytest.approx(1 - residual.sum() / (centred**2).sum(), abs=1e-4)


def test_ignored_pixels_are_never_clicked_on_or_graded(views: Path) -> None:
    place = new_place(list_views(views), np.random.default_rng(3))
    target = np.where(place.target == 1, -1, 0).astype(np.int8)
    target[:2, :2] = 1
    place = replace(place, target=target, remaining=5)
    assert advanced(place, (target != 0).astype(np.float32)) is None
    logits = torch.zeros(1, 1, 64, 64, requires_grad=True)
    bce_dice_loss(logits, torch.from_numpy(target)[None, None].float()).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert not logits.grad[0, 0][torch.from_numpy(target) == -1].any()
