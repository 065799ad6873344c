"""Protects the second runtime: the masks of PyTorch, the same bits each time, graphs that belong to their weights."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from skipclick import Click, Predictor, load_checkpoint
from skipclick.config import ConvNetConfig, ModelConfig
from skipclick.head import head_state
from skipclick.metrics import mask_iou
from skipclick.model import SkipClick
from skipclick.openvino_runtime import OpenVinoNetwork, compile_model, find_graphs
from skipclick.predictor import ClickRequest
from skipclick.zoom import crop_encoder, predict_zoomed, zoom_request
from tests.support.small_models import SMALL, SMALL_CONV

CLICKS = [Click(60, 40), Click(10.5, 80.25, positive=False), Click(100, 20)]
LITE2 = replace(
    SMALL_CONV,
    backbone=ConvNetConfig(name="tf_efficientnet_lite2", depths=None, widths=(24, 48, 120, 352), stem_width=None),
)


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs of all tests of this module, made once for each model."""
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture
def photo() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


def small(config: ModelConfig, seed: int = 0) -> SkipClick:
    torch.manual_seed(seed)
    return SkipClick(config, version=f"small-{seed}").eval()


def by_openvino(model: SkipClick, graphs: Path, dtype: str = "float32", keep_taps: bool = False) -> Predictor:
    side = 4 * model.config.size_multiple
    resolution = (side, 3 * model.config.size_multiple)
    return Predictor(model, resolution, dtype=dtype, runtime="openvino", graphs=(graphs,), keep_taps=keep_taps)


