"""Protects zoom-in: which view is chosen, that answers depend on nothing else, and masks without seams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from skipclick import Click, Predictor, load_checkpoint
from skipclick.features import ImageFeatures
from skipclick.masks import NOTHING, Box, BoxMask, enlarge
from skipclick.metrics import mask_iou
from skipclick.model import PreparedFeatures, SkipClick
from skipclick.predictor import ClickRequest
from skipclick.simulation import next_click
from skipclick.zoom import (
    FEATHER,
    ZoomPrediction,
    ZoomRequest,
    ZoomRule,
    ZoomState,
    _resample,
    contains,
    core,
    crop_encoder,
    likely_view,
    local_side,
    new_view,
    next_view,
    predict_zoomed,
    start_in_box,
    whole_view,
    zoom_request,
)
from tests.support.small_models import SMALL, SMALL_CONV

RESOLUTION = (64, 96)
RULE = ZoomRule()
NEVER_LOCAL = ZoomRule(local_from=100)


def filled(box: Box, size: tuple[int, int]) -> BoxMask:
    """A box full of object; it takes no memory."""
    return BoxMask(size, box, np.broadcast_to(np.True_, (box[2] - box[0], box[3] - box[1])))


def state(mask_box: Box, size: tuple[int, int], view: Box | None = None, agreement: float = 0.0) -> ZoomState:
    whole, mask = torch.zeros(RESOLUTION), filled(mask_box, size)
    return ZoomState(whole, None if view is None else whole, view or whole_view(size), mask, 1.0, agreement)


sizes = st.tuples(st.integers(1, 4000), st.integers(1, 4000))


@st.composite
def situations(draw: st.DrawFn) -> tuple[ZoomState, list[Click], tuple[int, int]]:
    """A photo, an answer on it and clicks, the last of which the answer does not know."""
    size = draw(sizes)
    rows, columns = (sorted(draw(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)))) for n in size)
    points = draw(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.booleans()), min_size=2, max_size=5))
    clicks = [Click(x * size[1], y * size[0], positive) for x, y, positive in points]
    agreement = draw(st.sampled_from([0.0, RULE.settled, 1.0]))
    return state((rows[0], columns[0], rows[1] + 1, columns[1] + 1), size, agreement=agreement), clicks, size


def area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def pixel(click: Click, size: tuple[int, int]) -> Box:
    row, column = min(int(click.y), size[0] - 1), min(int(click.x), size[1] - 1)
    return row, column, row + 1, column + 1


class TestViews:
    """Which part of the photo the network looks at."""

    @given(situations())
    def test_a_view_holds_mask_and_click_and_is_worth_an_encode(
        self, situation: tuple[ZoomState, list[Click], tuple[int, int]]
    ) -> None:
        before, clicks, size = situation
        view = next_view(before, clicks, size, NEVER_LOCAL)
        assert contains(whole_view(size), view)
        assert contains(view, before.mask.box)
        assert contains(view, pixel(clicks[-1], size))
        if view != whole_view(size):
            parts = (view[2] - view[0]) / size[0], (view[3] - view[1]) / size[1]
            assert math.sqrt(parts[0] * parts[1]) <= RULE.largest + 1 / min(size)

    @given(situations())
    def test_the_likely_view_is_the_next_one_wherever_within_it_the_click_falls(
        self, situation: tuple[ZoomState, list[Click], tuple[int, int]]
    ) -> None:
        """So what is encoded ahead is what will be needed."""
        before, clicks, size = situation
        likely = likely_view(before, clicks[:-1], size)
        is_inside = contains(core(likely, size), pixel(clicks[-1], size))
        if is_inside and local_side(before, clicks[:-1], size) is None:
            assert next_view(before, clicks, size) == likely

    @given(situations())
    def test_a_click_on_a_settled_mask_is_looked_at_closely(
        self, situation: tuple[ZoomState, list[Click], tuple[int, int]]
    ) -> None:
        before, clicks, size = situation
        side, view = local_side(before, clicks[:-1], size), next_view(before, clicks, size)
        likely = likely_view(before, clicks[:-1], size)
        if side is not None and contains(core(likely, size), pixel(clicks[-1], size)):
            assert len(clicks) >= RULE.local_from
            assert before.agreement >= RULE.settled
            assert contains(whole_view(size), view)
            assert contains(view, pixel(clicks[-1], size))
            assert (view[2] - view[0], view[3] - view[1]) == (min(side, size[0]), min(side, size[1]))
            assert area(view) <= RULE.largest_local * area(likely)
        else:
            assert view == next_view(before, clicks, size, NEVER_LOCAL)

    def test_a_mask_that_still_changes_is_looked_at_whole(self) -> None:
        size, clicks = (1000, 1500), [Click(700, 500), Click(720, 500), Click(690, 490)]
        moving, settled = (state((300, 400, 800, 1000), size, agreement=part) for part in (0.94, 0.96))
        assert next_view(moving, clicks, size) == likely_view(moving, clicks[:-1], size)
        assert next_view(settled, clicks, size) == (299, 499, 682, 882)  # 0.7 of the mean side, around (690, 490)
        assert next_view(settled, clicks[1:], size) == likely_view(settled, clicks[1:-1], size)  # its second click

    @given(situations())
    def test_a_view_is_kept_while_nothing_moves(
        self, situation: tuple[ZoomState, list[Click], tuple[int, int]]
    ) -> None:
        before, clicks, size = situation
        view = next_view(before, clicks, size, NEVER_LOCAL)
        after = before if view == whole_view(size) else replace(before, crop=before.whole, view=view)
        assert likely_view(after, clicks, size) == view

    def test_first_clicks_and_objects_that_fill_the_photo_see_all_of_it(self) -> None:
        size = (1000, 1500)
        clicks = [Click(700, 500), Click(720, 500)]
        assert next_view(None, clicks[:1], size) == whole_view(size)
        assert next_view(state((100, 200, 900, 1400), size), clicks, size) == whole_view(size)

    def test_an_empty_mask_goes_back_to_the_whole_photo(self) -> None:
        size = (1000, 1500)
        before = state(NOTHING, size, view=(400, 600, 600, 900))
        assert next_view(before, [Click(700, 500), Click(720, 500)], size) == whole_view(size)

    def test_a_click_outside_the_crop_leaves_it_at_once(self) -> None:
        size = (1000, 1500)
        crop = new_view((450, 650, 550, 800), size, RESOLUTION)
        before = state((450, 650, 550, 800), size, crop)
        outside = Click(crop[3] + 60, 500)
        view = next_view(before, [Click(700, 500), outside], size)
        assert view != crop
        assert contains(core(view, size), pixel(outside, size))

    def test_a_mask_that_touches_the_crops_border_leaves_it(self) -> None:
        size = (1000, 1500)
        crop = new_view((450, 650, 550, 800), size, RESOLUTION)
        before = state((450, 650, 550, crop[3]), size, crop)
        view = next_view(before, [Click(700, 500), Click(700, 510)], size)
        assert contains(core(view, size), before.mask.box)

    def test_a_crop_far_too_large_is_left_for_a_closer_one(self) -> None:
        size = (1000, 1500)
        crop = (0, 0, 800, 1200)
        box = (450, 650, 550, 800)
        assert next_view(state(box, size, crop), [Click(700, 500)] * 2, size) == new_view(box, size, RESOLUTION)
        large = (200, 300, 700, 1000)
        assert next_view(state(large, size, crop), [Click(700, 500)] * 2, size) == crop

    def test_a_crop_can_follow_the_shape_of_the_object(self) -> None:
        """A ski of 40 x 600 pixels in a photo of 1000 x 1500."""
        box, size = (480, 300, 520, 900), (1000, 1500)
        shapes = [new_view(box, size, RESOLUTION, replace(RULE, elongation=part)) for part in (0.0, 0.5, 1.0)]
        heights = [view[2] - view[0] for view in shapes]
        assert {view[3] - view[1] for view in shapes} == {840}
        assert heights == [560, round(1000 * math.sqrt(0.56 * 0.056)), 56]
        assert all(contains(view, box) for view in shapes)

    def test_a_crop_is_no_closer_than_there_is_something_to_see(self) -> None:
        top, left, bottom, right = new_view((500, 500, 501, 501), (1000, 1500), RESOLUTION)
        assert bottom - top >= RULE.smallest * RESOLUTION[0]
        assert right - left >= RULE.smallest * RESOLUTION[1]


@pytest.fixture(params=["vit", "convnet"])
def model(request: pytest.FixtureRequest) -> SkipClick:
    """One that aligns corners, as the released code does, and one that resizes photos with antialiasing."""
    torch.manual_seed(0)
    return SkipClick({"vit": SMALL, "convnet": SMALL_CONV}[request.param]).eval()


def predictor_of(model: SkipClick, **options: Any) -> Predictor:
    multiple = model.config.size_multiple
    return Predictor(model, (4 * multiple, 3 * multiple), **options)


@pytest.fixture
def photo() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (240, 360, 3), dtype=np.uint8)


CLICKS = [Click(200, 110), Click(215.5, 120.25, positive=False), Click(190, 100), Click(205, 130)]


def without_mask(before: ZoomState) -> ZoomState:
    """Its maps are of any photo's; so every view holds the whole object."""
    return replace(before, mask=filled(NOTHING, before.mask.size))


