"""What `gpu_check.py` checks and measures: one function for each check, which yields its cases as it measures them."""

from __future__ import annotations

import base64
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from backend.annotator import Annotator, OverloadedError
from backend.executor import ONE_LANE, DeviceExecutor, Lane, Priority, cuda_lanes
from backend.factory import build_service
from backend.prompts import ImageReference, SmartClick
from backend.settings import Settings
from bench.serving import latency
from bench.serving.annotators import drawn_photo
from bench.serving.latency import Setting, build, flops
from bench.serving.load import Target, Workload, image_server, jpeg, measure, spawned_server
from skipclick import Click, Predictor, load_checkpoint
from skipclick.checkpoint import save_checkpoint
from skipclick.evaluation.datasets import check_set
from skipclick.evaluation.evaluate import Rules, replay, simulate
from skipclick.features import ImageFeatures
from skipclick.masks import MASK_THRESHOLD, BoxMask
from skipclick.metrics import mask_iou
from skipclick.predictor import ClickRequest
from skipclick.zoom import ZoomRequest, ZoomState, predict_zoomed, whole_view
from train.config import RECIPES, Run, TrainConfig
from train.dataset import ObjectDataset, collate
from train.distributed import joined_group
from train.fit import fit
from train.init_weights import new_model
from train.log import peak_memory, read_log
from train.objective import Objective
from train.sources import open_sources
from train.step import Part, compile_parts, new_state, train_step

ROOT = Path(__file__).resolve().parents[1]
CHECK_SET = ROOT / "skipclick" / "evaluation" / "check_set"

Figures = dict[str, float]
Cases = Iterator[tuple[str, Figures]]
"""What a check yields: the name of a case and its figures by name."""


TINY = RECIPES["tiny"]
QUICK_TRAINING = replace(TINY, batch_size=2, steps=4, precision="float32", augment=replace(TINY.augment, crop=64))


@dataclass(frozen=True)
class Scope:
    """How much is measured; by default, each check once with the bundled model at a small size."""

    device: str
    networks: tuple[tuple[str, int, str], ...] = (("skipclick-lite", 128, "float32"),)
    """Model, side and dtype: whose clicks are measured."""
    served: tuple[int, ...] = (0,)
    """Which of them a server runs."""
    dtypes: tuple[str, ...] = ("float32",)
    """In which masks are compared with the CPU's."""
    rounds: int = 1
    photo_sizes: tuple[tuple[int, int], ...] = ((120, 160),)
    """(H, W) of what the server's annotators see."""
    annotators: int = 2
    seconds: float = 1.0
    """Of clicks on the server, for each case."""
    num_photos: int = 3
    training: TrainConfig = QUICK_TRAINING
    compiled: tuple[bool, ...] = (False,)
    latency: tuple[str, ...] = (
        *("--models", "skipclick-lite", "--resolutions", "128", "--dtypes", "float32"),
        *("--rounds", "1", "--size", "160x120", "--no-baselines"),
    )
    """Options of bench/serving/latency.py."""

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    def settings(self, *, served: bool = False) -> list[Setting]:
        """The networks, or those that are served."""
        found = [Setting(model, side, self.device, dtype) for model, side, dtype in self.networks]
        return [found[place] for place in self.served] if served else found


def tests(scope: Scope) -> Cases:
    """All tests that need a GPU, in a process of their own, which a broken kernel may end."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.xml"
        options = ["-q", "-m", "requires_cuda", f"--junitxml={result}", f"--basetemp={folder}/tests"]
        command = [sys.executable, "-m", "pytest", *options]
        chosen = [str(path) for path in cuda_tests() if scope.on_gpu or path.name == "test_masks.py"]
        subprocess.run([*command, *chosen], cwd=ROOT, check=False, timeout=240)
        found = {name: int(number) for name, number in re.findall(r' (\w+)="(\d+)"', result.read_text()[:400])}
    run = found["tests"] - found["skipped"]
    figures: Figures = {"run": run, "skipped": found["skipped"]}
    yield "requires_cuda", figures | ({"failed": found["failures"] + found["errors"]} if run else {})


def cuda_tests() -> list[Path]:
    """The modules that have tests for a GPU."""
    found = sorted((ROOT / "tests").rglob("test_*.py"))
    return [path for path in found if "pytest.mark.requires_cuda" in path.read_text(encoding="utf-8")]


def masks(scope: Scope) -> Cases:
    """Masks of the bundled model on photos, after the same clicks, against the CPU's in float32."""
    model, rules = load_checkpoint("bundled"), Rules(protocol="serve", num_clicks=4, threshold=MASK_THRESHOLD)
    cpu, expected = Predictor(model), []
    for photo in check_set().photos[: scope.num_photos]:
        sample = photo.load()
        for target in list(sample.targets.values())[:2]:
            clicks = simulate(cpu, cpu.encode(sample.image), target, rules)[1]
            expected.append((sample.image, clicks, replay(cpu, sample.image, clicks, rules)))
    for dtype in scope.dtypes:
        predictor = Predictor(model, device=scope.device, dtype=dtype)
        for graphs in ("off", "on"):
            if graphs == "on":
                predictor.warm_up()
            ious = [mask_iou(replay(predictor, image, clicks, rules), mask) for image, clicks, mask in expected]
            figures = {"masks": len(ious), "lowest IoU": np.nanmin(ious), "mean IoU": np.nanmean(ious)}
            yield f"{dtype}, graphs {graphs}", figures


