"""Protects the public calls: checked input, statelessness, the cached path, resizing, batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from skipclick import Click, Predictor, load_checkpoint
from skipclick.config import ModelConfig, preset
from skipclick.masks import MASK_THRESHOLD
from skipclick.model import SkipClick
from skipclick.predictor import ClickRequest
from skipclick.prompts import click_points, scale_clicks
from tests.support.small_models import SMALL, SMALL_CONV


@pytest.fixture(params=["vit", "baseline", "convnet"])
def model(request: pytest.FixtureRequest) -> SkipClick:
    torch.manual_seed(0)
    config: ModelConfig = {"vit": SMALL, "baseline": preset("frozen", SMALL), "convnet": SMALL_CONV}[request.param]
    return SkipClick(config).eval()


@pytest.fixture
def photo() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


def resolution_for(model: SkipClick) -> tuple[int, int]:
    return 4 * model.config.size_multiple, 3 * model.config.size_multiple


CLICKS = [Click(60, 40), Click(10.5, 80.25, positive=False), Click(100, 20)]


def test_cached_features_answer_exactly_as_the_full_forward(model: SkipClick, photo: NDArray[np.uint8]) -> None:
    """Three clicks on one `ImageFeatures` against a fresh forward of the whole network for each."""
    resolution = resolution_for(model)
    predictor = Predictor(model, resolution)
    features = predictor.encode(photo)
    previous = None
    for count in range(1, len(CLICKS) + 1):
        answer = predictor.click(features, CLICKS[:count], previous)
        pixels = torch.from_numpy(photo).permute(2, 0, 1)[None]
        image = predictor._resize(pixels if model.config.antialias else pixels.float(), resolution).float() / 255
        mask = predictor._previous(previous, features.image_size)
        positives, negatives = click_points([scale_clicks(CLICKS[:count], features.image_size, resolution)])
        with torch.inference_mode():
            logits = model(image, mask, positives, negatives)
        expected = predictor._resize(logits.sigmoid(), features.image_size)[0, 0].numpy()
        np.testing.assert_allclose(answer, expected, atol=1e-5)
        previous = answer


def test_clicking_leaves_features_as_they_were(model: SkipClick, photo: NDArray[np.uint8]) -> None:
    """The released code adds clicks into the cached tensor itself; a second object would then start wrong."""
    predictor = Predictor(model, resolution_for(model))
    features = predictor.encode(photo)
    first = predictor.click(features, CLICKS[:1])
    predictor.click(features, CLICKS, first)
    np.testing.assert_array_equal(predictor.click(features, CLICKS[:1]), first)


def test_the_answer_has_the_photos_size_and_is_a_probability(model: SkipClick, photo: NDArray[np.uint8]) -> None:
    predictor = Predictor(model, resolution_for(model))
    answer = predictor.click(predictor.encode(photo), CLICKS[:1])
    assert answer.shape == photo.shape[:2]
    assert answer.dtype == np.float32
    assert answer.min() >= 0
    assert answer.max() <= 1


def test_previous_probability_and_sign_matter(model: SkipClick, photo: NDArray[np.uint8]) -> None:
    predictor = Predictor(model, resolution_for(model))
    features = predictor.encode(photo)
    plain = predictor.click(features, CLICKS[:1])
    assert not np.array_equal(plain, predictor.click(features, CLICKS[:1], np.ones_like(plain)))
    assert not np.array_equal(plain, predictor.click(features, [replace(CLICKS[0], positive=False)]))


def test_mirroring_photo_and_clicks_mirrors_a_flipped_answer(model: SkipClick) -> None:
    """With test-time flip the network cannot tell left from right; at network resolution this is exact."""
    resolution = resolution_for(model)
    photo = np.random.default_rng(1).integers(0, 256, (*resolution, 3), dtype=np.uint8)
    predictor = Predictor(model, resolution, flip=True)
    answer = predictor.click(predictor.encode(photo), [Click(20, 30)])
    mirrored = predictor.click(predictor.encode(photo[:, ::-1]), [Click(resolution[1] - 1 - 20, 30)])
    np.testing.assert_allclose(mirrored[:, ::-1], answer, atol=1e-5)


def test_bfloat16_agrees_with_float32(model: SkipClick, photo: NDArray[np.uint8]) -> None:
    answers = []
    for dtype in ("float32", "bfloat16"):
        predictor = Predictor(model, resolution_for(model), dtype=dtype)
        answers.append(predictor.click(predictor.encode(photo), CLICKS[:1]))
    np.testing.assert_allclose(answers[0], answers[1], atol=0.05)


@pytest.mark.requires_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu(model: SkipClick, photo: NDArray[np.uint8]) -> None:
    answers = []
    for device in ("cpu", "cuda"):
        predictor = Predictor(model, resolution_for(model), device)
        answers.append(predictor.click(predictor.encode(photo), CLICKS))
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-3)


def test_the_callers_model_is_left_alone(model: SkipClick) -> None:
    before = {name: (p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    Predictor(model, resolution_for(model), dtype="bfloat16")
    assert {name: (p.dtype, p.requires_grad) for name, p in model.named_parameters()} == before


def test_default_resolution_is_the_models(model: SkipClick) -> None:
    assert Predictor(model).resolution == model.config.resolution


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (np.zeros((20, 20, 3), np.float32), "uint8"),
        ([[1, 2], [3, 4]], "NumPy array"),
        (np.zeros((20, 20), np.uint8), "RGB"),
        (np.zeros((20, 20, 4), np.uint8), "RGB"),
        (np.zeros((0, 20, 3), np.uint8), "RGB"),
    ],
)
def test_wrong_images_are_refused(model: SkipClick, image: NDArray[np.uint8], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Predictor(model, resolution_for(model)).encode(image)


@pytest.mark.parametrize(
    ("clicks", "previous", "sentence"),
    [
        ([], None, "at least one"),
        ([Click(-1, 5)], None, "outside the image"),
        ([Click(5, 90.5)], None, "outside the image"),
        ([Click(float("nan"), 5)], None, "outside the image"),
        (CLICKS, np.zeros((90, 120)), "float32"),
        (CLICKS, np.zeros((120, 90), np.float32), r"\(90, 120\)"),
    ],
)
def test_wrong_clicks_are_refused(
    model: SkipClick, photo: NDArray[np.uint8], clicks: list[Click], previous: NDArray[np.float32], sentence: str
) -> None:
    predictor = Predictor(model, resolution_for(model))
    features = predictor.encode(photo)
    with pytest.raises(ValueError, match=sentence):
        predictor.click(features, clicks, previous)


def test_wrong_settings_are_refused(model: SkipClick) -> None:
    with pytest.raises(ValueError, match="multiples of"):
        Predictor(model, (100, 100))
    with pytest.raises(ValueError, match="float32"):
        Predictor(model, dtype="int8")


@pytest.mark.parametrize("flip", [False, True])
def test_a_batch_answers_each_object_as_if_it_were_alone(
    model: SkipClick, photo: NDArray[np.uint8], flip: bool
) -> None:
    """Objects of one photo and of another, at different clicks: a batch must not mix them up."""
    predictor = Predictor(model, resolution_for(model), flip=flip)
    first, second = predictor.encode(photo), predictor.encode(np.ascontiguousarray(photo[:50, ::-1]))
    started = predictor.click(first, CLICKS[:1])
    features = [first, second, first]
    clicks = [CLICKS[:2], [Click(20, 30)], CLICKS[2:]]
    previous = [started, None, None]
    alone = [predictor.click(*request) for request in zip(features, clicks, previous, strict=True)]
    together = predictor.click_batch(features, clicks, previous)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert [answer.shape for answer in together] == [(90, 120), (50, 120), (90, 120)]


def test_an_answer_is_the_whole_forward_at_network_resolution(model: SkipClick, photo: NDArray[np.uint8]) -> None:
    """Three clicks, each against a fresh forward whose previous mask never left the network's resolution."""
    resolution = resolution_for(model)
    predictor = Predictor(model, resolution)
    features = predictor.encode(photo)
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None]
    image = predictor._resize(pixels if model.config.antialias else pixels.float(), resolution).float() / 255
    state, previous = None, torch.zeros(1, 1, *resolution)
    for count in range(1, len(CLICKS) + 1):
        answer = predictor.predict([ClickRequest(features, CLICKS[:count], state)])[0]
        with torch.inference_mode():
            points = click_points([scale_clicks(CLICKS[:count], features.image_size, resolution)])
            previous = model(image, previous, *points).sigmoid()
            whole = predictor._resize(previous, features.image_size)[0, 0].numpy()
        torch.testing.assert_close(answer.state, previous[0, 0], atol=1e-4, rtol=0)
        expected = whole > MASK_THRESHOLD
        clear = np.abs(whole - MASK_THRESHOLD) > 1e-4
        np.testing.assert_array_equal(answer.mask.full()[clear], expected[clear])
        assert answer.score == pytest.approx(whole[expected].mean() if expected.any() else 0.0, abs=1e-3)
        state = answer.state


