"""Builds the annotator from the settings: model, device, executor, images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from backend.annotator import Annotator
from backend.device import choose_device
from backend.executor import ONE_LANE, DeviceExecutor, Priority, cuda_lanes
from backend.finetune.job_store import Jobs
from backend.finetune.scheduler import Training
from backend.finetune.store import AnnotationStore
from backend.finetune.versions import Version, Versions
from backend.heads import Head, Heads
from backend.images.loader import build_images
from backend.known_picture import CUP, check_known_picture, known_photo
from backend.label_studio.auth import build_auth
from backend.label_studio.client import LabelStudioApi, may_exist
from backend.label_studio.names import ToldNames
from backend.places import places
from backend.settings import Settings, size_text
from skipclick import Click, Predictor, __version__, load_checkpoint
from skipclick.cache import ByteLru, FileLru, MovedLru, SharedCache, Tier
from skipclick.features import ImageFeatures, features_name, read_features, write_features
from skipclick.head import backbone_digest, head_state
from skipclick.model import SkipClick
from skipclick.openvino_runtime import graphs_folder
from skipclick.predictor import RUNTIMES
from skipclick.proposals import Prototypes
from skipclick.runtime import choose_runtime
from skipclick.zoom import DEFAULT_RULE

logger = logging.getLogger(__name__)

_ASKING = 3.0  # seconds for Label Studio to say whether it has a project; somebody waits for Start Training


@dataclass(frozen=True, eq=False)
class Service:
    """The annotator and what it runs on."""

    annotator: Annotator
    device: str = "cpu"
    dtype: str = "float32"
    runtime: str = "torch"
    resolution: tuple[int, int] = (448, 448)
    names: ToldNames = field(default_factory=ToldNames)

    def check_device(self) -> None:
        """Raise what the driver raises if the device cannot be used any more, or `RuntimeError` if its thread has
        ended; takes microseconds."""
        self.annotator.check()
        self.device_memory()

    def device_memory(self) -> dict[str, int]:
        """Bytes "used", by all programs, and "total" of a GPU; empty for the CPU."""
        if self.device == "cpu":
            return {}
        free, total = torch.cuda.mem_get_info(self.device)
        return {"used": total - free, "total": total}

    def describe(self, settings: Settings) -> str:
        """The log line at start-up."""
        name = f" ({torch.cuda.get_device_name(self.device)})" if self.device != "cpu" else ""
        caches = [("device", settings.feature_cache_bytes), ("memo", settings.memo_cache_bytes)]
        if settings.zoom != "off":
            caches.append(("photos", settings.photo_cache_bytes))
        if self.device != "cpu":
            caches.append(("host", settings.feature_cache_host_bytes))
        if settings.feature_cache_dir is not None:
            caches.append(("files", settings.feature_cache_dir_bytes))
        return (
            f"SkipClick backend {__version__} is ready: device {self.device}{name}, "
            f"runtime {self.runtime}, dtype {self.dtype}, "
            f"checkpoint {settings.checkpoint} ({self.annotator.version}), "
            f"resolution {self.resolution[0]}x{self.resolution[1]}, zoom {settings.zoom}, "
            f"caches {', '.join(f'{cache} {size_text(size)}' for cache, size in caches)}, "
            f"Label Studio {settings.label_studio_url}"
        )


def build_service(settings: Settings) -> Service:
    """The service, with the model loaded and tested. Raises `ValueError` for settings that cannot be met."""
    model = load_checkpoint(settings.checkpoint)
    device = choose_device(settings.device)
    # The graphs of `skipclick compile`, otherwise those that an earlier start left.
    graphs = graphs_folder(settings.checkpoint), settings.model_dir / "openvino"
    runtime, dtype = measured_runtime(settings, model, device, graphs)
    predictor = Predictor(
        model,
        settings.resolution,
        device,
        dtype,
        keep_taps=settings.finetune != "off",
        runtime=runtime,
        graphs=graphs,
    )
    on_gpu = predictor.device.type == "cuda"
    executor = DeviceExecutor(
        cuda_lanes(predictor.device) if on_gpu else ONE_LANE, batch=settings.click_batch or (8 if on_gpu else 1)
    )
    executor.submit(lambda: Priority.ENCODE, predictor.warm_up).result()
    executor.submit(lambda: Priority.ENCODE, lambda: check_known_picture(predictor)).result()
    names = ToldNames(settings.model_dir)
    annotator = Annotator(
        build_heads(settings, model, predictor, executor),
        build_images(settings, build_auth(settings), enough_pixels(predictor), names),
        executor,
        features=feature_cache(settings, predictor, executor),
        memo_bytes=settings.memo_cache_bytes,
        zoom=DEFAULT_RULE if settings.zoom == "auto" else None,
        photo_bytes=settings.photo_cache_bytes,
        fetching=places(settings.threads).fetching,
    )
    return Service(annotator, device, dtype, runtime, predictor.resolution, names)


def build_heads(settings: Settings, model: SkipClick, predictor: Predictor, executor: DeviceExecutor) -> Heads:
    """The base and, unless fine-tuning is off, the projects' own heads; `predictor` runs `model`."""
    base = Head(model.version, predictor)
    if settings.finetune == "off":
        return Heads(base)
    backbone = backbone_digest(model)

    def load(version: Version) -> Head:
        if version.about["backbone"] != backbone:
            raise ValueError(
                f"{version.name} was trained for a CHECKPOINT other than {settings.checkpoint}; start with that one, "
                f"or train project {version.project} again"
            )
        weights = version.head()
        accepted = _accepted(version) if settings.predict == "similar" else None

        def place() -> Head:
            own = predictor.with_head(weights, version.name)
            if predictor.device.type == "cuda":
                own.warm_up()
            nbytes = sum(tensor.nbytes for tensor in head_state(own.model).values())
            return Head(version.name, own, nbytes, accepted)

        return executor.submit(lambda: Priority.ENCODE, place).result()

    return Heads(base, Versions(settings.model_dir), load, settings.head_cache_bytes)