def fixed_views(predictor: Predictor, image: NDArray[np.uint8], views: Sequence[Box]) -> list[ZoomPrediction]:
    """A session on given views, whatever the masks are."""
    encode = crop_encoder(predictor, image)
    size = (image.shape[0], image.shape[1])
    answers: list[ZoomPrediction] = []
    for count, view in enumerate(views, 1):
        before = without_mask(answers[-1].state) if answers else None
        answers += predict_zoomed(predictor, [ZoomRequest(encode(view), view, size, CLICKS[:count], before)])
    return answers


CROP = (60, 120, 180, 300)
CLOSER = (80, 150, 160, 270)
WHOLE = (0, 0, 240, 360)


def test_on_the_whole_photo_answers_are_the_predictors_bit_for_bit(model: SkipClick, photo: NDArray[np.uint8]) -> None:
    predictor = predictor_of(model)
    features = predictor.encode(photo)
    never = ZoomRule(largest=0.0, local_from=100)
    before = plain = None
    for count in range(1, len(CLICKS) + 1):
        request = zoom_request(features, CLICKS[:count], before, crop_encoder(predictor, photo), never)
        (zoomed,) = predict_zoomed(predictor, [request])
        (expected,) = predictor.predict([ClickRequest(features, CLICKS[:count], plain)])
        assert torch.equal(zoomed.state.whole, expected.state)
        assert zoomed.state.crop is None
        assert (zoomed.mask.box, zoomed.score) == (expected.mask.box, expected.score)
        np.testing.assert_array_equal(zoomed.mask.pixels, expected.mask.pixels)
        before, plain = zoomed.state, expected.state


