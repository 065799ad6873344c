"""Protects recorded clicks: a replay equals the plain path, whatever ran in the same memory before."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from skipclick import Click, Predictor, cuda_graphs
from skipclick.config import ModelConfig
from skipclick.model import SkipClick
from skipclick.predictor import ClickRequest
from tests.support.small_models import SMALL, SMALL_CONV

CLICKS = [Click(60, 40), Click(10.5, 80.25, positive=False), Click(100, 20)]
needs_cuda = [
    pytest.mark.requires_cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def predictors(config: ModelConfig, dtype: str) -> tuple[Predictor, Predictor]:
    """One that records its clicks, one that does not."""
    torch.manual_seed(0)
    model = SkipClick(config).eval()
    resolution = (4 * config.size_multiple, 3 * config.size_multiple)
    recorded, plain = (Predictor(model, resolution, "cuda", dtype) for _ in range(2))
    recorded.warm_up()
    assert recorded._graphs.keys() == set(cuda_graphs.BATCHES)
    return recorded, plain


class TestOnAGpu:
    pytestmark = needs_cuda

    @pytest.mark.parametrize("config", [SMALL, SMALL_CONV], ids=["vit", "convnet"])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("num_objects", [1, 2, 3, 8, 9])
    def test_a_replay_answers_as_the_plain_path(self, config: ModelConfig, dtype: str, num_objects: int) -> None:
        """Batches that fill a graph, that leave a place free, and that fit none."""
        recorded, plain = predictors(config, dtype)
        rng = np.random.default_rng(0)
        photos = [rng.integers(0, 256, (90, 120, 3), dtype=np.uint8) for _ in range(2)]
        features = [[p.encode(photo) for photo in photos] for p in (recorded, plain)]
        states: list[list[torch.Tensor | None]] = [[None] * num_objects, [None] * num_objects]
        for count in range(1, 4):
            answers = [
                p.predict([ClickRequest(f[i % 2], CLICKS[:count], s[i]) for i in range(num_objects)])
                for p, f, s in zip((recorded, plain), features, states, strict=True)
            ]
            for mine, theirs in zip(*answers, strict=True):
                atol = 1e-4 if dtype == "float32" else 0.05
                torch.testing.assert_close(mine.state.float(), theirs.state.float(), atol=atol, rtol=0)
            states = [[answer.state for answer in batch] for batch in answers]

    def test_an_answer_outlives_the_next_replay(self) -> None:
        recorded, _ = predictors(SMALL, "float32")
        features = recorded.encode(np.zeros((90, 120, 3), np.uint8))
        first = recorded.predict([ClickRequest(features, CLICKS[:1])])[0].state
        kept = first.clone()
        recorded.predict([ClickRequest(features, CLICKS, first)])
        assert torch.equal(first, kept)

    def test_more_clicks_than_places_run_without_a_graph(self) -> None:
        recorded, plain = predictors(SMALL, "float32")
        photo = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        clicks = [Click(2 * i, i) for i in range(cuda_graphs.PLACES + 1)]
        answers = [p.predict([ClickRequest(p.encode(photo), clicks)])[0].state for p in (recorded, plain)]
        torch.testing.assert_close(*answers, atol=1e-4, rtol=0)


def test_where_recording_fails_clicks_go_on_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Refusing:
        def __init__(self, path: object, features: object, previous: object, batch: int) -> None:
            if batch > 2:
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graphs, "ClickGraph", Refusing)
    graphs = cuda_graphs.record(lambda *inputs: inputs[0], None, None)  # type: ignore[arg-type, return-value]
    assert list(graphs) == [1, 2]
    assert "without CUDA graphs beyond batches of 2" in caplog.text


@pytest.mark.parametrize("config", [SMALL, SMALL_CONV], ids=["vit", "convnet"])
@torch.inference_mode()
def test_inputs_reach_their_places(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the recording itself, without a GPU: a stand-in replays by running the path on the fixed inputs."""
    idle = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)
    for name, stand_in in {
        "Stream": lambda device: idle,
        "current_stream": lambda device: idle,
        "stream": lambda stream: nullcontext(),
        "CUDAGraph": lambda: None,
        "graph": lambda graph, **options: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    torch.manual_seed(0)
    resolution = (4 * config.size_multiple, 3 * config.size_multiple)
    predictor = Predictor(SkipClick(config).eval(), resolution)
    rng = np.random.default_rng(0)
    features = [predictor.encode(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)) for _ in range(2)]
    begun = predictor.predict([ClickRequest(features[0], CLICKS[:1])])[0].state
    requests = [
        ClickRequest(features[1], CLICKS[:1]),
        ClickRequest(features[0], CLICKS, begun),
        ClickRequest(features[1], CLICKS[2:]),
    ]
    plain = predictor.predict(requests)
    path, nothing = predictor._click_path, predictor._initial_state()[None, None]
    recorded = cuda_graphs.ClickGraph(path, features[0].prepared, nothing, batch=4)
    replay = lambda: recorded._probability.copy_(recorded._run(path))  # noqa: E731
    monkeypatch.setattr(recorded, "_graph", SimpleNamespace(replay=replay))
    predictor._graphs = {4: recorded}
    for _ in range(2):  # what the first run left must not show in the second
        for mine, theirs in zip(predictor.predict(requests), plain, strict=True):
            torch.testing.assert_close(mine.state, theirs.state, atol=1e-5, rtol=0)
        predictor.predict([ClickRequest(features[0], CLICKS, begun)] * 4)
