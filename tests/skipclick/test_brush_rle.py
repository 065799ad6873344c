"""Protects the masks on their way to Label Studio and back: our RLE against the SDK's and the browser's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from label_studio_sdk.converter import brush
from numpy.typing import NDArray

from skipclick.brush_rle import decode, encode
from skipclick.masks import BoxMask

SUBMITTED = json.loads((Path(__file__).parents[1] / "fixtures" / "submitted_masks.json").read_text())["masks"]

masks = array_shapes(min_dims=2, max_dims=2, max_side=40).flatmap(lambda shape: arrays(np.bool_, shape))


def sdk_decode(rle: list[int], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return brush.decode_rle(rle).reshape(*shape, 4)[:, :, 3]


def assert_agrees_with_the_sdk(mask: NDArray[np.bool_]) -> None:
    alpha = np.where(mask, 255, 0).astype(np.uint8)
    ours, theirs = encode(mask), brush.mask2rle(alpha)
    np.testing.assert_array_equal(sdk_decode(ours, mask.shape), alpha)
    np.testing.assert_array_equal(decode(theirs, *mask.shape), alpha)
    np.testing.assert_array_equal(decode(ours, *mask.shape), alpha)


@given(mask=masks)
def test_random_masks_agree_with_the_sdk_both_ways(mask: NDArray[np.bool_]) -> None:
    assert_agrees_with_the_sdk(mask)
    theirs = brush.mask2rle(mask.astype(np.uint8) * 255)
    assert encode(mask) in (theirs, theirs[:-1])  # the SDK adds a zero byte to a stream that is already whole


@settings(max_examples=50)
@given(lengths=st.lists(st.integers(1, 700), min_size=1, max_size=30), first=st.booleans())
def test_runs_of_all_lengths_agree_with_the_sdk(lengths: list[int], first: bool) -> None:
    contents = np.arange(len(lengths)) % 2 == int(first)
    assert_agrees_with_the_sdk(np.repeat(contents, lengths)[None])


@pytest.mark.parametrize("shape", [(1, 1), (1, 37), (53, 1), (30, 40), (128, 128), (1, 16384), (1, 16385), (300, 400)])
@pytest.mark.parametrize("value", [False, True])
def test_empty_and_full_masks_agree_with_the_sdk(shape: tuple[int, int], value: bool) -> None:
    """Among them runs of exactly 65,536 values, one pixel more, and several times that."""
    assert_agrees_with_the_sdk(np.full(shape, value))


def test_a_long_run_between_short_ones_agrees_with_the_sdk() -> None:
    mask = np.ones((200, 300), bool)
    mask[0, :5], mask[-1, -3:] = False, False
    assert_agrees_with_the_sdk(mask)


@given(rgba=array_shapes(min_dims=2, max_dims=2, max_side=12).flatmap(lambda s: arrays(np.uint8, (*s, 4))))
def test_literals_and_soft_alpha_are_read_like_the_sdk_reads_them(rgba: NDArray[np.uint8]) -> None:
    rle = brush.encode_rle(rgba.reshape(-1))  # single values become literals
    np.testing.assert_array_equal(decode(rle, *rgba.shape[:2]), rgba[:, :, 3])


@given(values=st.lists(st.integers(0, 255), min_size=1, max_size=64), size_of_length=st.sampled_from([1, 2, 3]))
def test_long_literals_are_read(values: list[int], size_of_length: int) -> None:
    """One literal of all values, its length written with 4, 8 or 16 bits, preceded by a run of one pixel."""
    size_bits = (3, 4, 8, 16)[size_of_length]
    values = values[: 1 << size_bits]
    rgba = [9] * 4 + [value for value in values for _ in range(4)]
    chunks = [rgba[4:][i : i + (1 << size_bits)] for i in range(0, len(rgba) - 4, 1 << size_bits)]
    bits = f"{len(rgba):032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}" + f"100{3:03b}{9:08b}"
    for chunk in chunks:
        bits += f"0{size_of_length:02b}{len(chunk) - 1:0{size_bits}b}" + "".join(f"{v:08b}" for v in chunk)
    bits += "0" * (-len(bits) % 8)
    rle = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    assert decode(rle, 1, len(values) + 1).tolist() == [[9, *values]]


@given(mask=masks)
def test_a_box_is_encoded_as_the_whole_mask(mask: NDArray[np.bool_]) -> None:
    assert encode(BoxMask.of(mask)) == encode(mask)


@given(noise=arrays(np.bool_, st.tuples(st.integers(1, 6), st.integers(60, 70))), left=st.integers(0, 9))
def test_a_box_anywhere_is_encoded_as_the_whole_mask(noise: NDArray[np.bool_], left: int) -> None:
    """Rows of about 64 pixels, the encoder's word; boxes that touch an edge, both or none."""
    mask = np.zeros((9, 80), bool)
    mask[2 : 2 + len(noise), left : left + noise.shape[1]] = noise
    for whole in (mask, np.ascontiguousarray(mask[:, left : left + noise.shape[1]])):
        assert_agrees_with_the_sdk(whole)
        assert encode(BoxMask.of(whole)) == encode(whole)


