"""Training samples: views of photos drawn from the sources, each with targets and the clicks it starts from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from train.augment import AugmentConfig, augment
from train.sampler import ObjectSample, Points, SamplerConfig, sample_object, sample_points, with_stuff
from train.scene import Scene
from train.sources import Sources

MAX_BROKEN_SHARE = 0.01
MAX_BROKEN_AT_LEAST = 3
MAX_TRIES = 20


@dataclass(frozen=True)
class Batch:
    """B photos with K objects each; all tensors on one device."""

    image: Tensor  # (B, 3, H, W) uint8
    target: Tensor  # (B * K, H, W) int8: 1 object, 0 background, -1 ignored
    positives: Tensor  # (B * K, NUM_SLOTS, 2) float32 (row, column), padded with -1
    negatives: Tensor  # the same
    broken: tuple[str, ...] = ()  # photos that could not be read and were passed over: what was wrong with them

    def to(self, device: torch.device) -> Batch:
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """In memory that a GPU can copy from by itself; torch's loader asks for it."""
        return self._changed(Tensor.pin_memory)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors = (self.image, self.target, self.positives, self.negatives)
        image, target, positives, negatives = map(change, tensors)
        return Batch(image, target, positives, negatives, self.broken)


@dataclass(frozen=True)
class View:
    """What a sample sees of a photo."""

    name: str
    image: NDArray[np.uint8]  # RGB (H, W, 3)
    scene: Scene
    broken: tuple[str, ...]  # what was wrong with photos that had been drawn before it


class ObjectDataset(Dataset[Batch]):
    """An endless sequence of training samples; sample `position` depends on (seed, position) and nothing else.

    So a run is the same for any number of workers, and continues where it stopped. Where a photo cannot be read,
    another one is drawn.
    """

    def __init__(
        self,
        sources: Sources,
        *,
        num_objects: int,
        augment_config: AugmentConfig,
        sampler_config: SamplerConfig,
        seed: int,
    ) -> None:
        self.sources = sources
        self.num_objects = num_objects
        self.augment_config = augment_config
        self.sampler_config = sampler_config
        self.seed = seed

    def __getitem__(self, position: int) -> Batch:
        view, samples = self.draw(position)
        return Batch(
            torch.from_numpy(view.image).permute(2, 0, 1),
            torch.from_numpy(np.stack([chosen.target for chosen, _ in samples])),
            torch.from_numpy(np.stack([points.positives for _, points in samples])),
            torch.from_numpy(np.stack([points.negatives for _, points in samples])),
            view.broken,
        )

    def draw(self, position: int) -> tuple[View, list[tuple[ObjectSample, Points]]]:
        """What a sample is made of: a view, and its objects with their clicks."""
        rng = np.random.default_rng((self.seed, position))
        view = self._draw_view(rng)
        samples = []
        for _ in range(self.num_objects):
            chosen = sample_object(view.scene, self.sampler_config, rng)
            samples.append((chosen, sample_points(chosen, self.sampler_config, rng)))
        return view, samples

    def _draw_view(self, rng: np.random.Generator) -> View:
        """A view of a random photo. Raises ValueError where one photo after the other is broken."""
        broken: list[str] = []
        while True:
            photo = self.sources.draw(rng)
            try:
                image, scene = photo.load()
                break
            except ValueError as error:
                broken.append(str(error))
                if len(broken) == MAX_TRIES:
                    raise
        image, scene = self._augmented(image, with_stuff(scene, self.sampler_config, rng), rng)
        return View(photo.name, image, scene, tuple(broken))

    def _augmented(
        self, image: NDArray[np.uint8], scene: Scene, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], Scene]:
        """Draws again until an object is left in the view, save for a small share of background views."""
        for _ in range(self.sampler_config.max_draws):
            new_image, new_scene = augment(image, scene, self.augment_config, rng)
            if any(new_scene.areas) or rng.random() < self.sampler_config.keep_background_prob:
                break
        return new_image, new_scene


def collate(samples: Sequence[Batch]) -> Batch:
    """Joins single samples into a batch; objects of one photo stay adjacent."""
    return Batch(
        torch.stack([s.image for s in samples]),
        torch.cat([s.target for s in samples]),
        torch.cat([s.positives for s in samples]),
        torch.cat([s.negatives for s in samples]),
        tuple(reason for s in samples for reason in s.broken),
    )


def watched(batches: Iterable[Batch], num_photos: int) -> Iterator[Batch]:
    """The batches, while each broken photo is named on standard error once.

    Raises ValueError when more than 1 % of the photos, and more than three, have turned out to be broken.
    """
    broken: set[str] = set()
    for batch in batches:
        for reason in sorted(set(batch.broken) - broken):
            broken.add(reason)
            tqdm.write(f"train: passed over ({len(broken)} of {num_photos} photos): {reason}", file=sys.stderr)
        if len(broken) > max(MAX_BROKEN_AT_LEAST, MAX_BROKEN_SHARE * num_photos):
            raise ValueError(f"{len(broken)} of {num_photos} photos are broken, the last one: {reason}")
        yield batch