def _accepted(version: Version) -> Prototypes | None:
    """What a version's accepted objects look like, if its training found that proposals help."""
    try:
        return version.prototypes() if version.proposals_help else None
    except ValueError as error:  # clicks are answered anyway
        logger.warning("%s proposes nothing: %s", version.name, error)
        return None


def build_training(settings: Settings) -> Training | None:
    """The part of the server that learns from annotations; None if it does not."""
    if settings.finetune in ("follow", "off"):
        return None
    auth = build_auth(settings)
    return Training(
        AnnotationStore(settings.model_dir, settings.image_max_pixels),
        Jobs(settings.model_dir),
        automatic=settings.finetune == "auto",
        after_objects=settings.finetune_after_objects,
        quiet_seconds=settings.finetune_quiet_seconds,
        job_seconds=settings.finetune_job_seconds,
        immediate=settings.finetune_immediate,
        is_known=lambda project: may_exist(LabelStudioApi(auth, _ASKING), project),
    )


def feature_cache(settings: Settings, predictor: Predictor, executor: DeviceExecutor) -> SharedCache[ImageFeatures]:
    """The cache for a predictor's features. Raises `ValueError` if its folder cannot be written to."""

    def to_device(features: ImageFeatures) -> ImageFeatures:
        if predictor.device.type == "cpu":
            return features
        return executor.submit(lambda: Priority.CLICK, lambda: features.to(predictor.device)).result()

    slower: dict[str, Tier[ImageFeatures]] = {}
    if predictor.device.type != "cpu":
        slower["host"] = MovedLru(settings.feature_cache_host_bytes, lambda features: features.to("cpu"), to_device)
    if settings.feature_cache_dir is not None:
        name = features_name(
            predictor.model,
            predictor.resolution,
            predictor.dtype,
            predictor.device.type,
            predictor.keep_taps,
            predictor.runtime,
        )
        slower["files"] = FileLru(
            settings.feature_cache_dir / name,
            settings.feature_cache_dir_bytes,
            write_features,
            lambda path: to_device(read_features(path)),
        )
    return SharedCache("features", ByteLru(settings.feature_cache_bytes), slower)


def measured_runtime(settings: Settings, model: SkipClick, device: str, graphs: Sequence[Path]) -> tuple[str, str]:
    """The runtime and dtype for RUNTIME and DTYPE; where they leave a choice, `choose_runtime` decides on /ui's
    photo."""
    runtimes = [settings.runtime] if settings.runtime != "auto" else RUNTIMES if device == "cpu" else ["torch"]
    dtypes = [settings.dtype] if settings.dtype != "auto" else ["float32", "bfloat16"]
    candidates = [(runtime, dtype) for runtime in runtimes for dtype in dtypes]
    if len(candidates) == 1:
        return candidates[0]
    clicks = [list(CUP), [Click(430, 250)], [Click(60, 60)]]
    return choose_runtime(model, known_photo(), clicks, candidates, settings.resolution, device, graphs)


def enough_pixels(predictor: Predictor) -> int | None:
    """The side to which a photo may be reduced without changing masks; None if all pixels matter.

    At twice the network's input size, the model's own antialiasing still does the final reduction. A model without it
    (the released ones) samples single pixels of the photo, which a reduced one does not have.
    """
    return 2 * max(predictor.resolution) if predictor.model.config.antialias else None
