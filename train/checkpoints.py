"""Training checkpoints: all that is needed to continue a run exactly where it stopped.

    RUN/checkpoints/step-00001234.pt   the newest few
    RUN/last.pt, RUN/best.pt           the newest, and the one with the lowest NoC; links to the same files

Files are written atomically. They hold plain containers and tensors and load without executing anything.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from skipclick.atomic_io import atomic_write
from skipclick.checkpoint import build_model
from skipclick.config import ModelConfig
from skipclick.model import SkipClick
from train.config import TrainConfig

FORMAT = "skipclick-training-1"


@dataclass
class TrainingState:
    """The state of a run.

    There are no generators: every random number of a step derives from the seed, the step and the places of its
    samples in the data set's endless sequence, so `step` is also the position in the epoch and in the schedule.
    """

    model: SkipClick
    average: AveragedModel | None  # exponential moving average of the weights
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # only used with float16
    step: int = 0
    validation: dict[str, float] | None = None  # figures of the last validation
    best: float | None = None  # lowest NoC so far
    validation_due: bool = False  # whether the validation of this step is still to come
    backbone_origin: dict[str, str] | None = None  # of published weights: package, version, licence, hash

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "validation": self.validation,
            "best": self.best,
            "validation_due": self.validation_due,
            "backbone_origin": self.backbone_origin,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.validation, self.best = state["step"], state["validation"], state["best"]
        self.validation_due = state.get("validation_due", False)  # older checkpoints do not say
        self.backbone_origin = state.get("backbone_origin")


@dataclass(frozen=True)
class Identity:
    """What stays the same in a run from its first step to its last."""

    config: TrainConfig
    data: dict[str, Any]  # of the training photos: fingerprint, number, sources
    software: dict[str, Any]
    command: tuple[str, ...]

    def to_json(self) -> str:
        config = {**asdict(self.config), "model": self.config.model.to_dict()}
        return json.dumps({"config": config, "data": self.data, "software": self.software, "command": self.command})


def save_state(state: TrainingState, identity: Identity, folder: Path, keep: int, *, best: bool = False) -> Path:
    """Write a checkpoint into a run's folder and delete all but the newest `keep`; `best` also keeps it as best.pt.

    Raises `ValueError` if it cannot be written, as on a full disk; everything older is then still in place.
    """
    path = folder / "checkpoints" / f"step-{state.step:08}.pt"
    content = {"format": FORMAT, "identity": identity.to_json(), **state.state_dict()}
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            torch.save(content, file)
        for name in ("last.pt", *(["best.pt"] if best else [])):
            _link(path, folder / name)
    except (OSError, RuntimeError) as error:  # torch wraps some of the system's errors
        reason = error.strerror if isinstance(error, OSError) else _system_error(error)
        raise ValueError(
            f"the checkpoint of step {state.step} could not be written to {folder} ({reason}): make room and "
            f"continue with --resume; {_newest(folder)}"
        ) from error
    for old in sorted(path.parent.glob("step-*.pt"))[:-keep]:
        old.unlink()
    return folder / "last.pt"


def _system_error(error: BaseException) -> str:
    cause = error.__cause__ or error.__context__
    return cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error).splitlines()[0]


def _newest(folder: Path) -> str:
    last = folder / "last.pt"
    return f"{last} is the last good one" if last.exists() else "there is none before it"


def _link(path: Path, name: Path) -> None:
    """Make `name` another name of a file, replacing any other file; a copy if the file system has no links."""
    temporary = name.with_name(f".{name.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    temporary.replace(name)
    temporary.unlink(missing_ok=True)  # renaming one name of a file to another of its names leaves both


def read_state(path: Path) -> dict[str, Any]:
    """A training checkpoint, read without executing anything from it. Raises `ValueError` if it is not one."""
    if not path.is_file():
        raise ValueError(f"training checkpoint {path} does not exist")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        known = state.get("format") == FORMAT
    except Exception:  # torch and pickle raise nearly everything on other files
        known = False
    if not known:
        raise ValueError(f"{path} is not a training checkpoint of this version: give a run's last.pt or best.pt")
    return {**state, "identity": json.loads(state["identity"])}


def check_same(identity: Identity, state: Mapping[str, Any]) -> None:
    """Raises `ValueError`, naming what differs, if a checkpoint belongs to another run than `identity`.

    The number of steps may change if the learning rate does not depend on it.
    """
    now, then = json.loads(identity.to_json()), state["identity"]
    differing = _differences(then["config"], now["config"])
    if identity.config.schedule == "constant":
        differing = [difference for difference in differing if not difference.startswith("steps ")]
    if then["data"]["fingerprint"] != now["data"]["fingerprint"]:
        differing.append(f"data (then {then['data']['photos']} photos, now {now['data']['photos']} of {_sources(now)})")
    if differing:
        raise ValueError(
            f"--resume continues a run with the settings it began with, but these differ: {'; '.join(differing)}"
        )


def _sources(identity: Mapping[str, Any]) -> str:
    return ", ".join(identity["data"]["sources"])


def _differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """In words, each setting whose value changed; settings within settings are named "augment.crop"."""
    found = []
    for name in sorted(then.keys() | now.keys()):
        old, new = then.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name} (then {old}, now {new})")
    return found


def trained_model(state: Mapping[str, Any]) -> SkipClick:
    """The model of a training checkpoint, with the averaged weights if there are any."""
    config = ModelConfig.from_dict(state["identity"]["config"]["model"])
    prefix = "module."
    average = state["average"] or {}
    averaged = {key.removeprefix(prefix): value for key, value in average.items() if key.startswith(prefix)}
    return build_model(config, averaged or state["model"], version="in training")


def provenance(state: Mapping[str, Any]) -> dict[str, Any]:
    """Where a training checkpoint comes from, for the exported checkpoint; its paths are reduced to file names."""
    identity = state["identity"]
    config = {name: value for name, value in identity["config"].items() if name != "model"}
    config["backbone_weights"] = _last_part(config["backbone_weights"] or "") or None
    return {
        "steps": state["step"],
        "backbone": state.get("backbone_origin"),
        "validation": state["validation"],
        "data": identity["data"],
        "command": [_last_part(word) for word in identity["command"]],
        "software": identity["software"],
        "training": config,
    }


def _last_part(word: str) -> str:
    """A word of a command, its paths reduced to file names: folders tell about a machine, not about a model."""
    return "=".join(part.rstrip("/").rpartition("/")[2] for part in word.split("="))
