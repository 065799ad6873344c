"""Protects numerical equality with the authors' released code: every intermediate tensor, clicks, rollouts.

Tolerances are those measured for the golden files (tests/parity/SOURCE.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skipclick.config import ModelConfig, VitConfig
from skipclick.metrics import mask_iou
from skipclick.model import PreparedFeatures, SkipClick
from skipclick.predictor import Predictor
from skipclick.prompts import Click, disk_map, prompt_maps, scale_clicks
from skipclick.simulation import next_click
from tests.support.parity_files import for_each_golden, load_golden
from tests.support.rule_weights import layout_of, rule_model

FLOAT32 = {"atol": 2e-4, "rtol": 1e-4}
FLOAT64 = {"atol": 1e-6, "rtol": 1e-7}
PROBABILITY_ATOL = 2e-3
EVALUATION_THRESHOLD = 0.49


def image_tensor(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


def stats(tensor: Tensor) -> list[float]:
    """Mean, standard deviation, minimum, maximum, sum of absolute values."""
    t = tensor.double()
    return [float(v) for v in (t.mean(), t.std(correction=0), t.min(), t.max(), t.abs().sum())]


def assert_stats(tensor: Tensor, expected: NDArray[np.float64]) -> None:
    actual = np.array(stats(tensor))
    np.testing.assert_allclose(actual[:4], expected[:4], **FLOAT32)
    np.testing.assert_allclose(actual[4], expected[4], rtol=1e-4)


def case_prompt(model: SkipClick, golden: dict[str, NDArray[Any]], case: str, previous: NDArray[Any]) -> Tensor:
    """Prompt maps of a golden case; its points are (1, 2N, 3): N positives, then N negatives."""
    points = torch.from_numpy(golden[f"{case}_points"][..., :2])
    positives, negatives = points.chunk(2, dim=1)
    return prompt_maps(torch.from_numpy(previous).float()[None, None], positives, negatives, model.config.click_radius)


@for_each_golden("golden_distmaps*.npz")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_disks_equal_the_released_ones(golden: Path, dtype: torch.dtype) -> None:
    data = load_golden(golden)
    cases = sorted(name.removesuffix("_points") for name in data if name.endswith("_points"))
    assert cases
    for case in cases:
        height, width = (int(v) for v in data[f"{case}_hw"])
        positives, negatives = torch.from_numpy(data[f"{case}_points"][..., :2]).to(dtype).chunk(2, dim=1)
        maps = torch.cat([disk_map(points, height, width, 5.0) for points in (positives, negatives)], dim=1)
        np.testing.assert_array_equal(maps.numpy(), data[f"{case}_{str(dtype).removeprefix('torch.')}"], err_msg=case)


@for_each_golden("golden_net_*.npz", without="*_float64.npz")
@torch.inference_mode()
def test_every_intermediate_tensor_equals_the_released_one(golden: Path) -> None:
    data = load_golden(golden)
    model = rule_model(layout_of(golden))
    image = image_tensor(data["image"])
    taps = model.backbone(image)
    features = model.prepare(taps)
    vit = model.config.backbone
    assert isinstance(vit, VitConfig)
    normalised = (image - model.backbone.mean) / model.backbone.std
    torch.testing.assert_close(normalised[0, :, :4, :4].numpy(), data["normalized_corner"], **FLOAT32)
    for block, tap in zip(vit.taps, taps, strict=True):
        tokens = tap.flatten(2).transpose(1, 2)[0]  # (N, C)
        name = f"f{(2, 5, 8, 11).index(block) + 1}"
        torch.testing.assert_close(tokens[:3].numpy(), data[f"{name}_rows"], **FLOAT32)
        torch.testing.assert_close(tokens[-1].numpy(), data[f"{name}_lastrow"], **FLOAT32)
        assert_stats(tokens, data[f"{name}_stats"])
    if "fused_rows" in data:
        torch.testing.assert_close(model.fuse_taps(taps)[0, :3].numpy(), data["fused_rows"], **FLOAT32)
        assert_stats(model.fuse_taps(taps), data["fused_stats"])
    for case in sorted({name.split("_")[0] for name in data if name.startswith("c") and name.endswith("_points")}):
        check_case(model, features, data, case)


def check_case(model: SkipClick, features: PreparedFeatures, data: dict[str, NDArray[Any]], case: str) -> None:
    prompt = case_prompt(model, data, case, data[f"{case}_prev_mask"])
    np.testing.assert_array_equal(prompt[0, 1:].numpy(), data[f"{case}_click_maps"])
    embedded = model.prompts(prompt)
    torch.testing.assert_close(embedded[0, :2].numpy(), data[f"{case}_coord_embed_rows"], **FLOAT32)
    assert_stats(embedded, data[f"{case}_coord_embed_stats"])
    patch = model.config.patch_size
    grid = prompt.shape[-2] // patch, prompt.shape[-1] // patch
    mixed = model.mixer(features.tokens, embedded)
    torch.testing.assert_close(mixed[0, :2].numpy(), data[f"{case}_mixed_rows"], **FLOAT32)
    torch.testing.assert_close(mixed[0, -1].numpy(), data[f"{case}_mixed_lastrow"], **FLOAT32)
    assert_stats(mixed, data[f"{case}_mixed_stats"])
    levels = model.pyramid(mixed.transpose(1, 2).unflatten(2, grid), features.skips, prompt)
    for i, level in enumerate(levels):
        assert level.shape == tuple(data[f"{case}_neck{i}_shape"])
        corner = data[f"{case}_neck{i}_corner"]
        torch.testing.assert_close(level[0, : corner.shape[0], :3, :3].numpy(), corner, **FLOAT32)
        assert_stats(level, data[f"{case}_neck{i}_stats"])
    fusion = model.decoder.fuse(levels)
    corner = data[f"{case}_fusion_corner"]
    torch.testing.assert_close(fusion[0, : corner.shape[0], :3, :3].numpy(), corner, **FLOAT32)
    assert_stats(fusion, data[f"{case}_fusion_stats"])
    coarse = model.decode_coarse(features, prompt)
    torch.testing.assert_close(coarse[0, 0].numpy(), data[f"{case}_decoder_logits"], **FLOAT32)
    logits = model.decode(features, prompt)
    if f"{case}_logits" in data:
        torch.testing.assert_close(logits[0, 0].numpy(), data[f"{case}_logits"], **FLOAT32)
    else:
        torch.testing.assert_close(logits[0, 0, ::4, ::4].numpy(), data[f"{case}_logits_s4"], **FLOAT32)
    assert_stats(logits, data[f"{case}_logits_stats"])


@for_each_golden("golden_net_*_float64.npz")
@torch.inference_mode()
def test_double_precision_tells_epsilons_apart(golden: Path) -> None:
    """A LayerNorm or GroupNorm epsilon that is off by a factor of ten shows only here."""
    data = load_golden(golden)
    model = rule_model(layout_of(golden)).double()
    taps = model.backbone(image_tensor(data["image"]).double())
    features = model.prepare(taps)
    if model.config.num_taps == 4:
        torch.testing.assert_close(taps[3][0, :, 0, 0].numpy(), data["c0_f4_row0"], **FLOAT64)
    for case in sorted(name.removesuffix("_points") for name in data if name.endswith("_points")):
        prompt = case_prompt(model, data, case, data[f"{case}_prev_mask"]).double()
        mixed = model.mixer(features.tokens, model.prompts(prompt))
        torch.testing.assert_close(mixed[0, 0].numpy(), data[f"{case}_mixed_row0"], **FLOAT64)
        coarse = model.decode_coarse(features, prompt)
        torch.testing.assert_close(coarse[0, 0].numpy(), data[f"{case}_decoder_logits"], **FLOAT64)


@pytest.mark.slow
@for_each_golden("golden_vitb_*.npz")
@torch.inference_mode()
def test_the_real_size_equals_the_released_one(golden: Path) -> None:
    data = load_golden(golden)
    model = rule_model(layout_of(golden))
    taps = model.backbone(image_tensor(data["image"]))
    features = model.prepare(taps)
    for i, tap in enumerate(taps):
        tokens = tap.flatten(2).transpose(1, 2)[0]
        torch.testing.assert_close(tokens[:2].numpy(), data[f"f{i + 1}_rows"], **FLOAT32)
        assert_stats(tokens, data[f"f{i + 1}_stats"])
    if "fused_rows" in data:
        torch.testing.assert_close(model.fuse_taps(taps)[0, :2].numpy(), data["fused_rows"], **FLOAT32)
    for case in sorted(name.removesuffix("_points") for name in data if name.endswith("_points")):
        prompt = case_prompt(model, data, case, data[f"{case}_prev_mask_u8"].astype(np.float32) / 255)
        coarse = model.decode_coarse(features, prompt)
        np.testing.assert_allclose(coarse[0, 0].numpy(), data[f"{case}_decoder_logits_f16"], atol=5e-3, rtol=1e-3)
        logits = model.decode(features, prompt)
        torch.testing.assert_close(logits[0, 0, ::4, ::4].numpy(), data[f"{case}_logits_s4"], **FLOAT32)
        assert_stats(logits, data[f"{case}_logits_stats"])


@for_each_golden("golden_rollout_*.npz")
@pytest.mark.parametrize("flip", [True, False], ids=["flip", "noflip"])
def test_six_simulated_clicks_go_as_in_the_released_evaluation(golden: Path, flip: bool) -> None:
    data = load_golden(golden)
    prefix = "flip" if flip else "noflip"
    height, width = (int(v) for v in data["target"])
    model = rule_model(layout_of(golden), float(data["conv_seg_bias_shift"]))
    predictor = Predictor(model, (height, width), flip=flip)
    features = predictor.encode(data["image"])
    target = data["gt"]
    probability = None
    clicks: list[Click] = []
    for step, (positive, row, column) in enumerate(data[f"{prefix}_clicks"].tolist()):
        mask = np.zeros(target.shape, bool) if probability is None else probability > EVALUATION_THRESHOLD
        click = next_click(mask, target, [(int(c.y), int(c.x)) for c in clicks])
        assert (click.positive, click.y, click.x) == (bool(positive), row, column)
        clicks.append(click)
        probability = predictor.click(features, clicks, probability)
        np.testing.assert_allclose(probability[::4, ::4], data[f"{prefix}_probs_s4"][step], atol=PROBABILITY_ATOL)
        assert probability.mean() == pytest.approx(data[f"{prefix}_mean_prob"][step], abs=PROBABILITY_ATOL)
        assert mask_iou(probability > EVALUATION_THRESHOLD, target) == pytest.approx(
            data[f"{prefix}_ious"][step], abs=PROBABILITY_ATOL
        )
    assert probability is not None
    np.testing.assert_allclose(probability, data[f"{prefix}_prob_last"], atol=PROBABILITY_ATOL)


@for_each_golden("golden_demo_session_*.npz")
def test_cached_features_answer_as_the_released_demo(golden: Path) -> None:
    data = load_golden(golden)
    height, width = (int(v) for v in data["internal"])
    predictor = Predictor(rule_model(layout_of(golden)), (height, width))
    features = predictor.encode(data["image"])
    clicks: list[Click] = []
    probability = None
    for step, ((x, y), label) in enumerate(zip(data["points_xy"].tolist(), data["labels"].tolist(), strict=True)):
        clicks.append(Click(x, y, positive=label == 1))
        probability = predictor.click(features, clicks, probability)
        np.testing.assert_allclose(probability[::2, ::2], data["probs_s2"][step], atol=PROBABILITY_ATOL)
        assert probability.mean() == pytest.approx(data["mean"][step], abs=PROBABILITY_ATOL)


class BrightnessModel(nn.Module):
    """Stands in for the network where only what surrounds it is tested: logits are brightness at half resolution."""

    version = "stub"
    config = ModelConfig(patch_size=1)

    def __init__(self) -> None:
        super().__init__()
        self.prompts_seen: list[Tensor] = []

    def backbone(self, image: Tensor) -> tuple[Tensor, ...]:
        return (image,)

    def encode_with_taps(self, image: Tensor) -> tuple[tuple[Tensor, ...], PreparedFeatures]:
        taps = self.backbone(image)
        return taps, self.prepare(taps)

    def prepare(self, taps: tuple[Tensor, ...], *, compact: bool = False) -> PreparedFeatures:
        return PreparedFeatures(taps[0], ())

    def decode(self, features: PreparedFeatures, prompt: Tensor) -> Tensor:
        self.prompts_seen.append(prompt)
        halved = nn.functional.avg_pool2d(2 * features.tokens[:, :1] - 1, 2)
        return nn.functional.interpolate(halved, size=prompt.shape[-2:], mode="bilinear", align_corners=True)


@for_each_golden("golden_transforms*.npz")
def test_image_previous_mask_clicks_and_flip_reach_the_network_as_released(golden: Path) -> None:
    data = load_golden(golden)
    for case in sorted({name.split("_")[0] for name in data if name.endswith("_output_prob")}):
        height, width = (int(v) for v in data[f"{case}_target"])
        predictor = Predictor(BrightnessModel(), (height, width), flip=True, keep_taps=True)  # type: ignore[arg-type]
        features = predictor.encode(data[f"{case}_image"])
        clicks = [Click(c, r, bool(p)) for p, r, c in data[f"{case}_clicks"].tolist()]
        probability = predictor.click(features, clicks, data[f"{case}_prev_mask"])
        (prompt,) = predictor.model.prompts_seen  # type: ignore[union-attr, misc]
        assert isinstance(prompt, Tensor)
        image4 = torch.cat([features.taps[0], prompt[:, :1]], dim=1)[..., ::3, ::3]
        np.testing.assert_allclose(image4.numpy(), data[f"{case}_net_image4"], atol=1e-5)
        np.testing.assert_allclose(probability, data[f"{case}_output_prob"], atol=1e-5)
        check_points(clicks, data[f"{case}_image"].shape[:2], data[f"{case}_net_points"], (height, width))


def check_points(
    clicks: list[Click], size: tuple[int, ...], expected: NDArray[np.float32], resolution: tuple[int, int]
) -> None:
    """`expected`: (2, 2N, 3), the points of the plain and the mirrored view; positives come first in each."""
    scaled = scale_clicks(clicks, (size[0], size[1]), resolution)
    num_slots = expected.shape[1] // 2
    for view, mirrored in enumerate((False, True)):
        for positive, slots in ((True, expected[view, :num_slots]), (False, expected[view, num_slots:])):
            mine = [(c.y, resolution[1] - c.x - 1 if mirrored else c.x) for c in scaled if c.positive == positive]
            np.testing.assert_allclose(slots[: len(mine), :2], np.array(mine).reshape(-1, 2), atol=1e-4)
            assert (slots[len(mine) :, :2] < 0).all()
