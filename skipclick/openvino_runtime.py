"""The network as two graphs for OpenVINO, which runs them several times faster than PyTorch on a CPU.

    encode   image (B, 3, H, W) -> taps, tokens, skips
    decode   tokens, skips, prompt (B, 3, H, W) -> coarse logits (B, 1, 4h, 4w)

Both are made from the PyTorch model, by `python -m skipclick compile` or when they are first needed. They are fixed to
one resolution and take batches of any size. `OpenVinoNetwork` is what a `Predictor` runs in place of the model.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import logging
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skipclick.checkpoint import checkpoint_file
from skipclick.head import backbone_digest, head_digest, head_state
from skipclick.model import PreparedFeatures, SkipClick, enlarge_logits

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
_FORMAT = 1  # of the graphs; raise it when their inputs or outputs change

logger = logging.getLogger(__name__)


class OpenVinoNetwork:
    """A model's graphs, compiled for this CPU: `encode_with_taps`, `prepare` and `decode` of `SkipClick`.

    Tensors are float32 at both ends, whatever the graphs compute in. Thread-safe.
    """

    def __init__(
        self, model: SkipClick, resolution: tuple[int, int], dtype: str = "float32", folders: Sequence[Path] = ()
    ) -> None:
        """
        Args:
            model: float32, on the CPU, in evaluation mode; kept for `prepare` and for other heads.
            resolution: (H, W) of the network.
            dtype: "float32" or "bfloat16", of the matrix products.
            folders: searched for the graphs in turn; if none has them, they are made and written to the last one.

        Raises `ValueError` if OpenVINO is not installed or cannot compute in `dtype`.
        """
        if dtype not in PRECISIONS:
            raise ValueError(f"OpenVINO computes in {' or '.join(PRECISIONS)}, not in {dtype}")
        self._model = model
        self._resolution = resolution
        self._dtype = dtype
        self._converting = threading.Lock()  # PyTorch traces one model at a time
        self._own_head = False
        self._num_taps = model.config.num_taps
        encode, decode = find_graphs(model, resolution, folders)
        self._encode = _Compiled(encode, dtype)
        self._decode: Future[_Compiled] = Future()
        self._decode.set_result(_Compiled(decode, dtype))

    def with_head(self, model: SkipClick) -> OpenVinoNetwork:
        """The network of `model`, another head on the same backbone; PyTorch decodes until its graph is compiled."""
        other = copy.copy(self)
        other._model = model
        other._own_head = True
        other._decode = Future()
        threading.Thread(target=other._compile_decode, name="openvino-compile", daemon=True).start()
        return other

    def encode_with_taps(self, image: Tensor) -> tuple[tuple[Tensor, ...], PreparedFeatures]:
        """As in `SkipClick`."""
        outputs = self._encode([image])
        taps = outputs[: self._num_taps]
        if self._own_head:  # the graph prepares features for the head that it was made with
            return taps, self.prepare(taps)
        tokens, *skips = outputs[self._num_taps :]
        return taps, PreparedFeatures(tokens, tuple(skips))

    def prepare(self, taps: Sequence[Tensor], *, compact: bool = False) -> PreparedFeatures:
        """As in `SkipClick`, computed by PyTorch: it is linear in the taps and a small part of an encode."""
        return self._model.prepare(taps, compact=compact)

    def decode(self, features: PreparedFeatures, prompt: Tensor) -> Tensor:
        """As in `SkipClick`."""
        if not self._decode.done() or self._decode.exception() is not None:
            return self._model.decode(features, prompt)
        (coarse,) = self._decode.result()([features.tokens, *features.skips, prompt])
        return enlarge_logits(coarse, self._resolution)

    def wait(self) -> None:
        """Wait until the head's graph is compiled. Raises what the compilation raised."""
        self._decode.result()

    def _compile_decode(self) -> None:
        try:
            with self._converting:
                self._decode.set_result(_Compiled(_convert(self._model, self._resolution)[1], self._dtype))
        except Exception as error:  # whatever the converter raises: PyTorch gives the same masks
            logger.exception("clicks of %s are decoded by PyTorch: its graph could not be made", self._model.version)
            self._decode.set_exception(error)


class _Compiled:
    """A graph that is ready to run."""

    def __init__(self, graph: Any, dtype: str) -> None:
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # several servers on one machine would be pinned to the same cores
        }
        self._graph = _core().compile_model(graph, "CPU", options)
        self._local = threading.local()

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs, contiguous and in memory of their own."""
        if not hasattr(self._local, "request"):
            self._local.request = self._graph.create_infer_request()
        arrays: list[NDArray[np.float32]] = [tensor.contiguous().numpy() for tensor in inputs]
        outputs = self._local.request.infer(arrays, share_inputs=True)
        return tuple(torch.from_numpy(array) for array in outputs.values())


def graphs_folder(checkpoint: str | Path) -> Path:
    """Where `skipclick compile` leaves a checkpoint's graphs: beside its file."""
    file = checkpoint_file(checkpoint)
    return file.with_name(f"{file.name}.openvino")


