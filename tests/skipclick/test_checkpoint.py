"""Protects loading: our files are strict, the authors' files are read without executing anything from them."""

from __future__ import annotations

import io
import json
import math
import pickle
import tracemalloc
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from skipclick import load_checkpoint
from skipclick.__main__ import main
from skipclick.checkpoint import build_model, read_metadata, save_checkpoint
from skipclick.config import ModelConfig
from skipclick.model import SkipClick
from skipclick.released import convert_released, read_released
from tests.support.parity_files import for_each_golden, golden_paths
from tests.support.rule_weights import released_parameters, rule_state, rule_tensor
from tests.support.small_models import SMALL

LAYOUTS = golden_paths("layout_*.json")


def layout(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())  # type: ignore[no-any-return]


@pytest.fixture
def model() -> SkipClick:
    torch.manual_seed(0)
    return SkipClick(SMALL).eval()


def test_our_checkpoint_round_trips(model: SkipClick, tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.safetensors"
    save_checkpoint(model, path, version="v7", provenance={"seed": 3})
    loaded = load_checkpoint(path)
    assert loaded.version == "v7"
    assert loaded.config == model.config
    assert not loaded.training
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    assert read_metadata(path)["provenance"] == {"seed": 3}
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_half_precision_halves_the_file_and_loads_as_float32(model: SkipClick, tmp_path: Path) -> None:
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    save_checkpoint(model, full, version="v")
    save_checkpoint(model, half, version="v", half=True)
    assert half.stat().st_size < 0.6 * full.stat().st_size
    assert {p.dtype for p in load_checkpoint(half).parameters()} == {torch.float32}


def test_a_mismatch_lists_the_keys(model: SkipClick, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(model, path, version="v")
    metadata = {"format": "skipclick-1", "version": "v", "config": json.dumps(SMALL.to_dict()), "provenance": "{}"}
    state = load_file(path)
    state["surplus"] = torch.zeros(1)
    state["fuse.bias"] = torch.zeros(7)
    del state["mixer.pos_embed"]
    save_file(state, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"missing \['mixer.pos_embed'\], unknown \['surplus'\].*fuse.bias \(7,\)"):
        load_checkpoint(path)


def test_the_bundled_checkpoint_loads() -> None:
    assert load_checkpoint("bundled").version == "skipclick-lite"


@for_each_golden("*_checkpoint.pth")
def test_a_released_file_loads_with_the_weights_it_holds(golden: Path) -> None:
    model = load_checkpoint(golden)
    weight = rule_tensor("patch_embed_coords.proj.weight", tuple(model.prompts.proj.weight.shape))
    assert torch.equal(model.prompts.proj.weight, weight)
    state, parameters = read_released(golden)
    for key, tensor in state.items():
        assert torch.equal(tensor, rule_tensor(key, tuple(tensor.shape))), key
    assert parameters["extractor_type"].startswith("dinov2_")
    # the loss object in the configuration is there, but as a thing that can do nothing
    assert type(parameters["head_params"]["loss_decode"]).__name__ == "Placeholder"


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=pytest.mark.slow if "vitb" in p.stem else ()) for p in LAYOUTS], ids=lambda p: p.stem
)
def test_every_released_layout_converts_strictly_and_runs(path: Path) -> None:
    described = layout(path)
    model = build_model(*convert_released(rule_state(described), released_parameters(described)), version="x")
    assert model.config.mixer_depth == described["config"]["mixer_depth"]
    assert model.config.skip_connections == described["config"]["skip_connections"]
    side = 4 * model.config.patch_size
    with torch.inference_mode():
        logits = model(
            torch.rand(1, 3, side, side), torch.zeros(1, 1, side, side), torch.zeros(1, 1, 2), -torch.ones(1, 1, 2)
        )
    assert torch.isfinite(logits).all()


@for_each_golden("*_checkpoint.pth")
def test_the_shell_converts_a_released_file(golden: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(golden), str(out)]) == 0
    converted, original = load_checkpoint(out), load_checkpoint(golden)
    assert converted.config == original.config
    for key, tensor in original.state_dict().items():
        assert torch.equal(converted.state_dict()[key], tensor), key


def rewritten(tmp_path: Path, payload: Any, protocol: int = 2) -> Path:
    """A released file whose pickle is replaced."""
    path = tmp_path / "evil.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", payload if isinstance(payload, bytes) else pickle.dumps(payload, protocol))
    return path


