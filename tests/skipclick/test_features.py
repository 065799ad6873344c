"""Protects features on their way to other memory and to files: the same values in the same order, and no more bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from skipclick.config import TINY
from skipclick.features import ImageFeatures, features_name, read_features, write_features
from skipclick.model import PreparedFeatures, SkipClick
from skipclick.predictor import ClickRequest, Predictor
from skipclick.prompts import Click

IMAGE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(SkipClick(TINY), resolution=(64, 64), dtype="bfloat16")


def test_bytes_of_shared_storages_count_once() -> None:
    block = torch.zeros(1, 8, 4, 4)
    tokens = block.flatten(2).transpose(1, 2)  # a view
    skip = torch.zeros(10, dtype=torch.bfloat16)
    features = ImageFeatures((block, block[:, :4]), PreparedFeatures(tokens, (skip,)), (30, 40))
    assert features.nbytes == 8 * 16 * 4 + 20


def test_a_file_gives_back_the_same_bits_in_the_same_order_of_memory(predictor: Predictor, tmp_path: Path) -> None:
    features = predictor.encode(IMAGE)
    write_features(tmp_path / "a.safetensors", features)
    found = read_features(tmp_path / "a.safetensors")
    assert found.image_size == (50, 70)
    for one, other in zip(features._tensors(), found._tensors(), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
        for memory_format in (torch.contiguous_format, torch.channels_last):
            if one.ndim == 4:
                same = one.is_contiguous(memory_format=memory_format) == other.is_contiguous(
                    memory_format=memory_format
                )
                assert same
    assert found.nbytes == sum(tensor.nbytes for tensor in found._tensors())
    request = ClickRequest(features, [Click(20, 30)])
    (expected,), (again,) = predictor.predict([request]), predictor.predict([replace(request, features=found)])
    assert torch.equal(expected.state, again.state)
    assert expected.score == again.score


def test_any_damage_to_a_file_is_noticed(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_features(path, predictor.encode(IMAGE))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (b"", whole[:100], whole[:-1], bytes(flipped), b"{}" * 1000):
        path.write_bytes(damaged)
        with pytest.raises(Exception, match=r"\w"):
            read_features(path)


def test_the_name_tells_weights_resolution_and_type_apart(predictor: Predictor) -> None:
    model = predictor.model

    def name(**changes: object) -> str:
        facts = {"model": model, "resolution": (64, 64), "dtype": torch.float32, "device": "cpu"} | changes
        return features_name(**facts)  # type: ignore[arg-type]

    torch.manual_seed(1)
    other_weights = SkipClick(TINY)
    changed = [{"model": other_weights}, {"resolution": (64, 96)}, {"dtype": torch.bfloat16}, {"device": "cuda"}]
    assert len({name(), *(name(**change) for change in changed)}) == 5
    assert name() == name()


@pytest.mark.requires_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_to_a_gpu_and_back(predictor: Predictor) -> None:
    features = predictor.encode(IMAGE)
    back = features.to("cuda").to("cpu")
    for one, other in zip(features._tensors(), back._tensors(), strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()
