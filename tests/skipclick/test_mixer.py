"""Protects the two ways to attend: PyTorch's fused kernel, and blocks of one head where that is faster."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from skipclick import mixer
from skipclick.mixer import attend


def softmax_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key, value = query.double(), key.double(), value.double()
    return (query @ key.mT * query.shape[-1] ** -0.5).softmax(dim=-1) @ value


def inputs(dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    qkv = torch.randn(2, 50, 3, 4, 16).to(dtype)  # (B, N, 3, heads, D), as the linear layer leaves them
    return list(qkv.permute(2, 0, 3, 1, 4).unbind(0))


@pytest.mark.parametrize("scores_in_cache", [1, 50 * 7, 1 << 21])
@torch.inference_mode()
def test_blocks_attend_as_the_formula_says(scores_in_cache: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row at a time, a last block that is shorter, and all rows at once."""
    monkeypatch.setattr(mixer, "SCORES_IN_CACHE", scores_in_cache)
    query, key, value = inputs(torch.bfloat16)
    expected = softmax_attention(query, key, value)
    torch.testing.assert_close(attend(query, key, value).double(), expected, atol=0.02, rtol=0)


@torch.inference_mode()
def test_float32_attends_as_the_formula_says() -> None:
    query, key, value = inputs(torch.float32)
    expected = softmax_attention(query, key, value)
    torch.testing.assert_close(attend(query, key, value).double(), expected, atol=1e-5, rtol=0)


def test_gradients_reach_all_inputs_in_bfloat16() -> None:
    """Blocks are written into one tensor, which is not for training."""
    tensors = [tensor.detach().requires_grad_() for tensor in inputs(torch.bfloat16)]
    attend(*tensors).float().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in tensors)


@torch.inference_mode()
def test_an_objects_attention_does_not_depend_on_the_batch() -> None:
    query, key, value = inputs(torch.bfloat16)
    together = attend(query, key, value)
    for place in range(2):
        alone = attend(query[place : place + 1], key[place : place + 1], value[place : place + 1])
        assert torch.equal(alone[0], together[place])