@pytest.mark.requires_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_answers_as_the_cpu(model: SkipClick, photo: NDArray[np.uint8]) -> None:
    views = [WHOLE, CROP, CROP, CLOSER]
    answers = [fixed_views(predictor_of(model, device=device), photo, views) for device in ("cpu", "cuda")]
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(other.state.whole.cpu(), one.state.whole, atol=1e-3, rtol=0)
        assert other.state.nbytes == one.state.nbytes


def test_the_same_request_gives_the_same_bits(model: SkipClick, photo: NDArray[np.uint8]) -> None:
    """Whatever was encoded and answered before, and by whichever predictor of the same weights."""
    views = [WHOLE, CROP, CROP, CLOSER]
    first, other = predictor_of(model), predictor_of(model)
    fixed_views(other, photo, [WHOLE, CLOSER, WHOLE])
    for one, again in zip(fixed_views(first, photo, views), fixed_views(other, photo, views), strict=True):
        assert torch.equal(one.state.whole, again.state.whole)
        assert (one.mask.box, one.score, one.state.view) == (again.mask.box, again.score, again.state.view)
        np.testing.assert_array_equal(one.mask.pixels, again.mask.pixels)


def test_views_of_all_kinds_share_a_batch(model: SkipClick, photo: NDArray[np.uint8]) -> None:
    predictor = predictor_of(model)
    encode = crop_encoder(predictor, photo)
    first, cropped = (without_mask(one.state) for one in fixed_views(predictor, photo, [WHOLE, CROP]))
    requests = [
        ZoomRequest(encode(WHOLE), WHOLE, (240, 360), CLICKS[:1]),
        ZoomRequest(encode(CROP), CROP, (240, 360), CLICKS[:2], first),
        ZoomRequest(encode(CLOSER), CLOSER, (240, 360), CLICKS[:3], cropped),
        ZoomRequest(encode(WHOLE), WHOLE, (240, 360), CLICKS[:3], cropped),
    ]
    for request, together in zip(requests, predict_zoomed(predictor, requests), strict=True):
        (alone,) = predict_zoomed(predictor, [request])
        torch.testing.assert_close(together.state.whole, alone.state.whole, atol=1e-4, rtol=0)
        assert together.state.view == alone.state.view == request.view