def test_noise_of_a_real_size_comes_back() -> None:
    """Half a million records."""
    noise = np.random.default_rng(0).random((720, 1280)) > 0.5
    np.testing.assert_array_equal(decode(encode(noise), 720, 1280) > 0, noise)


@pytest.mark.parametrize("submitted", SUBMITTED, ids=lambda item: item["scenario"])
def test_the_browser_writes_the_same_integers(submitted: dict[str, Any]) -> None:
    alpha = decode(submitted["rle"], submitted["height"], submitted["width"])
    assert set(np.unique(alpha)) == {0, 255}
    assert encode(alpha) == submitted["rle"]


def test_the_known_header() -> None:
    assert encode(np.zeros((120, 160), bool))[:6] == [0, 1, 44, 0, 57, 27]


def test_any_value_but_zero_is_object_in_any_memory_layout() -> None:
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4, 3:] = [[1, 2, 128, 254, 255]] * 2
    expected = encode(mask > 0)
    assert encode(mask) == expected
    assert encode(np.asfortranarray(mask)) == expected
    assert encode(np.repeat(mask, 2, axis=1)[:, ::2]) == expected


@pytest.mark.parametrize(
    "mask",
    [np.zeros((3, 4, 1), bool), np.zeros((3, 4), np.float32), np.zeros((0, 4), bool)],
    ids=lambda m: str(m.shape),
)
def test_only_masks_are_encoded(mask: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="a mask must be"):
        encode(mask)


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ([], "truncated"),
        ([0, 0, 0, 48, 57, 27], "truncated"),
        ([0, 0, 0, 48, 0, 27, 255, 103, 0], "word size of 1 bits"),
        ([0, 256], "integers from 0 to 255"),
        ([0, -1], "integers from 0 to 255"),
        ([0.5] * 10, "integers from 0 to 255"),
        ("0,1,44,0", "integers from 0 to 255"),
        (encode(np.ones((4, 3), bool))[:-1], "truncated"),
        (encode(np.ones((4, 4), bool)), "image of another size"),
        ([0, 0, 0, 48, *encode(np.ones((9, 9), bool))[4:]], "more than the 48 values"),
    ],
)
def test_malformed_streams_say_what_is_wrong(rle: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(rle, 4, 3)


@given(rle=st.lists(st.integers(0, 255), max_size=30))
def test_noise_after_a_valid_header_is_decoded_or_refused_as_value_error(rle: list[int]) -> None:
    header = encode(np.zeros((5, 7), bool))[:6]
    try:
        alpha = decode(header + rle, 5, 7)
    except ValueError:
        return
    assert alpha.shape == (5, 7)