LET_GO = """
import faulthandler, os, signal, sys
import torch
from pathlib import Path
from skipclick.openvino_runtime import OpenVinoNetwork
from tests.skipclick.test_openvino_runtime import small, SMALL_CONV

faulthandler.enable()  # signals are handled on a stack of their own
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
side = 4 * SMALL_CONV.size_multiple
for _ in range(2):
    OpenVinoNetwork(small(SMALL_CONV), (side, side), folders=(Path(sys.argv[1]),))
os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.process
def test_a_signal_is_handled_after_networks_have_gone(graphs: Path) -> None:
    """OpenVINO changes the stack that signals are handled on; a stale one kills the process at the next signal."""
    ended = subprocess.run(
        [sys.executable, "-c", LET_GO, str(graphs)], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr


def answers(predictor: Predictor, photo: NDArray[np.uint8]) -> list[torch.Tensor]:
    features, states = predictor.encode(photo), [None]
    for count in range(1, len(CLICKS) + 1):
        states.append(predictor.predict([ClickRequest(features, CLICKS[:count], states[-1])])[0].state)
    return states[1:]


@pytest.mark.parametrize("config", [SMALL, SMALL_CONV, LITE2], ids=["vit", "convnet", "efficientnet_lite2"])
def test_probabilities_are_those_of_pytorch(config: ModelConfig, photo: NDArray[np.uint8], graphs: Path) -> None:
    model = small(config)
    openvino = by_openvino(model, graphs)
    for mine, theirs in zip(
        answers(openvino, photo), answers(Predictor(model, openvino.resolution), photo), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
    rounded = answers(by_openvino(model, graphs, "bfloat16"), photo)
    for mine, theirs in zip(rounded, answers(openvino, photo), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=0.1)


def test_the_same_request_has_the_same_bits(photo: NDArray[np.uint8], graphs: Path) -> None:
    """Twice in one predictor, in another one, and after other work in between."""
    one, other = (by_openvino(small(SMALL_CONV), graphs) for _ in range(2))
    first = answers(one, photo)
    answers(one, photo[::-1])
    for again in (answers(one, photo), answers(other, photo)):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(first, again, strict=True))


def test_a_batch_of_several_objects_and_photos(photo: NDArray[np.uint8], graphs: Path) -> None:
    predictor = by_openvino(small(SMALL), graphs)
    features = [predictor.encode(photo), predictor.encode(photo[::-1])]
    requests = [ClickRequest(features[place % 2], CLICKS[: place + 1]) for place in range(3)]
    together = predictor.predict(requests)
    for mine, request in zip(together, requests, strict=True):
        np.testing.assert_allclose(mine.state, predictor.predict([request])[0].state, atol=1e-5)


def test_results_live_in_memory_of_their_own(photo: NDArray[np.uint8], graphs: Path) -> None:
    predictor = by_openvino(small(SMALL), graphs, keep_taps=True)
    features = predictor.encode(photo)
    kept = [tensor.clone() for tensor in (*features.taps, features.prepared.tokens, *features.prepared.skips)]
    predictor.encode(photo[::-1])
    predictor.predict([ClickRequest(features, CLICKS)])
    now = (*features.taps, features.prepared.tokens, *features.prepared.skips)
    assert all(torch.equal(mine, before) for mine, before in zip(now, kept, strict=True))


def test_another_head_works_on_the_same_taps(photo: NDArray[np.uint8], graphs: Path) -> None:
    """Before its graph is compiled, by PyTorch, and afterwards."""
    model, tuned = small(SMALL_CONV), small(SMALL_CONV, seed=1)
    base = by_openvino(model, graphs, keep_taps=True)
    own = base.with_head(head_state(tuned), "project-7-1")
    torch_own = Predictor(model, base.resolution, keep_taps=True).with_head(head_state(tuned), "project-7-1")
    features, expected = own.prepare(base.encode(photo)), answers(torch_own, photo)
    assert features.head == own.head != base.head
    early = own.predict([ClickRequest(features, CLICKS[:1])])[0].state
    np.testing.assert_allclose(early, expected[0], atol=1e-4)
    assert isinstance(own._network, OpenVinoNetwork)
    own._network.wait()
    late = own.predict([ClickRequest(features, CLICKS[:1])])[0].state
    np.testing.assert_allclose(late, expected[0], atol=1e-4)
    for mine, theirs in zip(answers(own, photo), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


def test_real_masks_agree_also_in_crops(graphs: Path) -> None:
    """The bundled model on a real photo, with zoom-in: IoU of at least 0.995 after each click."""
    coffee = np.array(Image.open(Path(__file__).parents[1] / "e2e" / "photos" / "coffee.jpg").convert("RGB"))
    model = load_checkpoint("bundled")
    masks = []
    for predictor in (Predictor(model), Predictor(model, runtime="openvino", graphs=(graphs,))):
        features, encode_crop, state = predictor.encode(coffee), crop_encoder(predictor, coffee), None
        clicks, session = [Click(290, 100), Click(300, 235, positive=False), Click(340, 120)], []
        for count in range(1, len(clicks) + 1):
            (answer,) = predict_zoomed(predictor, [zoom_request(features, clicks[:count], state, encode_crop)])
            state = answer.state
            session.append(answer.mask.full())
        masks.append(session)
    assert state is not None
    assert state.crop is not None
    assert min(mask_iou(mine, theirs) for mine, theirs in zip(*masks, strict=True)) >= 0.995


def test_graphs_are_kept_and_found_by_their_weights(tmp_path: Path) -> None:
    model, resolution = small(SMALL), (56, 56)
    folder = compile_model(model, resolution, tmp_path)
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert find_graphs(model, resolution, (tmp_path / "nothing", tmp_path)) == (
        folder / "encode.xml",
        folder / "decode.xml",
    )
    assert compile_model(model, resolution, tmp_path) == folder
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert compile_model(small(SMALL, seed=1), resolution, tmp_path) != folder
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_a_folder_that_cannot_be_written_to_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    encode, decode = find_graphs(small(SMALL), (56, 56), (tmp_path / "file" / "folder",))
    assert (len(encode.inputs), len(decode.outputs)) == (1, 1)
    assert "cannot be kept" in caplog.text


def test_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(SMALL)
    with pytest.raises(ValueError, match="not in float16"):
        Predictor(model, dtype="float16", runtime="openvino")
    with pytest.raises(ValueError, match="OpenVINO runs on the CPU"):
        Predictor(model, device="meta", runtime="openvino")
    with pytest.raises(ValueError, match="runtime 'tflite' is unknown"):
        Predictor(model, runtime="tflite")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match=r"pip install skipclick\[openvino\]"):
        Predictor(model, runtime="openvino")


def test_nobody_is_told_of_a_conversion() -> None:
    """Intel's converter sends statistics unless its package for them is out of sight."""
    find_graphs(small(SMALL), (56, 56))
    from openvino.tools.ovc import telemetry_utils

    assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"