def test_answers_do_not_depend_on_what_shares_their_batch(model: SkipClick, photo: NDArray[np.uint8]) -> None:
    """Objects of two photos of different sizes, some with a previous state; a batch may change the last bits only."""
    predictor = Predictor(model, resolution_for(model))
    first, second = predictor.encode(photo), predictor.encode(np.ascontiguousarray(photo[:50, ::-1]))
    begun = predictor.predict([ClickRequest(first, CLICKS[:1])])[0]
    requests = [
        ClickRequest(first, CLICKS[:2], begun.state),
        ClickRequest(second, [Click(20, 30)]),
        ClickRequest(first, CLICKS, begun.state),
    ]
    for request, together in zip(requests, predictor.predict(requests), strict=True):
        alone = predictor.predict([request])[0]
        torch.testing.assert_close(together.state, alone.state, atol=1e-5, rtol=0)
        assert together.mask.size == request.features.image_size
        assert (together.mask.full() != alone.mask.full()).mean() < 0.01
        assert together.score == pytest.approx(alone.score, abs=1e-3)


def test_a_state_owns_its_memory(model: SkipClick, photo: NDArray[np.uint8]) -> None:
    """The memo of one object must not keep a whole batch alive."""
    predictor = Predictor(model, resolution_for(model))
    features = predictor.encode(photo)
    for answer in predictor.predict([ClickRequest(features, CLICKS[:1])] * 3):
        assert answer.state.untyped_storage().nbytes() == answer.state.nbytes