def test_clicks_outside_the_view_are_left_out(model: SkipClick, photo: NDArray[np.uint8]) -> None:
    predictor = predictor_of(model)
    features = crop_encoder(predictor, photo)(CROP)
    far = [Click(10, 10, positive=False), Click(350, 230)]
    with_far, without = (
        predict_zoomed(predictor, [ZoomRequest(features, CROP, (240, 360), clicks)])[0]
        for clicks in ([*far, *CLICKS], CLICKS)
    )
    assert torch.equal(with_far.state.whole, without.state.whole)


@pytest.mark.parametrize("view", [WHOLE, CROP])
def test_an_answer_keeps_to_its_area_on_every_view(view: Box) -> None:
    rows, columns = np.ogrid[:240, :360]
    photo = np.where(((rows - 120) ** 2 + (columns - 210) ** 2 <= 45**2)[..., None], 220, (60, 70, 80)).astype(np.uint8)
    predictor, area = Predictor(load_checkpoint("bundled"), (96, 160)), np.zeros(photo.shape[:2], np.bool_)
    area[90:131, 140:211] = True
    free = ZoomRequest(crop_encoder(predictor, photo)(view), view, (240, 360), [Click(200, 115)])
    kept, plain = predict_zoomed(predictor, [replace(free, within=area), free])
    assert (plain.mask.full() & ~area).sum() > 1000
    assert kept.mask.area > 1000
    assert not (kept.mask.full() & ~area).any()
    assert not kept.state.whole[predictor.start_state(area) == 0].gt(0.5).any()


def test_what_is_known_of_a_drawn_box_is_no_mask(photo: NDArray[np.uint8]) -> None:
    predictor, area = Predictor(SkipClick(SMALL_CONV).eval()), np.zeros(photo.shape[:2], np.bool_)
    area[70:131, 140:250] = True
    state = start_in_box(predictor, area)
    assert state.mask.empty
    torch.testing.assert_close(state.whole, 0.7 * predictor.start_state(area))
    assert next_view(state, CLICKS[:1], (240, 360)) == WHOLE


def test_the_size_of_a_state_is_bounded(photo: NDArray[np.uint8]) -> None:
    predictor = Predictor(SkipClick(SMALL_CONV).eval(), dtype="bfloat16")
    shrinking = [WHOLE, CROP, CLOSER, (90, 170, 150, 260)]
    for answer in fixed_views(predictor, photo, shrinking):
        maps = [one for one in (answer.state.whole, answer.state.crop) if one is not None]
        assert {one.dtype for one in maps} == {torch.bfloat16}
        held = sum(one.untyped_storage().nbytes() for one in maps) + answer.mask.nbytes
        assert answer.nbytes == answer.state.nbytes == held
        assert len(maps) <= 2


def test_what_does_not_belong_together_is_refused(photo: NDArray[np.uint8]) -> None:
    predictor = Predictor(SkipClick(SMALL_CONV).eval())
    features = crop_encoder(predictor, photo)(CROP)
    good = ZoomRequest(features, CROP, (240, 360), CLICKS[:1])
    for wrong, message in [
        (replace(good, view=(60, 120, 180, 301)), "encode that part"),
        (replace(good, view=(60, 300, 180, 480)), "not a part of a photo"),
        (replace(good, clicks=[Click(1, 1)]), "no clicks"),
    ]:
        with pytest.raises(ValueError, match=message):
            predict_zoomed(predictor, [wrong])
    with pytest.raises(ValueError, match="no requests"):
        predict_zoomed(predictor, [])