class Evil:
    """Unpickling it with a plain unpickler would run a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        import os

        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_nothing_in_a_released_file_is_executed(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "executed"
    content = {"state_dict": {}, "config": {"params": {"head_params": {"value": Evil(target)}}}}
    read_released(rewritten(tmp_path, content, protocol))
    with pytest.raises(ValueError, match="configuration lacks"):
        load_checkpoint(tmp_path / "evil.pth")
    assert not target.exists()


def broken_files(tmp_path: Path) -> dict[str, Path]:
    files = {name: tmp_path / name for name in ("text.pth", "empty.safetensors", "plain.zip", "foreign.safetensors")}
    files["text.pth"].write_text("this is no checkpoint")
    files["empty.safetensors"].write_bytes(b"")
    with zipfile.ZipFile(files["plain.zip"], "w") as archive:
        archive.writestr("readme.txt", "hello")
    save_file({"a": torch.zeros(1)}, files["foreign.safetensors"])
    files["weights_only.pth"] = tmp_path / "weights_only.pth"
    torch.save({"a": torch.zeros(1)}, files["weights_only.pth"])
    files["truncated_pickle.pth"] = rewritten(tmp_path, pickle.dumps({"a": 1}, 2)[:-2])
    files["missing.pth"] = tmp_path / "missing.pth"
    return files


def test_anything_else_gets_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, path in broken_files(tmp_path).items():
        with pytest.raises(ValueError, match=path.name):
            load_checkpoint(path)
        assert main(["convert", str(path), str(tmp_path / "out.safetensors")]) == 2, name
        message = capsys.readouterr().err
        assert message.count("\n") == 1, message
    assert not (tmp_path / "out.safetensors").exists()


@for_each_golden("layout_tiny_skip.json")
def test_unsupported_released_variants_are_named(golden: Path) -> None:
    parameters = {**released_parameters(layout(golden)), "use_conv_stack": True}
    with pytest.raises(ValueError, match="convolutional mixer"):
        convert_released({}, parameters)


def test_storages_of_other_types_are_read(tmp_path: Path) -> None:
    """Buffers such as counters are integers; half precision checkpoints exist too."""
    buffer = io.BytesIO()
    tensors = {"a": torch.arange(4), "b": torch.ones(2, 3).half().t(), "c": torch.tensor([True, False])}
    torch.save({"state_dict": tensors, "config": {"params": {}}}, buffer)
    path = tmp_path / "types.pth"
    path.write_bytes(buffer.getvalue())
    state, _ = read_released(path)
    for key, tensor in tensors.items():
        assert torch.equal(state[key], tensor)


def test_configurations_with_missing_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="kind"):
        ModelConfig.from_dict({})


# --- small files that claim much


def claims_a_tensor(size: tuple[int, ...], stride: tuple[int, ...], times: int = 1, stored: int = 4) -> bytes:
    """A pickle of tensors that lie over a storage of so many values."""

    class Tensor:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (Storage(), 0, size, stride, False, OrderedDict())

    class Storage: ...

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", stored) if isinstance(item, Storage) else None

    buffer = io.BytesIO()
    tensors = {str(n): Tensor() for n in range(times)}
    Pickler(buffer, 2).dump({"state_dict": tensors, "config": {"params": {}}})
    return buffer.getvalue()


def small_file(
    tmp_path: Path, content: bytes, storage: bytes = bytes(16), compression: int = zipfile.ZIP_STORED
) -> Path:
    path = tmp_path / "small.pth"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", content)
        archive.writestr("x/data/0", storage)
    return path


@pytest.mark.parametrize(
    ("content", "storage", "compression"),
    [
        (claims_a_tensor((1 << 15, 1 << 15), (0, 0)), bytes(16), zipfile.ZIP_STORED),  # 4 GB over 16 bytes
        (claims_a_tensor((1 << 14,), (1,), times=300, stored=1 << 14), bytes(1 << 16), zipfile.ZIP_STORED),
        (claims_a_tensor((4,), (1,)), bytes(256 << 20), zipfile.ZIP_DEFLATED),
        (b"\x80\x02Nr\xff\xff\xff\x0f.", bytes(16), zipfile.ZIP_STORED),  # LONG_BINPUT: 268 million places
        (b"\x80\x05\x96\0\0\0\x40\0\0\0\0.", bytes(16), zipfile.ZIP_STORED),  # BYTEARRAY8: a gigabyte
    ],
    ids=["stride-0", "one-storage-many-tensors", "compressed", "places", "bytearray"],
)
def test_small_files_that_claim_gigabytes_are_refused_before_memory_is_taken(
    tmp_path: Path, content: bytes, storage: bytes, compression: int
) -> None:
    path = small_file(tmp_path, content, storage, compression)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"is not a checkpoint that torch\.save wrote") as error:
            read_released(path)
        assert tracemalloc.get_traced_memory()[1] < 16 * path.stat().st_size + (1 << 20)
    finally:
        tracemalloc.stop()
    assert "MemoryError" not in repr(error.value)


def test_a_configuration_that_claims_gigabytes_is_refused_before_memory_is_taken(model: SkipClick) -> None:
    state = model.state_dict()
    for claim in ({"decoder_channels": 1 << 20}, {"mixer_depth": 1 << 30}):
        with pytest.raises(ValueError, match="weights do not fit the configuration"):
            build_model(replace(model.config, **claim), state, "claim")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_finite_numbers_are_refused(model: SkipClick, value: float) -> None:
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state["decoder.classify.weight"].view(-1)[-1] = value
    with pytest.raises(ValueError, match=r"weights are damaged: decoder\.classify\.weight"):
        build_model(model.config, state, "damaged")
