"""Other ways to cut out an object by clicks, behind the same two calls as `skipclick.Predictor`.

What a baseline needs beyond the server's requirements is imported when the baseline is asked for.
"""

from __future__ import annotations

from typing import Any

from bench.baselines.external import load_external
from bench.baselines.grabcut import GrabCutModel
from skipclick.evaluation.evaluate import ClickModel

BASELINES = {
    "grabcut": "OpenCV's GrabCut, seeded by the clicks",
    "random-walker": "scikit-image's random walker, seeded by the clicks",
    "sam:WEIGHTS": "SAM by transformers; WEIGHTS is a folder or a name on the Hugging Face hub",
    "sam2:WEIGHTS": "SAM 2 and 2.1, likewise",
    "sam3:WEIGHTS": "SAM 3 by its point tracker, likewise",
    "edgetam:WEIGHTS": "EdgeTAM, likewise",
    "sam-hq:WEIGHTS": "HQ-SAM, likewise",
    "mobile-sam:CHECKPOINT": "MobileSAM, by its authors' checkout on PYTHONPATH (docs/baselines.md)",
    "ritm:CHECKPOINT": "RITM, by its authors' checkout on PYTHONPATH (docs/baselines.md)",
    "focalclick:CHECKPOINT": "FocalClick, likewise",
    "simpleclick:CHECKPOINT": "SimpleClick, likewise",
    "skipclick-release:CHECKPOINT": "SkipClick by its authors' own code, likewise",
    "MODULE:FACTORY": "a method of yours: FACTORY() of a module returns an object with encode(image) and "
    "click(features, clicks, previous), as `skipclick.evaluation.evaluate.ClickModel` describes them",
}
"""How `--model` names them, and what each is."""

BY_TRANSFORMERS = [name.removesuffix(":WEIGHTS") for name in BASELINES if name.endswith(":WEIGHTS")]
"""Kinds that `bench.baselines.sam` loads."""

SAM_FAMILY = [*BY_TRANSFORMERS, "mobile-sam"]
"""Kinds that are given the low-resolution mask of the click before."""


def load_baseline(name: str, device: str = "cpu", side: int = 448, *, mask_feedback: bool = True) -> ClickModel[Any]:
    """The method that a key of `BASELINES` stands for; only networks use the torch device.

    side: in pixels, for the methods that look at another size on each data set. mask_feedback: of SAM's family.

    Raises ValueError, in one sentence, where the name is unknown, or packages or weights are missing.
    """
    kind, _, rest = name.partition(":")
    if kind == "mobile-sam" and rest:
        from bench.baselines.mobile_sam import MobileSam

        return MobileSam(rest, device, mask_feedback=mask_feedback)
    if f"{kind}:CHECKPOINT" in BASELINES and rest:
        from bench.baselines.isegm_checkout import IsegmModel

        return IsegmModel(kind, rest, device, side)
    try:
        if name == "grabcut":
            return GrabCutModel()
        if name == "random-walker":
            from bench.baselines.random_walker import RandomWalkerModel

            return RandomWalkerModel()
        if kind in BY_TRANSFORMERS and rest:
            from bench.baselines.sam import SegmentAnything

            return SegmentAnything.load(kind, rest, device, mask_feedback=mask_feedback)
    except ImportError as error:
        package = (error.name or str(error)).partition(".")[0]
        raise ValueError(
            f"{name} needs the Python package {package}, which is missing: pip install -r requirements/bench.txt"
        ) from error
    if kind and rest:
        return load_external(name)
    raise ValueError(f"unknown model {name!r}: give 'bundled', a checkpoint file, or one of {', '.join(BASELINES)}")
