"""The training loop.

python -m train fit --data DIR --recipe tiny --steps 12000 --output runs/tiny
python -m train fit --data DIR --recipe tiny --steps 12000 --output runs/tiny --resume      continue exactly
torchrun --nproc-per-node 2 -m train fit ...          the same global batch, shared by two processes
python -m train fit --data DIR --recipe tiny-finish --init runs/tiny/last.pt --steps 3000 --output runs/finish
python -m train export runs/finish/last.pt skipclick-tiny.safetensors --version skipclick-tiny
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from skipclick.evaluation.datasets.left_out import LeftOut
from skipclick.evaluation.versions import software_versions
from skipclick.model import SkipClick
from train.checkpoints import Identity, TrainingState, check_same, read_state, save_state
from train.config import Run, TrainConfig
from train.dataset import Batch, ObjectDataset, collate, report_left_out, watched
from train.distributed import Group, distributed, joined_group
from train.init_weights import backbone_origin, new_model, take_weights
from train.log import RunLog, opened_log
from train.objective import Objective
from train.signals import StoppedError, ignore_stop_requests, stop_requests
from train.sources import Sources, open_sources
from train.step import Part, compile_parts, new_state, train_step
from train.validate import ValidationSet, held_out_set, named_set, validate


def fit(config: TrainConfig, run: Run) -> Path:
    """Train, and return the newest checkpoint's path.

    A stop request (SIGTERM, Ctrl+C) ends it after a step, with a checkpoint. Raises `ValueError` for invalid input
    and if a checkpoint cannot be written, `FloatingPointError` if the loss or its gradient is not finite, and, if the
    run is elastic, `StoppedError` after a stop request, so that `torchrun` does not take it for finished.
    """
    with joined_group(run.device) as group, stop_requests() as asked_to_stop:
        sources = open_sources(run.data, "train", config.exclude_kinds)
        identity = Identity(config, describe_data(sources), software_versions(), run.command)
        state = start(identity, run, group.device)
        check_same_step(group.gathered(state.step), run)
        objective = distributed(Objective(state.model, config), group, all_used=not config.model.train_backbone)
        if run.compile:
            compile_parts(state.model)
        sets = validation_sets(run) if run.validate_every != 0 else []
        left_out: set[LeftOut] = set()
        batches = global_batches(config, run, sources, state.step, group, left_out)
        saver = Saver(identity, run, group)
        # An error's traceback would keep the loader's processes alive, and the interpreter would wait for them forever.
        with closing(batches), opened_log(config, run, state.step, group) as log:
            if sets and state.validation_due:
                saver.save(state, best=improved(state, sets, group, log, left_out))
            for parts in batches:
                result = train_step(state, objective, parts, config, group, run.output, asked_to_stop())
                log.step(state.step, result)
                state.validation_due = bool(sets) and is_validation_step(state.step, config, run)
                if result.stop:  # a validation may take longer than a stop request allows: --resume makes up for it
                    break
                if state.validation_due:
                    saver.save(state, best=improved(state, sets, group, log, left_out))
                saver.save_if_due(state)
            saver.save(state)
        everything = set(sources.left_out).union(*(one.left_out for one in sets), *group.gathered(left_out))
        if group.is_main:
            report_left_out(everything)
    if run.elastic and (state.step < config.steps or state.validation_due):
        raise StoppedError(f"stopped after step {state.step} of {config.steps}")
    return run.output / "last.pt"


def start(identity: Identity, run: Run, device: torch.device) -> TrainingState:
    """The state from which the run starts or continues. `ValueError` if a checkpoint or weights do not fit."""
    config, last = identity.config, run.output / "last.pt"
    torch.manual_seed(config.seed)  # of the head's first weights
    if run.resume or (run.elastic and last.exists()):
        saved = read_state(last)
        check_same(identity, saved)
        state = new_state(SkipClick(config.model), config, device)
        state.load_state_dict(saved)
        return state
    if last.exists():
        raise ValueError(f"{run.output} holds a run: continue it with --resume, or name another --output")
    if run.init is None:
        state = new_state(new_model(config), config, device)
        state.backbone_origin = backbone_origin(config)
        return state
    model, given = SkipClick(config.model), read_state(run.init)
    take_weights(model, given["model"], str(run.init))
    state = new_state(model, config, device)
    state.backbone_origin = given.get("backbone_origin")
    return state


def check_same_step(steps: Sequence[int], run: Run) -> None:
    """Raises `ValueError` if processes would begin at different steps."""
    if len(set(steps)) > 1:
        raise ValueError(
            f"the processes would begin at the steps {', '.join(map(str, steps))}: --output {run.output} must be one "
            "folder that all nodes share"
        )


def describe_data(sources: Sources) -> dict[str, Any]:
    """What a run is trained on. The fingerprint is a hash of photos' names, their order, and the sources' weights."""
    digest = hashlib.sha256()
    for source in sources.parts:
        digest.update(f"{source.kind} {source.weight}\n".encode())
        for photo in source.photos:
            digest.update(f"{photo.name}\n".encode())
    names = [f"{source.weight:g}*{source.kind}:{source.path.name}" for source in sources.parts]
    return {"fingerprint": digest.hexdigest(), "photos": len(sources), "sources": names}


def global_batches(
    config: TrainConfig, run: Run, sources: Sources, first_step: int, group: Group, left_out: set[LeftOut]
) -> Generator[list[Part], None, None]:
    """This process's parts of every global batch from `first_step` on, equal in size or different by one photo.

    What cannot be used is added to `left_out`. Raises `ValueError` if there are more parts than photos.
    """
    num_parts = group.size * run.accumulate
    if config.batch_size < num_parts:
        raise ValueError(
            f"a batch of {config.batch_size} photos cannot be shared by {group.size} processes in {run.accumulate} "
            f"parts each: use a --batch-size of at least {num_parts}"
        )
    return _loaded(config, run, sources, range(first_step, config.steps), group, left_out)


def _loaded(
    config: TrainConfig, run: Run, sources: Sources, steps: range, group: Group, left_out: set[LeftOut]
) -> Generator[list[Part], None, None]:
    num_parts = group.size * run.accumulate
    bounds = [config.batch_size * part // num_parts for part in range(num_parts + 1)]  # in a batch
    mine = range(group.rank * run.accumulate, (group.rank + 1) * run.accumulate)
    starts = [step * config.batch_size for step in steps]
    places = [range(start + bounds[part], start + bounds[part + 1]) for start in starts for part in mine]
    dataset = ObjectDataset(
        sources,
        num_objects=config.num_objects,
        augment_config=config.augment,
        sampler_config=config.sampler,
        seed=config.seed,
    )
    loader: DataLoader[Batch] = DataLoader(
        dataset,
        batch_sampler=[list(place) for place in places],
        num_workers=run.num_workers,
        collate_fn=collate,
        worker_init_fn=_start_worker,
        pin_memory=group.device.type == "cuda",
    )
    loaded = zip(places, watched(loader, left_out), strict=True)
    for _ in steps:
        yield [Part(place, batch.to(group.device)) for place, batch in itertools.islice(loaded, run.accumulate)]


def _start_worker(worker: int) -> None:
    ignore_stop_requests(worker)
    cv2.setNumThreads(0)  # the loader has one process for each core that it may use


def validation_sets(run: Run) -> list[ValidationSet]:
    """The data sets of `--validate`, otherwise the held-out photos, if there are any."""
    if run.validate:
        return [named_set(name, folder, run.validate_limit) for name, folder in run.validate]
    held_out = held_out_set(run.data, run.validate_limit)
    return [held_out] if held_out else []


def is_validation_step(step: int, config: TrainConfig, run: Run) -> bool:
    """Whether a validation follows step number `step`, counted from 1; one always follows the last step."""
    return step == config.steps or step % (run.validate_every or config.steps_per_epoch) == 0


def improved(
    state: TrainingState, sets: Sequence[ValidationSet], group: Group, log: RunLog, left_out: set[LeftOut]
) -> bool:
    """Validate; returns whether NoC@90 is the lowest of this run so far."""
    model = state.average.module if state.average else state.model
    state.validation = validate(model, sets, group, left_out)  # type: ignore[arg-type]
    state.validation_due = False
    log.validated(state.step, state.validation)
    noc = state.validation["NoC@90"]
    if state.best is not None and noc >= state.best:
        return False
    state.best = noc
    return True


class Saver:
    """Writes checkpoints, in the main process only, and knows when it last did."""

    def __init__(self, identity: Identity, run: Run, group: Group) -> None:
        self._identity = identity
        self._run = run
        self._is_main = group.is_main
        self._saved_step: int | None = None
        self._saved_at = time.monotonic()

    def save_if_due(self, state: TrainingState) -> None:
        if time.monotonic() - self._saved_at >= self._run.save_every_seconds:
            self.save(state)

    def save(self, state: TrainingState, *, best: bool = False) -> None:
        """A checkpoint of this step, unless there is one."""
        if self._is_main and state.step != self._saved_step:
            save_state(state, self._identity, self._run.output, self._run.keep, best=best)
        self._saved_step, self._saved_at = state.step, time.monotonic()
