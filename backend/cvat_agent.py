"""An interaction function for CVAT's agent (CVAT Online and Enterprise): `cvat-cli` runs it, and CVAT sends it clicks.

    pip install -r requirements/cvat.txt
    cvat-cli function create-native SkipClick --function-module backend.cvat_agent
    cvat-cli function run-agent ID --function-module backend.cvat_agent

`--function-file backend/cvat_agent.py` is the same. Settings are the server's environment variables (`CHECKPOINT`,
`DEVICE`, `FEATURE_CACHE_BYTES`, ...); `-p project=int:12` uses the fine-tuned head of project 12 in `MODEL_DIR`.

The agent keeps what `preprocess_image` returns for ten minutes, however large it is. So it gets a handle: the picture
is in a file that exists as long as the handle, and the features are in the annotator's cache, which has a budget.
"""

from __future__ import annotations

import atexit
import io
import os
import tempfile
import weakref
from functools import cached_property
from pathlib import Path

import cvat_sdk.auto_annotation as cvataa
from PIL import Image

from backend.annotator import Annotator
from backend.cvat.masks import run_lengths
from backend.cvat.protocol import Prompts, check_number
from backend.factory import build_service
from backend.prompts import file_digest, sent_image
from backend.settings import Settings

_PNG_MODES = ("1", "LA", "P", "RGBA", "I", "I;16")
"""Pictures with transparency, palettes or more than 8 bits: the decoder determines what they look like."""


class Picture:
    """A handle of a picture, whose file is deleted with the handle. Not a dataclass, which the module of a
    `--function-file` cannot have, since it is not in `sys.modules`."""

    def __init__(self, digest: str, size: tuple[int, int], path: Path) -> None:
        """size: (H, W) in pixels."""
        self.digest, self.size, self.path = digest, size, path
        weakref.finalize(self, path.unlink, missing_ok=True)


class Interactor:
    """The interaction function. The model is loaded at the first picture: the agent creates some functions only to read
    their `spec`."""

    spec = cvataa.InteractionFunctionSpec(min_pos_points=1, min_neg_points=0, min_bounding_boxes=0)

    def __init__(self, settings: Settings, project: int | None = None, annotator: Annotator | None = None) -> None:
        """annotator: by default that of the settings, built at the first picture."""
        self._settings = settings
        self._project = project
        self._given = annotator

    def preprocess_image(self, context: cvataa.InteractionFunctionContext, image: Image.Image) -> Picture:
        """Encode a picture; its features stay in the annotator's cache."""
        encoded = io.BytesIO()
        if image.mode in _PNG_MODES:
            image.save(encoded, "PNG", compress_level=1)
        else:
            image.convert("RGB").save(encoded, "JPEG", quality=95, subsampling=0)
        content = encoded.getvalue()
        descriptor, name = tempfile.mkstemp(dir=self._folder.name)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        picture = Picture(file_digest(content), (image.height, image.width), Path(name))
        self._annotator.prepare(sent_image(picture.digest, picture.path.read_bytes), self._project)
        return picture

    def detect(
        self, context: cvataa.InteractionFunctionContext, pp_image: Picture, prompts: cvataa.InteractionPrompts
    ) -> list[cvataa.InteractionResultShape]:
        """The object's mask after all clicks; empty if the network finds no object."""
        given = Prompts(tuple(prompts.pos_points), tuple(prompts.neg_points), prompts.bounding_box)
        check_number(given, self._settings.request_max_clicks)
        if not given.has_positive:
            return []
        size, image = pp_image.size, sent_image(pp_image.digest, pp_image.path.read_bytes)
        found = self._annotator.annotate(image, given.clicks(size), given.box(size), size, project=self._project)
        return [] if found.mask.empty else [cvataa.InteractionResultShape(type="mask", points=run_lengths(found.mask))]

    @cached_property
    def _annotator(self) -> Annotator:
        if self._given is not None:
            return self._given
        annotator = build_service(self._settings).annotator
        atexit.register(annotator.close)
        return annotator

    @cached_property
    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="skipclick-cvat-")


def create(project: int | None = None) -> Interactor:
    """The function for the process's environment, as `cvat-cli` calls it. Raises `ValueError` for wrong settings."""
    settings = Settings.from_environment(os.environ)
    # An agent does not train; without a project it needs no head but the checkpoint's.
    return Interactor(settings.model_copy(update={"finetune": "off" if project is None else "follow"}), project)