def clicks(scope: Scope) -> Cases:
    """What one encode and one click cost, by number of clicks, view and batch."""
    for setting in scope.settings():
        yield name_of(setting), click_figures(setting, scope)


def click_figures(setting: Setting, scope: Scope) -> Figures:
    """Of one network. Times are by the clock, until the masks are in host memory; the model part's is the device's."""
    size, view = (1080, 1920), (270, 480, 810, 1440)
    photo = drawn_photo(0, size)
    crop = photo[view[0] : view[2], view[1] : view[3]]
    points = [Click(960, 540), Click(640, 360, positive=False), Click(700, 400)]
    predictor = Predictor(build(setting), (setting.resolution,) * 2, setting.device, setting.dtype, keep_taps=True)
    features, close = predictor.encode(photo), predictor.encode(crop)
    first = ClickRequest(features, points[:1])
    nothing = BoxMask.of(np.zeros(size, np.bool_))
    state = predictor.predict([first])[0].state
    later = ClickRequest(features, points, state)
    zoomed = ZoomRequest(close, view, size, points, ZoomState(state, None, whole_view(size), nothing, 0.0))
    calls: dict[str, Callable[[], object]] = {
        "encode, ms": lambda: predictor.encode(photo),
        "first click, ms": lambda: predictor.predict([first]),
        "later click, ms": lambda: predictor.predict([later]),
        "in a known crop, ms": lambda: predict_zoomed(predictor, [zoomed]),
        "in a new crop, ms": lambda: predict_zoomed(predictor, [replace(zoomed, features=predictor.encode(crop))]),
        "2 at once, ms": lambda: predictor.predict([later] * 2),
        "4 at once, ms": lambda: predictor.predict([later] * 4),
        "8 at once, ms": lambda: predictor.predict([later] * 8),
    }
    click = calls["later click, ms"]
    eager = {"without graphs, ms": milliseconds(click, scope)[0], "launches without graphs": launches(click)}
    predictor.warm_up()
    figures = {name: milliseconds(call, scope)[0] for name, call in calls.items()} | eager
    flop, rate = flops(predictor)[1], latency.matmul_rate(setting.device, setting.dtype)
    model_part = milliseconds(lambda: predictor.probabilities([later]), scope)[1]
    return figures | {
        "launches": launches(click),
        "model part, ms": model_part,
        "GFLOP": flop / 1e9,
        "of the matrix rate, %": 100 * flop / (model_part * 1e6 * rate),
        "features, MB": replace(features, taps=()).nbytes / 1e6,
        "with taps, MB": features.nbytes / 1e6,
    }


