"""Where a click's time goes, and how it compares: stages of one request, and whole clicks side by side.

    OMP_NUM_THREADS=2 python bench/serving/latency.py                       all models and resolutions, about 30 minutes
    python bench/serving/latency.py --models skipclick-lite --rounds 5             a quick look
    python bench/serving/latency.py --models vit-b --resolutions 448 --no-stages   the comparison at one resolution
    python bench/serving/latency.py --table 2 --rounds 5                           response times as in the paper

Stages are measured on one request as it passes: `warm` on a photo whose features are known, `cold` on one that must be
fetched from a server on loopback, decoded and encoded first. Baselines take turns round by round, so that whatever
else the machine does meets all of them. ViT-B has random weights, since speed does not depend on values. Times are by
the clock, of a click on a GPU by its events, after one round that is not counted. Writes OUTPUT.json and OUTPUT.md.
Exit status 2 for wrong options.

--table 2 sets what the paper reports beside its Table 2: the time from a click to the mask at the photo's size, each
system at its own resolution, the encoding of the photo excluded. Systems have random weights; --systems measures given
ones too, by the names that noc.py takes, such as sam:DIR.
"""

from __future__ import annotations

import argparse
import functools
import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import requests
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from backend.factory import enough_pixels
from backend.images.decode import decode_image
from backend.label_studio.protocol import mask_request, read_json, read_predict
from backend.label_studio.regions import mask_response
from bench.baselines.adaptation import Adapted
from bench.cli import CommandParser, image_size, write_results
from bench.models import ModelSpec, load_model, network_size, published_row
from bench.published import RESPONSE_MS
from bench.serving.annotators import Request, drawn_photo, photos
from bench.serving.latency_baselines import ClickOnce, authors_design, evaluated, plain, random_sam, served
from bench.serving.load import image_server, jpeg, predict_body
from bench.serving.response_time import ResponseTime, response_table
from skipclick import Click, Predictor, load_checkpoint
from skipclick.config import DINOV2
from skipclick.evaluation.datasets import LAYOUTS
from skipclick.evaluation.option_types import positive
from skipclick.evaluation.timing import MedianP95
from skipclick.evaluation.versions import software_versions
from skipclick.features import ImageFeatures
from skipclick.model import SkipClick
from skipclick.predictor import ClickRequest

MODELS = ("vit-b", "vit-l", "skipclick-lite")
RESOLUTIONS = {"vit-b": (448, 672, 896), "vit-l": (448, 896), "skipclick-lite": (320, 448, 672, 896)}
TABLE_RESOLUTIONS = {"vit-b": (448, 896), "vit-l": (896,), "skipclick-lite": (448,)}
"""Of --table: those that the paper evaluates with, and that of the bundled model."""
DTYPES = ("float32", "bfloat16")
STAGES = ("receive", "fetch", "decode", "encode", "prompts", "mixer", "pyramid", "decoder", "upsample", "RLE", "JSON")
MODEL_STAGES = ("prompts", "mixer", "pyramid", "decoder")


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    model: str
    resolution: int
    device: str
    dtype: str


@dataclass(frozen=True)
class Stages:
    """One request, stage by stage."""

    setting: Setting
    state: str  # "warm" or "cold"
    stages: dict[str, MedianP95]
    total: MedianP95
    feature_bytes: int
    click_gflop: float
    encode_gflop: float
    achieved: float
    """Of the machine's measured rate of matrix products in this dtype: the click's model stages."""


@dataclass(frozen=True)
class ClickTime:
    """A click of one baseline, up to the mask in host memory."""

    name: str
    setting: Setting
    click: MedianP95
    processor_ms: float
    """Median milliseconds of this process' processor time: what other programs do on the machine does not count."""


@dataclass(frozen=True)
class LatencyResults:
    """One run of the command."""

    created: str
    versions: dict[str, str | None]
    threads: int
    photo: tuple[int, int]
    """(H, W) in pixels."""
    rounds: int
    matmul_gflops: dict[str, float]
    """Measured, by "device dtype", in 10^9 operations per second."""
    stages: list[Stages]
    comparisons: list[ClickTime]
    response: list[ResponseTime]
    """Of --table."""


