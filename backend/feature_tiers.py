"""Where features are kept: on the device, behind a GPU in host memory too, and, if a folder is given, in files."""

from __future__ import annotations

from backend.executor import DeviceExecutor, Priority
from backend.settings import Settings
from skipclick.cache import ByteLru, FileLru, MovedLru, SharedCache, Tier
from skipclick.features import ImageFeatures, features_name, read_features, write_features
from skipclick.predictor import Predictor


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
            predictor.model, predictor.resolution, predictor.dtype, predictor.device.type, predictor.keep_blocks
        )
        slower["files"] = FileLru(
            settings.feature_cache_dir / name,
            settings.feature_cache_dir_bytes,
            write_features,
            lambda path: to_device(read_features(path)),
        )
    return SharedCache("features", ByteLru(settings.feature_cache_bytes), slower)