def test_a_started_area_is_the_previous_mask(model: SkipClick, photo: NDArray[np.uint8]) -> None:
    predictor = Predictor(model, resolution_for(model))
    features = predictor.encode(photo)
    area = np.zeros(photo.shape[:2], bool)
    area[20:60, 30:90] = True
    state = predictor.start_state(area)
    assert tuple(state.shape) == predictor.resolution
    mirrored = predictor.start_state(np.ascontiguousarray(area[:, ::-1]))
    torch.testing.assert_close(mirrored, state.flip(-1), atol=1e-3, rtol=0)
    started, plain = (predictor.predict([ClickRequest(features, CLICKS[:1], s)])[0] for s in (state, None))
    assert not torch.equal(started.state, plain.state)


def test_a_mask_keeps_to_the_area_that_it_is_given() -> None:
    """Its border to the pixel, and so does what the next click sees; other objects of the batch are left alone."""
    rows, columns = np.ogrid[:160, :200]
    photo = np.where(((rows - 70) ** 2 + (columns - 90) ** 2 <= 40**2)[..., None], (220, 200, 180), 60).astype(np.uint8)
    predictor, area = Predictor(load_checkpoint("bundled"), (96, 128)), np.zeros(photo.shape[:2], bool)
    area[21:71, 33:90] = True
    free = ClickRequest(predictor.encode(photo), [Click(80, 60)])
    kept, plain = predictor.predict([replace(free, within=area), free])
    whole = plain.mask.full()
    assert (whole & ~area).sum() > 1000
    assert not (kept.mask.full() & ~area).any()
    inside = np.zeros_like(area)
    inside[23:69, 35:88] = True  # at the border the network's pixels are averaged with nothing
    np.testing.assert_array_equal(kept.mask.full()[inside], whole[inside])
    torch.testing.assert_close(kept.state, plain.state * predictor.start_state(area))
    (nothing,) = predictor.predict([replace(free, within=np.zeros_like(area))])
    assert (nothing.mask.empty, nothing.score) == (True, 0.0)
    for wrong in (area[1:], area.astype(np.uint8)):
        with pytest.raises(ValueError, match="give bool"):
            predictor.predict([replace(free, within=wrong)])


def test_wrong_requests_are_refused(model: SkipClick, photo: NDArray[np.uint8]) -> None:
    predictor = Predictor(model, resolution_for(model))
    features = predictor.encode(photo)
    with pytest.raises(ValueError, match="no requests"):
        predictor.predict([])
    with pytest.raises(ValueError, match="outside the image"):
        predictor.predict([ClickRequest(features, [Click(500, 5)])])
    with pytest.raises(ValueError, match="previous state"):
        predictor.predict([ClickRequest(features, CLICKS, torch.zeros(90, 120))])
    with pytest.raises(ValueError, match="previous state"):
        predictor.predict([ClickRequest(features, CLICKS, torch.zeros(predictor.resolution, dtype=torch.bfloat16))])
    with pytest.raises(ValueError, match="flip"):
        Predictor(model, resolution_for(model), flip=True).predict([ClickRequest(features, CLICKS)])


def test_features_hold_the_blocks_only_where_asked(model: SkipClick, photo: NDArray[np.uint8]) -> None:
    lean, whole = (Predictor(model, resolution_for(model), keep_taps=keep).encode(photo) for keep in (False, True))
    assert lean.taps == ()
    assert len(whole.taps) == model.config.num_taps
    assert lean.nbytes < whole.nbytes


def test_warming_up_changes_no_answer(model: SkipClick, photo: NDArray[np.uint8]) -> None:
    predictor = Predictor(model, resolution_for(model))
    request = ClickRequest(predictor.encode(photo), CLICKS)
    before = predictor.predict([request])[0]
    predictor.warm_up()
    assert torch.equal(predictor.predict([request])[0].state, before.state)