class Laps:
    """A stopwatch for the stages of one request; it waits for the device at the end of each."""

    def __init__(self, device: torch.device) -> None:
        self.milliseconds: dict[str, float] = {}
        self._device = device
        self._begin = time.perf_counter()

    def end(self, stage: str) -> None:
        """The stage ends here, and the next one begins."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.milliseconds[stage] = 1000 * (now - self._begin)
        self._begin = now

    @contextmanager
    def ending_with(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """Within the block a stage also ends with the forward pass of its module."""
        with ExitStack() as hooks:
            for stage, module in modules.items():
                hooks.enter_context(module.register_forward_hook(lambda *_, stage=stage: self.end(stage)))
            yield


@dataclass(frozen=True, eq=False)
class ClickScene:
    """One photo as Label Studio serves it, and a request with two clicks on it."""

    photo: NDArray[np.uint8]
    body: bytes
    url: str
    clicks: tuple[Click, Click]


@contextmanager
def on_loopback(photo: NDArray[np.uint8]) -> Iterator[ClickScene]:
    """The scene, its photo behind a server on loopback."""
    height, width = photo.shape[:2]
    clicks = (Click(width // 2, height // 2), Click(width // 4, height // 3, positive=False))
    with image_server({"/photo.jpg": jpeg(photo)}) as address:
        url = f"{address}/photo.jpg"
        yield ClickScene(photo, orjson.dumps(predict_body(Request(0, clicks), url, (height, width))), url, clicks)


def build(setting: Setting) -> SkipClick:
    """The model, float32, on the CPU."""
    if setting.model == "skipclick-lite":
        return load_checkpoint("bundled")
    torch.manual_seed(0)
    config = DINOV2[f"dinov2_vit{setting.model[-1]}14"]
    return SkipClick(config, version=f"{setting.model}-random").eval()


def pass_through(
    predictor: Predictor, scene: ClickScene, http: requests.Session, known: ImageFeatures | None, state: torch.Tensor
) -> dict[str, float]:
    """Milliseconds by stage of one request, the last click of the scene; a warm one if its features are `known`."""
    laps = Laps(predictor.device)
    asked = mask_request(read_predict(read_json(scene.body)), lambda *_: None)
    assert asked is not None
    laps.end("receive")
    if known is None:
        file = http.get(scene.url, timeout=30).content
        laps.end("fetch")
        photo = decode_image(io.BytesIO(file), max_pixels=1 << 30, enough=enough_pixels(predictor))
        laps.end("decode")
        known = replace(predictor.encode(photo.pixels), image_size=photo.size)
        laps.end("encode")
    request = ClickRequest(known, [Click(c.x, c.y, c.positive) for c in asked.clicks], state)
    with laps.ending_with({stage: getattr(predictor.model, stage) for stage in MODEL_STAGES}):
        (answer,) = predictor.predict([request])
    laps.end("upsample")
    reply = mask_response(asked.target, answer.mask, answer.score, predictor.version)
    laps.end("RLE")
    orjson.dumps(reply)
    laps.end("JSON")
    return laps.milliseconds


def measure_stages(
    predictor: Predictor, setting: Setting, scene: ClickScene, rounds: int, rate: float, bar: tqdm[Any]
) -> list[Stages]:
    """Warm and cold requests in turns."""
    features = predictor.encode(scene.photo)
    state = predictor.predict([ClickRequest(features, scene.clicks[:1])])[0].state
    encode_flop, click_flop = flops(predictor)
    found: dict[str, list[dict[str, float]]] = {"warm": [], "cold": []}
    with requests.Session() as session:
        for round_number in range(rounds + 1):
            for name, known in (("warm", features), ("cold", None)):
                laps = pass_through(predictor, scene, session, known, state)
                if round_number:  # the first meets cold kernels
                    found[name].append(laps)
                bar.update()
    results = []
    for name, all_laps in found.items():
        stages = {stage: MedianP95.of([laps[stage] for laps in all_laps]) for stage in all_laps[0]}
        total = MedianP95.of([sum(laps.values()) for laps in all_laps])
        network = float(np.median([sum(laps[stage] for stage in MODEL_STAGES) for laps in all_laps]))
        achieved = click_flop / (network / 1000) / (rate * 1e9)
        results.append(
            Stages(setting, name, stages, total, features.nbytes, click_flop / 1e9, encode_flop / 1e9, achieved)
        )
    return results


@torch.inference_mode()
def flops(predictor: Predictor) -> tuple[int, int]:
    """Floating-point operations of the network in an encode and in a click, matrix products and convolutions."""
    model, device, dtype = predictor.model, predictor.device, predictor.dtype
    image = torch.zeros(1, 3, *predictor.resolution, device=device, dtype=dtype)
    prompt = torch.zeros_like(image)
    with FlopCounterMode(display=False) as encoding:
        features = model.encode(image)
    with FlopCounterMode(display=False) as clicking:
        model.decode(features, prompt)
    return encoding.get_total_flops(), clicking.get_total_flops()


@functools.cache
@torch.inference_mode()
def matmul_rate(device: str, dtype: str) -> float:
    """10^9 floating-point operations per second of a large matrix product, the best of twenty."""
    side = 2048 if device == "cpu" else 8192
    a = torch.randn(side, side, device=device).to(getattr(torch, dtype))
    seconds = []
    for _ in range(20):
        begin = time.perf_counter()
        a @ a
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return 2 * side**3 / min(seconds) / 1e9


def baselines_of(
    model: SkipClick, setting: Setting, dtypes: Sequence[str], scene: ClickScene, baselines: bool
) -> list[tuple[str, Setting, ClickOnce]]:
    """Everything that is compared at one resolution on one device."""
    resolution, size = (setting.resolution,) * 2, (scene.photo.shape[0], scene.photo.shape[1])
    found: list[tuple[str, Setting, ClickOnce]] = []
    with_openvino = setting.device == "cpu" and find_spec("openvino") is not None
    for runtime, name in {"torch": "served", "openvino": "served by OpenVINO"}.items():
        for dtype in dtypes if runtime == "torch" or with_openvino else ():
            predictor = Predictor(model, resolution, setting.device, dtype, runtime=runtime)
            predictor.warm_up()
            here = Setting(setting.model, setting.resolution, setting.device, dtype)
            found.append((name, here, served(predictor, predictor.encode(scene.photo), scene.clicks)))
    exact = Setting(setting.model, setting.resolution, setting.device, "float32")
    predictor = Predictor(model, resolution, setting.device, keep_taps=True)
    features = predictor.encode(scene.photo)
    found.append(("plain eager forward", exact, plain(predictor, features, scene.clicks)))
    if model.config.pyramid == "parallel" and model.config.skip_connections:
        theirs = model.to(setting.device)
        design = authors_design(theirs, features.taps, scene.clicks, size, resolution)
        found.append(("authors' design", exact, design))
    return found + (sam_family(setting.device, scene) if baselines else [])


SAM_FAMILY = {"sam": "SAM", "sam-hq": "HQ-SAM", "sam2": "SAM 2", "sam3": "SAM 3", "edgetam": "EdgeTAM"}
"""Whose clicks are measured with random weights; the names of `bench.baselines.sam` and those of papers."""


ADAPTED = " + Schön et al."
"""Behind a method's name: adapted to clicks and masks during use."""


