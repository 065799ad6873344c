"""Versions of a project's head: complete or not there, and a pointer to the one in service.

    MODEL_DIR/versions/PROJECT/v1/model.safetensors   the head's weights (the backbone is the base checkpoint's)
                                 /about.json          base, data, time, and digests that reveal damage
                                 /report.json, report.png
                                 /prototypes.safetensors    what its accepted objects look like, if that was measured
    MODEL_DIR/versions/PROJECT/current                "v3": the one in service, then, a line each, those before it

A version is written under another name and renamed; the pointer is replaced. Both are atomic: whenever a process is
killed, the pointer names a complete version. Writers hold the project's lock, readers need none. Numbers are never
reused.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from backend.finetune.locks import locked
from backend.small_files import read_small
from skipclick.atomic_io import atomic_write, synchronize
from skipclick.head import backbone_digest, head_digest, head_state, load_head, put_head, save_head
from skipclick.model import SkipClick
from skipclick.proposals import Prototypes

BASE = "base"
"""Name, in the pointer and for people, of the checkpoint that the server was started with."""

_PATIENCE = 60.0  # seconds to wait for another process that writes a version
_MAX_BYTES = 256 << 20  # of a report or prototypes; they have a few MB

_FACTS = ("base", "backbone", "head")  # keys of every about.json
_POINTER, _WEIGHTS, _ABOUT, _REPORT, _PICTURE, _PROTOTYPES = (
    "current",
    "model.safetensors",
    "about.json",
    "report.json",
    "report.png",
    "prototypes.safetensors",
)


@dataclass(frozen=True)
class Version:
    """One complete version on disk."""

    project: int
    number: int
    folder: Path
    about: Mapping[str, Any]

    @property
    def name(self) -> str:
        """As shown in predictions: `skipclick-lite+p12.v3`."""
        return f"{self.about['base']}+p{self.project}.v{self.number}"

    @property
    def report(self) -> Mapping[str, Any]:
        """What was measured before it was promoted or rejected. Raises `OSError` or `ValueError` if it is missing or
        damaged."""
        report: Mapping[str, Any] = json.loads(read_small(self.folder / _REPORT, _MAX_BYTES))
        return report

    @property
    def picture(self) -> Path:
        """The report's picture; it may not exist."""
        return self.folder / _PICTURE

    @property
    def proposals(self) -> Mapping[str, Any] | None:
        """What proposals found on held-out images: "objects", "proposals", "precision" (missing where nothing was
        proposed) and "recall" at an IoU of 75 %, and whether that "helps". None if its training did not measure it."""
        measured = self.about.get("proposals")
        return measured if isinstance(measured, dict) else None

    @property
    def proposals_help(self) -> bool:
        """Whether proposals were measured and found good enough to be shown."""
        return (self.proposals or {}).get("helps") is True

    def prototypes(self) -> Prototypes:
        """What the objects that it learnt from look like. Raises `ValueError` if the file is missing or damaged."""
        path = self.folder / _PROTOTYPES
        try:
            return Prototypes.from_bytes(read_small(path, _MAX_BYTES))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be used: {error}") from None

    def head(self) -> dict[str, Tensor]:
        """The weights, checked against their digest. Raises `ValueError` if they are damaged."""
        state = load_head(self.folder / _WEIGHTS)
        if head_digest(state) != self.about["head"]:
            raise ValueError(f"the weights of {self.folder} are damaged: their digest is not the one in {_ABOUT}")
        return state

    def model(self, base: SkipClick) -> SkipClick:
        """The whole model, on the CPU: this head on the backbone of `base`. Raises `ValueError` if it does not fit."""
        if backbone_digest(base) != self.about["backbone"]:
            raise ValueError(f"{self.name} was trained for a base model other than {base.version}")
        model = copy.deepcopy(base)
        put_head(model, self.head())
        model.version = self.name
        return model