def find_graphs(model: SkipClick, resolution: tuple[int, int], folders: Sequence[Path] = ()) -> tuple[Any, Any]:
    """`encode` and `decode` of a model as OpenVINO's models, or as the files that hold them.

    Graphs are found by a hash of the model, so those of other weights are never used. If no folder has them, they are
    made and written to the last one; if that is not writable, a warning is logged.
    """
    name = _graphs_name(model, resolution)
    for folder in folders:
        files = folder / name / "encode.xml", folder / name / "decode.xml"
        if all(file.is_file() for file in files):
            return files
    graphs = _convert(model, resolution)
    if folders:
        try:
            _write(graphs, folders[-1] / name)
        except OSError as error:
            logger.warning("graphs for OpenVINO cannot be kept in %s: %s", folders[-1], error.strerror)
    return graphs


def compile_model(model: SkipClick, resolution: tuple[int, int], folder: Path) -> Path:
    """Make a model's graphs in `folder`, where `find_graphs` finds them. Returns the folder of their files.

    Raises `ValueError` if OpenVINO is not installed, and `OSError`.
    """
    target = folder / _graphs_name(model, resolution)
    if not (target / "decode.xml").is_file():
        _write(_convert(model, resolution), target)
    return target


def _graphs_name(model: SkipClick, resolution: tuple[int, int]) -> str:
    facts = (_FORMAT, _openvino().__version__, model.config, resolution)
    weights = backbone_digest(model), head_digest(head_state(model))
    return hashlib.sha256(repr((*facts, *weights)).encode()).hexdigest()[:16]


def _write(graphs: Sequence[Any], target: Path) -> None:
    """Both graphs as files of a new folder, which appears when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    try:
        for graph, name in zip(graphs, ("encode", "decode"), strict=True):
            _openvino().save_model(graph, temporary / f"{name}.xml", compress_to_fp16=False)
        temporary.chmod(0o755)  # mkdtemp's 0700 would hide the files from other accounts
        with suppress(FileExistsError):  # another process was faster
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _convert(model: SkipClick, resolution: tuple[int, int]) -> tuple[Any, Any]:
    """`encode` and `decode` as OpenVINO's models, from a trace of each."""
    openvino = _openvino()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        image = torch.zeros(2, 3, *resolution)  # a batch of 1 would be traced as a constant
        prepared = model.encode(image)
        inputs = (prepared.tokens, *prepared.skips, image)
        graphs = (
            openvino.convert_model(_Encode(model).eval(), example_input=image),
            openvino.convert_model(_Decode(model).eval(), example_input=inputs),
        )
    for graph, examples in zip(graphs, ([image], inputs), strict=True):
        graph.reshape({port: [-1, *tensor.shape[1:]] for port, tensor in zip(graph.inputs, examples, strict=True)})
    return graphs


class _Encode(nn.Module):
    """`SkipClick.encode_with_taps` with plain tensors at both ends."""

    def __init__(self, model: SkipClick) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        taps, prepared = self.model.encode_with_taps(image)
        return (*taps, prepared.tokens, *prepared.skips)


class _Decode(nn.Module):
    """`SkipClick.decode_coarse` with plain tensors at both ends."""

    def __init__(self, model: SkipClick) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, *skips_and_prompt: Tensor) -> Tensor:
        *skips, prompt = skips_and_prompt
        return self.model.decode_coarse(PreparedFeatures(tokens, tuple(skips)), prompt)


def _core() -> Any:
    """The only `openvino.Core` of this process, which is never destroyed.

    A core gives the thread that first compiles with it a signal stack, and unmaps it when it is destroyed. If two are
    destroyed in the order of their creation, the thread is left with the first one's: the next signal kills the
    process.
    """
    with _CORE_LOCK:
        return _only_core()


_CORE_LOCK = threading.Lock()


@functools.cache
def _only_core() -> Any:
    return _openvino().Core()


def _openvino() -> Any:
    """The module. Raises `ValueError` if it is not installed."""
    # Its converter reports each use to Intel through this package, unless that is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError:
        raise ValueError("OpenVINO is not installed; `pip install skipclick[openvino]`, or use RUNTIME=torch") from None
    return openvino