def sam_family(device: str, scene: ClickScene, *, adapted: bool = False) -> list[tuple[str, Setting, ClickOnce]]:
    """SAM's family with random weights, and also adapted during use; without transformers, nothing."""
    if software_versions()["transformers"] is None:
        return []
    models: dict[str, Any] = {name: random_sam(family, device) for family, name in SAM_FAMILY.items()}
    if adapted:
        models |= {name + ADAPTED: Adapted(model, "both") for name, model in models.items()}
    return [
        (name, Setting(name, model.side, device, "float32"), evaluated(model, scene.photo, scene.clicks))
        for name, model in models.items()
    ]


def given_system(name: str, device: str, scene: ClickScene) -> tuple[str, Setting, ClickOnce]:
    """A model as `noc.py` names it, at the size for WSESeg, Table 2's data set. Raises ValueError if it cannot be."""
    size = network_size(name, LAYOUTS["WSESeg"].resolution, None)
    model = load_model(ModelSpec(name, size, device, "float32", flip=False))
    side = size[0] if size else getattr(model, "side", 0)
    return name, Setting(name, side, device, "float32"), evaluated(model, scene.photo, scene.clicks)


def take_turns(parts: Sequence[tuple[str, Setting, ClickOnce]], rounds: int, bar: tqdm[Any]) -> list[ClickTime]:
    """Each baseline once in each round; a first round is not counted."""
    times: list[list[float]] = [[] for _ in parts]
    processor: list[list[float]] = [[] for _ in parts]
    for round_number in range(rounds + 1):
        for (_, setting, once), mine, busy in zip(parts, times, processor, strict=True):
            once.before()
            started = time.process_time()
            milliseconds = time_of(once.click, setting.device)
            if round_number:
                mine.append(milliseconds)
                busy.append(1000 * (time.process_time() - started))
            bar.update()
    return [
        ClickTime(name, setting, MedianP95.of(mine), float(np.median(busy)))
        for (name, setting, _), mine, busy in zip(parts, times, processor, strict=True)
    ]