class Versions:
    """The versions of all projects under `MODEL_DIR`. Any thread, any process."""

    def __init__(self, model_dir: Path) -> None:
        self._folder = model_dir / "versions"

    def projects(self) -> list[int]:
        """Projects that have a version or a pointer."""
        return sorted(int(path.name) for path in self._folder.glob("[0-9]*") if path.name.isdecimal())

    def numbers(self, project: int) -> list[int]:
        """Numbers of the complete versions, oldest first."""
        found = (re.fullmatch(r"v([1-9]\d*)", path.name) for path in self._of(project).glob("v*"))
        return sorted(int(match[1]) for match in found if match)

    def version(self, project: int, number: int) -> Version:
        """One version. Raises `ValueError` if there is none of this number."""
        folder = self._of(project) / f"v{number}"
        try:
            about = json.loads(read_small(folder / _ABOUT))
            if not isinstance(about, dict) or not all(isinstance(about.get(key), str) for key in _FACTS):
                raise ValueError
            return Version(project, number, folder, about)
        except (FileNotFoundError, NotADirectoryError):
            have = ", ".join(f"v{one}" for one in self.numbers(project)) or "none"
            raise ValueError(f"project {project} has no version v{number}; there is {have}") from None
        except (ValueError, RecursionError):
            raise ValueError(f"{folder / _ABOUT} is damaged; promote another version or prune this one") from None

    def current(self, project: int) -> int | None:
        """Number of the version in service; None for the base. Reads one small file."""
        history = self._history(project)
        return history[0] if history else None

    def write(
        self,
        project: int,
        model: SkipClick,
        base: SkipClick,
        *,
        about: Mapping[str, Any],
        report: Mapping[str, Any],
        picture: Path | None = None,
        prototypes: Prototypes | None = None,
    ) -> Version:
        """Save a candidate as the next version; it is not in service before `promote`.

        Args:
            model: the fine-tuned model. Its backbone must be that of `base`, to the bit: only the head is kept.
            about: any JSON, such as the data's fingerprint and the recipe.
            report: any JSON, what was measured; `picture` is copied beside it.
            prototypes: what `Version.prototypes` returns.

        Raises `ValueError` if the backbone was changed.
        """
        backbone = backbone_digest(base)
        if backbone_digest(model) != backbone:
            raise ValueError("the candidate's backbone differs from the base's; fine-tuning must leave it frozen")
        facts = {
            **about,
            "base": base.version,
            "backbone": backbone,
            "head": head_digest(head_state(model)),
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with self._locked(project):
            number = max([0, *self.numbers(project)]) + 1
            temporary = Path(tempfile.mkdtemp(dir=self._of(project), prefix=f".v{number}.", suffix=".tmp"))
            save_head(model, temporary / _WEIGHTS, facts)
            _write(temporary / _ABOUT, json.dumps(facts, indent=2).encode())
            _write(temporary / _REPORT, json.dumps(dict(report), indent=2).encode())
            if picture is not None:
                _write(temporary / _PICTURE, picture.read_bytes())
            if prototypes is not None:
                _write(temporary / _PROTOTYPES, prototypes.to_bytes())
            temporary.chmod(0o755)  # mkdtemp's 0700 would hide it from other accounts
            synchronize(temporary)
            temporary.rename(self._of(project) / f"v{number}")
            synchronize(self._of(project))
        return self.version(project, number)

    def promote(self, project: int, number: int | None, in_place_of: int | None = None) -> None:
        """Put a version in service, or the base with None. Raises `ValueError` if it does not exist or is damaged.

        in_place_of: the version in service now, if a rollback should not return to it.
        """
        if number is not None:
            self.version(project, number).head()
        with self._locked(project):
            history = self._history(project)
            if in_place_of is not None and history[:1] == [in_place_of]:
                del history[0]
            if history[:1] != [number]:
                self._point(project, [number, *history])

    def rollback(self, project: int) -> int | None:
        """Put the previous version back in service; returns its number, None for the base. Raises `ValueError` if the
        base is in service."""
        with self._locked(project):
            history = self._history(project)
            if not history or history[0] is None:
                raise ValueError(f"project {project} is served by the base model; there is nothing to roll back")
            present = [None, *self.numbers(project)]
            before = [number for number in history[1:] if number in present]
            self._point(project, before or [None])
            return before[0] if before else None

    def prune(self, project: int, keep: int) -> list[int]:
        """Delete all versions but the newest `keep` (at least 1) and the one in service; returns their numbers.

        The newest stays, so that no number is reused.
        """
        if keep < 1:
            raise ValueError("at least one version must be kept")
        with self._locked(project):
            numbers = self.numbers(project)
            staying = {*numbers[-keep:], self.current(project)}
            leaving = [number for number in numbers if number not in staying]
            self._remove(project, leaving)
        return leaving

    def delete(self, project: int, numbers: Sequence[int]) -> None:
        """Delete these versions; none may be in service."""
        if numbers:
            with self._locked(project):
                self._remove(project, numbers)

    def _remove(self, project: int, numbers: Sequence[int]) -> None:
        for number in numbers:
            doomed = self._of(project) / f".v{number}.tmp"
            (self._of(project) / f"v{number}").rename(doomed)  # gone at once, whatever happens next
            shutil.rmtree(doomed)

    def _of(self, project: int) -> Path:
        return self._folder / str(project)

    def _history(self, project: int) -> list[int | None]:
        """The version in service, then those before it; None stands for the base."""
        try:
            lines = read_small(self._of(project) / _POINTER).decode(errors="replace").split()
        except FileNotFoundError:
            return []
        return [int(line[1:]) if re.fullmatch(r"v[1-9]\d*", line) else None for line in lines]

    def _point(self, project: int, history: list[int | None]) -> None:
        text = "".join(f"{BASE if number is None else f'v{number}'}\n" for number in history)
        with atomic_write(self._of(project) / _POINTER) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @contextmanager
    def _locked(self, project: int) -> Iterator[None]:
        """Holds the project's lock, and removes what a killed writer left behind."""
        folder = self._of(project)
        with locked(folder / ".lock", _PATIENCE):
            for left in folder.glob(".*.tmp"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
