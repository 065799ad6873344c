"""Puts the annotator together from the settings: model, device, executor, images."""

from __future__ import annotations

import torch

from backend.annotator import Annotator
from backend.executor import DeviceExecutor
from backend.images import ImageLoader
from backend.label_studio import LabelStudioAuth
from backend.labeling_config import EXAMPLE
from backend.settings import Settings
from skipclick import Predictor, load_checkpoint
from skipclick.features import ImageFeatures


def build_annotator(settings: Settings) -> Annotator[ImageFeatures]:
    """The annotator with the model loaded. Raises `ValueError` for settings that cannot be met."""
    model = load_checkpoint(settings.checkpoint)
    predictor = Predictor(
        model, resolution=settings.resolution, device=choose_device(settings.device), dtype=settings.dtype
    )
    auth = LabelStudioAuth(settings.label_studio_url, settings.label_studio_api_key, settings.image_timeout)
    images = ImageLoader(
        auth,
        max_bytes=settings.image_max_bytes,
        max_pixels=settings.image_max_pixels,
        timeout=settings.image_timeout,
    )
    return Annotator(
        predictor,
        images,
        DeviceExecutor(),
        version=model.version,
        feature_bytes=settings.feature_cache_bytes,
        memo_bytes=settings.memo_cache_bytes,
    )


def choose_device(name: str) -> str:
    """A torch device for `auto`, `cpu`, `cuda` or `cuda:1`. Raises `ValueError` if it is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    index = int(name.partition(":")[2] or 0)
    if name.startswith("cuda") and index >= torch.cuda.device_count():
        raise ValueError(f"DEVICE={name}, but torch sees {torch.cuda.device_count()} CUDA devices; use DEVICE=auto")
    return name


def welcome(settings: Settings, version: str) -> str:
    """What the person who starts the server needs: what runs, where, and how to connect Label Studio."""
    device = choose_device(settings.device)
    host = "localhost" if settings.host == "0.0.0.0" else settings.host
    key = "set" if settings.label_studio_api_key else "NOT set: uploads cannot be fetched"
    return f"""\
SkipClick backend
  device      {device}{f" ({torch.cuda.get_device_name(device)})" if device != "cpu" else ""}
  checkpoint  {settings.checkpoint} ({version})
  address     http://{host}:{settings.port}
  images from {settings.label_studio_url} (LABEL_STUDIO_API_KEY {key})

To connect Label Studio:
  1. Project > Settings > Labeling Interface > Code: paste the config below, with your labels in both tags.
  2. Project > Settings > Model > Connect Model: http://{host}:{settings.port}, switch on "interactive
     preannotations". Label Studio 1.23 refuses private addresses unless it was started with
     ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false.
  3. Open a task, switch on "Auto-Annotation", pick the Auto-Detect tool and a label, click on the object.
     Alt-click says what does not belong to it.

{EXAMPLE}
"""