def time_of(call: Callable[[], object], device: str) -> float:
    """Milliseconds of a call: on a GPU between two events of its stream, else by the clock."""
    if not device.startswith("cuda"):
        started = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - started)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def report(latency: LatencyResults) -> str:
    """Markdown."""
    height, width = latency.photo
    rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in latency.matmul_gflops.items())
    lines = [
        f"Milliseconds, median / 95th percentile of {latency.rounds} rounds, on a photo of {width} x {height} pixels; "
        f"{latency.versions['processor']}, {latency.threads} threads, torch {latency.versions['torch']}, "
        f"{latency.versions['cuda device'] or 'no GPU'}. Matrix products, 10^9 operations per second: {rates}.",
        "",
        f"    {' '.join(sys.argv)}",
        "",
    ]
    if latency.stages:
        lines += [
            "| model | px | device, dtype | photo | " + " | ".join(STAGES) + " | total | GFLOP per click | of the "
            "matrix-product rate | MB per photo |",
            "|---|---:|---|---|" + "---:|" * (len(STAGES) + 4),
        ]
    for row in latency.stages:
        cells = [str(row.stages[stage]) if stage in row.stages else "" for stage in STAGES]
        lines.append(
            f"{_cells(row.setting)} {row.state} | {' | '.join(cells)} | {row.total} | {row.click_gflop:.1f} | "
            f"{row.achieved:.0%} | {row.feature_bytes / 1e6:.1f} |"
        )
    if latency.comparisons:
        lines += [
            "",
            "| model | px | device, dtype | baseline | click | times faster than authors' design |",
            "|---|---:|---|---|---:|---:|",
        ]
    base: dict[tuple[int, str], float] = {
        (c.setting.resolution, c.setting.device): c.click.median
        for c in latency.comparisons
        if c.name == "authors' design"
    }
    for c in latency.comparisons:
        theirs = base.get((c.setting.resolution, c.setting.device)) if c.setting.model == "vit-b" else None
        ratio = f"{theirs / c.click.median:.2f}x" if theirs else ""
        lines.append(f"{_cells(c.setting)} {c.name} | {c.click} | {ratio} |")
    if latency.response:
        lines.append(response_table(latency.response))
    return "\n".join(lines) + "\n"


def response_times(parts: Sequence[tuple[str, Setting, ClickOnce]], rounds: int, bar: tqdm[Any]) -> list[ResponseTime]:
    """Of all systems in turns."""
    found = []
    for one in take_turns(parts, rounds, bar):
        here, (system, method) = one.setting, (one.name, None)
        if here.model in MODELS:
            method = "SkipClick" if here.model == "vit-b" else None
            system = f"{here.model}, {one.name}"
        elif one.name.removesuffix(ADAPTED) in SAM_FAMILY.values():
            method = one.name if one.name in RESPONSE_MS else None
            system = f"{one.name}, random weights"
        else:
            system, method = f"`{one.name}`", published_row(one.name, 2)
        found.append(
            ResponseTime(method, system, here.resolution, here.device, here.dtype, one.click, one.processor_ms)
        )
    return found