def stages(scope: Scope) -> Cases:
    """One request stage by stage, and clicks beside the decoders of SAM's family: bench/serving/latency.py's report."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "latency"
        if latency.main([*scope.latency, "--output", str(output)]):
            raise RuntimeError("bench/serving/latency.py could not measure")
        found = json.loads(output.with_suffix(".json").read_text())
    for row in found["stages"]:
        figures = {f"{stage}, ms": spread["median"] for stage, spread in row["stages"].items()}
        yield f"{name_of(Setting(**row['setting']))}, {row['state']}", figures | {"total, ms": row["total"]["median"]}
    for row in found["comparisons"]:
        name = f"{row['name']}, {name_of(Setting(**row['setting']))}"
        yield name, {"click, ms": row["click"]["median"], "p95, ms": row["click"]["p95"]}


def server(scope: Scope) -> Cases:
    """A whole server over HTTP, with one annotator and with a team that clicks as soon as it is answered."""
    photos = {(size, f"/{size[0]}/{n}.jpg"): jpeg(drawn_photo(n, size)) for size in scope.photo_sizes for n in range(4)}
    for setting in scope.settings(served=True):
        with saved(setting) as checkpoint, image_server({path: file for (_, path), file in photos.items()}) as studio:
            environment = {"CHECKPOINT": str(checkpoint), "RESOLUTION": str(setting.resolution)}
            environment |= {"DEVICE": setting.device, "DTYPE": setting.dtype}
            with spawned_server(studio, environment) as url:
                for size in scope.photo_sizes:
                    target = Target(url, [path for other, path in photos if other == size], [size] * 4)
                    for annotators in (1, scope.annotators):
                        load = measure(target, Workload(annotators, 100_000, scope.seconds, 0.0, first_seed=annotators))
                        figures = {"clicks/s": load.summary()["clicks_per_second"]}
                        for name, first in (("first click, ms", True), ("later click, ms", False)):
                            if found := load.latencies(first):
                                figures[name] = statistics.median(found)
                        case = f"{name_of(setting)}, {size[1]}x{size[0]}, annotators: {annotators}"
                        yield case, figures | {"failed": sum(load.failures.values())}


def lanes(scope: Scope) -> Cases:
    """Clicks while photos are encoded without a pause, in one lane and, on a GPU, in two."""
    setting = scope.settings(served=True)[-1]
    ways = {"one lane": ONE_LANE} | ({"two lanes": cuda_lanes(torch.device(scope.device))} if scope.on_gpu else {})
    for name, way in ways.items():
        yield f"{name_of(setting)}, {name}", lane_figures(setting, way, scope)


def lane_figures(setting: Setting, way: Sequence[Lane], scope: Scope) -> Figures:
    """Of a click, with the device idle and busy."""
    photo, executor, stop, encodes = drawn_photo(0, (1080, 1920)), DeviceExecutor(way), threading.Event(), [0]
    predictor = Predictor(build(setting), (setting.resolution,) * 2, setting.device, setting.dtype)
    executor.submit(lambda: Priority.ENCODE, predictor.warm_up).result()

    def encode() -> ImageFeatures:
        return executor.submit(lambda: Priority.ENCODE, lambda: predictor.encode(photo)).result()

    def click() -> object:
        return executor.submit(lambda: Priority.CLICK, lambda: predictor.predict([request])).result()

    def keep_busy() -> None:
        while not stop.is_set():
            encode()
            encodes[0] += 1

    request, busy = ClickRequest(encode(), [Click(960, 540)]), threading.Thread(target=keep_busy)
    figures = {"click alone, ms": milliseconds(click, scope)[0]}
    begin = time.perf_counter()
    busy.start()
    figures["beside encodes, ms"] = milliseconds(click, scope, wait=False)[0]
    stop.set()
    busy.join()
    executor.close()
    return figures | {"encodes/s": encodes[0] / (time.perf_counter() - begin)}


def memory(scope: Scope) -> Cases:
    """More photos than there is room for: caches are emptied, and everybody is answered as on an empty device."""
    setting = scope.settings(served=True)[-1]
    with saved(setting) as checkpoint, tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"dtype": setting.dtype, "finetune": "off", "feature_cache_bytes": 1 << 40}
        options |= {"device": setting.device, "model_dir": Path(folder), "checkpoint": str(checkpoint)}
        annotator = build_service(Settings(resolution=(setting.resolution,) * 2, **options)).annotator
        expected = [ask(annotator, seed) for seed in range(3)]
        if scope.on_gpu:
            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties(scope.device).total_memory
            torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(scope.device) + 600e6) / total)
        answers = [ask(annotator, seed) for seed in (*range(scope.num_photos), *range(3))]
        dropped = annotator.feature_stats()["features"].evictions
        annotator.close()
        if scope.on_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0)
    pairs = zip(expected, answers[-3:], strict=True)
    same = [bool(a and b and mask_iou(a.full(), b.full()) >= 0.999) for a, b in pairs]
    figures: Figures = {"photos": scope.num_photos, "refused": answers.count(None), "other masks": same.count(False)}
    yield name_of(setting), figures | {"features dropped": dropped}


def ask(annotator: Annotator, seed: int) -> BoxMask | None:
    """The mask of a click on a drawn photo; None where there is no memory for it."""
    file = base64.b64encode(jpeg(drawn_photo(seed, (480, 640)))).decode()
    click = SmartClick("1", 320, 240, positive=True)
    try:
        return annotator.annotate(ImageReference(f"data:image/jpeg;base64,{file}"), [click], None, (480, 640)).mask
    except OverloadedError:
        return None


def training(scope: Scope) -> Cases:
    """Training steps with two corrections each: on a batch that lies on the device, and with the loader."""
    config = replace(scope.training, backbone_weights=None, next_clicks="fixed", max_num_next_clicks=2)
    rate = latency.matmul_rate(scope.device, config.precision)
    for compiled in scope.compiled:
        with tempfile.TemporaryDirectory() as folder:
            run = Run(data=(str(CHECK_SET),), output=Path(folder) / "run", device=torch.device(scope.device))
            if scope.on_gpu:
                torch.cuda.reset_peak_memory_stats(scope.device)
            step, flop = step_cost(config, run, scope, compiled)
            workers = min(16, os.cpu_count() or 1) if scope.on_gpu else 0
            fit(
                config,
                replace(run, num_workers=workers, compile=compiled, log_every=config.steps // 4, validate_every=0),
            )
            speeds = [line["images_per_second"] for line in read_log(run.output / "log.jsonl")]
        yield (
            f"{config.precision}, {'compiled' if compiled else 'eager'}",
            {
                "step, ms": step,
                "images/s": 1000 * config.batch_size / step,
                "of the matrix rate, %": 100 * flop / (step * 1e6 * rate),
                "images/s with the loader": statistics.median(speeds[len(speeds) // 2 :]),
                "peak memory, GB": peak_memory(run.device) / 1e9,
            },
        )


def step_cost(config: TrainConfig, run: Run, scope: Scope, compiled: bool) -> tuple[float, int]:
    """Milliseconds of a step on one batch, and its floating-point operations."""
    photos = ObjectDataset(
        open_sources(run.data),
        num_objects=config.num_objects,
        augment_config=config.augment,
        sampler_config=config.sampler,
        seed=config.seed,
    )
    with joined_group(run.device) as group:
        batch = collate([photos[place] for place in range(config.batch_size)]).to(group.device)
        state = new_state(new_model(config), config, group.device)
        objective, parts = Objective(state.model, config), [Part(range(config.batch_size), batch)]
        with FlopCounterMode(display=False) as counter:
            train_step(state, objective, parts, config, group, run.output)
        if compiled:
            compile_parts(state.model)
        step = milliseconds(lambda: train_step(state, objective, parts, config, group, run.output), scope)[0]
    return step, counter.get_total_flops()


def milliseconds(call: Callable[[], object], scope: Scope, *, wait: bool = True) -> tuple[float, float]:
    """Medians by the clock, until the device has finished, and on the device alone; on a CPU they are the same.

    wait: False where other work on the device goes on, and the call itself waits for its own.
    """
    by_clock, on_device = [], []
    for _ in range(scope.rounds + 2):
        begin = time.perf_counter()
        if scope.on_gpu and wait:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            first.record()
            call()
            last.record()
            torch.cuda.synchronize(scope.device)
            on_device.append(first.elapsed_time(last))
        else:
            call()
        by_clock.append(1000 * (time.perf_counter() - begin))
    return statistics.median(by_clock[2:]), statistics.median(on_device[2:] or by_clock[2:])


def launches(call: Callable[[], object]) -> int:
    """How often the CPU starts something on the GPU: kernels, or graphs of them."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        call()
    return sum(event.count for event in found.key_averages() if re.match(r"cu\w*Launch", event.key))


@contextmanager
def saved(setting: Setting) -> Iterator[Path]:
    """A network as a file for the server."""
    with tempfile.TemporaryDirectory() as folder:
        model, path = build(setting), Path(folder) / "model.safetensors"
        save_checkpoint(model, path, version=model.version, provenance={})
        yield path


def name_of(setting: Setting) -> str:
    return f"{setting.model} {setting.resolution} {setting.dtype}"


CHECKS: dict[str, Callable[[Scope], Cases]] = {
    each.__name__: each for each in (tests, masks, clicks, server, lanes, memory, training, stages)
}
"""In the order in which they run."""