@dataclass(frozen=True)
class Saying:
    """A predictor whose network says the same of every view."""

    probability: Tensor
    antialias: bool
    dtype: torch.dtype = torch.float32

    @property
    def model(self) -> Any:
        return self

    config = model

    def probabilities(self, requests: Sequence[ClickRequest]) -> Tensor:
        return torch.stack([self.probability] * len(requests))


def seen_as(size: tuple[int, int]) -> ImageFeatures:
    return ImageFeatures((), PreparedFeatures(torch.zeros(0), ()), size)


def disc(size: tuple[int, int], centre: tuple[float, float], radius: float) -> Tensor:
    """A soft disc, seen at the network's resolution."""
    y, x = np.mgrid[: RESOLUTION[0], : RESOLUTION[1]]
    row, column = (y + 0.5) * size[0] / RESOLUTION[0] - 0.5, (x + 0.5) * size[1] / RESOLUTION[1] - 0.5
    distance = np.hypot(row - centre[0], column - centre[1])
    return torch.from_numpy(1 / (1 + np.exp((distance - radius) / 8))).float()


SIZE = (320, 480)
VIEW = (80, 120, 240, 360)  # a half of the photo's sides


@pytest.mark.parametrize("antialias", [True, False])
class TestSeams:
    """What an answer on a crop leaves at the crop's border."""

    def answer(self, antialias: bool, known: Tensor, said: Tensor) -> ZoomPrediction:
        before = ZoomState(known, None, whole_view(SIZE), *enlarge(known, SIZE, antialias=antialias).fetch())
        request = ZoomRequest(seen_as((160, 240)), VIEW, SIZE, [Click(240, 160)] * 2, before)
        (answer,) = predict_zoomed(Saying(said, antialias), [request])  # type: ignore[arg-type]
        return answer

    def test_an_object_that_fills_the_crop_is_not_cut_at_its_border(self, antialias: bool) -> None:
        """The mask ends where the answer fades, before the border: nothing outside the crop is the object's."""
        answer = self.answer(antialias, disc(SIZE, (160, 240), 50), torch.ones(RESOLUTION))
        top, left, bottom, right = answer.mask.box
        assert VIEW[0] < top < bottom < VIEW[2]
        assert VIEW[1] < left < right < VIEW[3]
        assert bottom - top > 0.9 * (VIEW[2] - VIEW[0])
        assert not contains(core(VIEW, SIZE), answer.mask.box)  # so the next click gets a larger view

    def test_the_probability_has_no_step_at_the_crops_border(self, antialias: bool) -> None:
        known = disc(SIZE, (160, 240), 50)
        whole = self.answer(antialias, known, torch.ones(RESOLUTION)).state.whole
        fade = 1 / (FEATHER * RESOLUTION[0] / 2)  # of one network pixel of the whole photo: two of the crop
        for axis in (0, 1):
            steps = (whole.diff(dim=axis) - known.diff(dim=axis)).abs()
            assert float(steps.max()) <= 1.05 * fade
        outside = torch.ones(RESOLUTION, dtype=torch.bool)
        outside[16:48, 24:72] = False
        assert torch.equal(whole[outside], known[outside])

    def test_at_the_photos_border_nothing_fades(self, antialias: bool) -> None:
        known = torch.zeros(RESOLUTION)
        request = ZoomRequest(
            seen_as((160, 240)),
            (0, 0, 160, 240),
            SIZE,
            [Click(9, 9)] * 2,
            ZoomState(known, None, whole_view(SIZE), filled(NOTHING, SIZE), 0.0),
        )
        (answer,) = predict_zoomed(Saying(torch.ones(RESOLUTION), antialias), [request])  # type: ignore[arg-type]
        assert answer.mask.box[:2] == (0, 0)
        assert float(answer.state.whole[0, 0]) == 1

    def test_an_answer_that_changes_nothing_moves_no_edge(self, antialias: bool) -> None:
        """The crop says what is known: the mask stays where it was, to the pixel that interpolation may shift it."""
        known = disc(SIZE, (160, 240), 50)
        said = _resample(known, whole_view(SIZE), VIEW, antialias)
        answer = self.answer(antialias, known, said)
        before = enlarge(known, SIZE, antialias=antialias).fetch()[0].full()
        edge = cv2.morphologyEx(before.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        assert not ((answer.mask.full() != before) & ~edge).any()
        torch.testing.assert_close(answer.state.whole, known, atol=0.02, rtol=0)


LOCAL = (120, 180, 220, 300)  # below and right of the middle of `VIEW`


@pytest.mark.parametrize("antialias", [True, False])
class TestLocal:
    """What an answer on a crop around a click changes, and what it leaves alone."""

    def before(self, antialias: bool, crop: bool) -> ZoomState:
        whole = disc(SIZE, (160, 240), 50)
        seen = _resample(whole, whole_view(SIZE), VIEW, antialias) if crop else None
        mask, score = enlarge(whole, SIZE, antialias=antialias).fetch()
        return ZoomState(whole, seen, VIEW if crop else whole_view(SIZE), mask, score, 1.0)

    def answer(self, antialias: bool, before: ZoomState, said: Tensor) -> ZoomPrediction:
        request = ZoomRequest(seen_as((100, 120)), LOCAL, SIZE, [Click(240, 170)] * 3, before)
        (answer,) = predict_zoomed(Saying(said, antialias), [request])  # type: ignore[arg-type]
        return answer

    @pytest.mark.parametrize("crop", [True, False])
    def test_outside_the_crop_the_mask_stays(self, antialias: bool, crop: bool) -> None:
        before = self.before(antialias, crop)
        changed = {}
        for name, said in {"all": torch.ones(RESOLUTION), "none": torch.zeros(RESOLUTION)}.items():
            answer = self.answer(antialias, before, said)
            after, old = answer.mask.full(), before.mask.full()
            inside = np.zeros(SIZE, np.bool_)
            inside[LOCAL[0] : LOCAL[2], LOCAL[1] : LOCAL[3]] = True
            np.testing.assert_array_equal(after[~inside], old[~inside])
            centre = after[LOCAL[0] + 10 : LOCAL[2] - 10, LOCAL[1] + 10 : LOCAL[3] - 10]
            assert centre.all() == (name == "all")
            assert centre.any() == (name == "all")
            assert answer.state.view == before.view
            assert answer.mask.box == BoxMask.of(after).box
            assert answer.state.agreement == pytest.approx(mask_iou(after, old.astype(np.int8)))
            changed[name] = answer.state
        for one, known in ((changed["all"].whole, before.whole), (changed["all"].crop, before.crop)):
            if one is not None and known is not None:
                assert (one >= known - 1e-6).all()
                assert (one != known).any()

    def test_an_answer_that_changes_nothing_moves_no_edge(self, antialias: bool) -> None:
        before = self.before(antialias, crop=True)
        assert before.crop is not None
        answer = self.answer(antialias, before, _resample(before.crop, VIEW, LOCAL, antialias))
        old = before.mask.full()
        edge = cv2.morphologyEx(old.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        assert not ((answer.mask.full() != old) & ~edge).any()
        assert answer.state.agreement > 0.98
        assert answer.score == pytest.approx(before.score, abs=0.01)
        torch.testing.assert_close(answer.state.whole, before.whole, atol=0.02, rtol=0)

    def test_there_is_no_step_at_the_crops_border(self, antialias: bool) -> None:
        """The crop says the opposite of what is known: along its border both meet, within some pixels."""
        before = self.before(antialias, crop=True)
        assert before.crop is not None
        said = 1 - _resample(before.crop, VIEW, LOCAL, antialias)
        after, old = self.answer(antialias, before, said).mask.full(), before.mask.full()
        top, left, bottom, right = LOCAL
        border = np.zeros(SIZE, np.bool_)
        border[top:bottom, left:right] = True
        border[top + 1 : bottom - 1, left + 1 : right - 1] = False
        edge = cv2.dilate(cv2.morphologyEx(old.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)), None)
        assert not ((after != old) & border & (edge == 0)).any()


@pytest.mark.parametrize("antialias", [True, False])
class TestResampling:
    """Between the network pixels of two views."""

    def plane(self, view: Box, antialias: bool) -> Tensor:
        """A plane over the photo, seen on a view."""
        height, width = RESOLUTION
        if antialias:
            y = view[0] + (np.arange(height) + 0.5) * (view[2] - view[0]) / height - 0.5
            x = view[1] + (np.arange(width) + 0.5) * (view[3] - view[1]) / width - 0.5
        else:
            y = np.linspace(view[0], view[2] - 1, height)
            x = np.linspace(view[1], view[3] - 1, width)
        return torch.from_numpy(y[:, None] / 500 + x[None, :] / 1000).float()

    @pytest.mark.parametrize(
        ("source", "target"),
        [(whole_view(SIZE), VIEW), (VIEW, (100, 140, 200, 290)), (VIEW, whole_view(SIZE)), ((3, 5, 180, 270), VIEW)],
    )
    def test_a_plane_stays_where_it_is(self, source: Box, target: Box, antialias: bool) -> None:
        found = _resample(self.plane(source, antialias), source, target, antialias)
        expected = self.plane(target, antialias)
        # Away from the source's border, beyond which it goes on as it ends.
        spacing = [(source[2 + axis] - source[axis]) / RESOLUTION[axis] for axis in (0, 1)]
        reach = [2 * max(spacing[axis], (target[2 + axis] - target[axis]) / RESOLUTION[axis]) for axis in (0, 1)]
        rows, columns = (np.linspace(target[axis], target[2 + axis], RESOLUTION[axis]) for axis in (0, 1))
        inner = np.ix_(
            (rows > source[0] + reach[0]) & (rows < source[2] - reach[0]),
            (columns > source[1] + reach[1]) & (columns < source[3] - reach[1]),
        )
        assert found[inner].numel() > 100
        torch.testing.assert_close(found[inner], expected[inner], atol=1e-5, rtol=0)

    def test_shrinking_averages(self, antialias: bool) -> None:
        """Of noise over a quarter of the photo's sides little is left in the photo's pixels but its mean."""
        noise = torch.from_numpy(np.random.default_rng(0).random(RESOLUTION)).float()
        averaged = _resample(noise, (80, 120, 160, 240), whole_view(SIZE), antialias)[18:30, 27:45]
        assert abs(float(averaged.mean()) - 0.5) < 0.02
        assert float(averaged.std()) < 0.1


def small_object() -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """A photo of 1200 x 900 pixels with a thing of 90 x 60 in it, whose outline a network of 320 pixels cannot draw."""
    rng = np.random.default_rng(3)
    image = cv2.GaussianBlur(rng.integers(60, 200, (900, 1200, 3)).astype(np.uint8), (0, 0), 6)
    target = np.zeros((900, 1200), np.uint8)
    cv2.ellipse(target, (800, 300), (45, 10), 25, 0, 360, (1,), cv2.FILLED)
    cv2.ellipse(target, (800, 300), (10, 30), 25, 0, 360, (1,), cv2.FILLED)
    image[target > 0] = (250, 230, 20)
    return cv2.GaussianBlur(image, (0, 0), 1), target.astype(np.int8)


def test_the_bundled_model_draws_a_small_object_better() -> None:
    predictor = Predictor(load_checkpoint("bundled"))
    image, target = small_object()
    features, encode = predictor.encode(image), crop_encoder(predictor, image)
    ious: dict[str, float] = {}
    for name, rule in {"zoom": RULE, "whole": ZoomRule(largest=0.0)}.items():
        clicks: list[Click] = []
        mask, before = np.zeros(target.shape, np.bool_), None
        for _ in range(3):
            clicks.append(next_click(mask, target, [(int(c.y), int(c.x)) for c in clicks]))
            (answer,) = predict_zoomed(predictor, [zoom_request(features, clicks, before, encode, rule)])
            mask, before = answer.mask.full(), answer.state
        ious[name] = mask_iou(mask, target)
    assert ious["zoom"] > ious["whole"] + 0.05
    print(ious)