def _cells(setting: Setting) -> str:
    return f"| {setting.model} | {setting.resolution} | {setting.device}, {setting.dtype} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    options = _parser().parse_args(arguments)
    try:
        latency = _measure(options)
    except (ValueError, OSError) as error:
        print(f"latency: {error}", file=sys.stderr)
        return 2
    text = report(latency)
    print(text)
    write_results(options.output, asdict(latency), text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["vit-b", "skipclick-lite"])
    parser.add_argument(
        "--resolutions", nargs="+", type=positive, help="sides in pixels (default: the usual ones of each model)"
    )
    parser.add_argument("--devices", nargs="+", choices=("cpu", "cuda"), help="(default: all that there are)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--rounds", type=positive, default=20, help="repetitions (default: 20)")
    parser.add_argument("--size", type=image_size, default="1920x1080", help="of the photo (default: 1920x1080)")
    parser.add_argument("--images", type=Path, help="folder whose first photo is used (default: a drawn one)")
    parser.add_argument("--table", type=int, choices=(2,), help="only the response times beside the paper's Table 2")
    parser.add_argument("--systems", nargs="+", default=[], metavar="MODEL", help="with --table: given models as well")
    parser.add_argument("--no-stages", action="store_true", help="only the comparison")
    parser.add_argument("--no-comparison", action="store_true", help="only the stages")
    parser.add_argument("--no-baselines", action="store_true", help="without SAM's family")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/latency"), help="names of the results, without ending"
    )
    return parser


def _measure(options: argparse.Namespace) -> LatencyResults:
    devices = options.devices or (["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
    if "cuda" in devices and not torch.cuda.is_available():
        raise ValueError("--devices cuda: torch sees no GPU here")
    rates = {f"{device} {dtype}": matmul_rate(device, dtype) for device in devices for dtype in DTYPES}
    if options.systems and not options.table:
        raise ValueError("--systems are those of the response times: give --table 2")
    photo = photos(options.images, 1, options.size)[0] if options.images else drawn_photo(0, options.size)
    plan = [
        (device, name, side)
        for device in devices
        for name in options.models
        for side in options.resolutions or (TABLE_RESOLUTIONS if options.table else RESOLUTIONS)[name]
    ]
    stages: list[Stages] = []
    comparisons: list[ClickTime] = []
    response: list[ResponseTime] = []
    with on_loopback(photo) as scene, tqdm(unit="click", disable=None) as bar:
        for device in devices if options.table else ():
            parts = [given_system(name, device, scene) for name in options.systems]
            for of_device, name, side in plan:
                if of_device == device:
                    setting = Setting(name, side, device, "float32")
                    own = baselines_of(build(setting), setting, options.dtypes, scene, False)
                    parts += [part for part in own if part[0] != "plain eager forward"]
            parts += [] if options.no_baselines else sam_family(device, scene, adapted=True)
            response += response_times(parts, options.rounds, bar)
        for device, name, side in () if options.table else plan:
            setting = Setting(name, side, device, "float32")
            bar.set_description(f"{name} {side} {device}")
            model = build(setting)
            if not options.no_stages:
                for dtype in options.dtypes:
                    here = Setting(name, side, device, dtype)
                    predictor = Predictor(model, (side, side), device, dtype)
                    rate = rates[f"{device} {dtype}"]
                    stages += measure_stages(predictor, here, scene, options.rounds, rate, bar)
            if not options.no_comparison:
                # SAM sees one resolution only, so it takes turns with the first of ours.
                baselines = not options.no_baselines and (name, side) == plan[0][1:]
                parts = baselines_of(model, setting, options.dtypes, scene, baselines)
                comparisons += take_turns(parts, options.rounds, bar)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return LatencyResults(
        created,
        software_versions(),
        torch.get_num_threads(),
        options.size,
        options.rounds,
        rates,
        stages,
        comparisons,
        response,
    )


if __name__ == "__main__":
    sys.exit(main())
