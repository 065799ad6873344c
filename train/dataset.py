"""Training samples: views of photos drawn from the sources, each with targets and the clicks it starts from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from skipclick.evaluation.datasets.left_out import LeftOut, describe_left_out, left_out_for
from train.augment import AugmentConfig, augment
from train.sampler import ObjectSample, Points, SamplerConfig, sample_object, sample_points, with_stuff
from train.scene import Scene
from train.sources import Photo, Sources

NO_USABLE = "none of the photo's annotations can be used"
MAX_TRIES = 20  # photos drawn at random for a sample, before all are tried in order


@dataclass(frozen=True)
class ObjectBatch:
    """N objects with their clicks; all tensors on one device."""

    target: Tensor  # (N, H, W) int8: 1 object, 0 background, -1 ignored
    positives: Tensor  # (N, NUM_SLOTS, 2) float32 (row, column), padded with -1
    negatives: Tensor  # the same

    def to(self, device: torch.device) -> Self:
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """In page-locked memory; called by torch's loader."""
        return self._changed(Tensor.pin_memory)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        tensors = {one.name: getattr(self, one.name) for one in fields(self)}
        return replace(self, **{name: change(value) for name, value in tensors.items() if isinstance(value, Tensor)})


@dataclass(frozen=True)
class Batch(ObjectBatch):
    """B photos with K objects each, N = B * K; objects of a photo are adjacent."""

    image: Tensor  # (B, 3, H, W) uint8
    left_out: tuple[LeftOut, ...] = ()  # photos and annotations that cannot be used


@dataclass(frozen=True)
class PhotoView:
    """A sample's view of a photo."""

    name: str
    image: NDArray[np.uint8]  # RGB (H, W, 3)
    scene: Scene
    left_out: tuple[LeftOut, ...]  # of the photo, and of unusable ones drawn before it


class ObjectDataset(Dataset[Batch]):
    """An endless sequence of training samples; sample `position` depends on (seed, position) and nothing else.

    So a run is the same for any number of workers, and continues where it stopped. If a photo cannot be read, or none
    of its annotations can be used, another one is drawn.
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
            target=torch.from_numpy(np.stack([chosen.target for chosen, _ in samples])),
            positives=torch.from_numpy(np.stack([points.positives for _, points in samples])),
            negatives=torch.from_numpy(np.stack([points.negatives for _, points in samples])),
            image=torch.from_numpy(view.image).permute(2, 0, 1),
            left_out=view.left_out,
        )

    def draw(self, position: int) -> tuple[PhotoView, list[tuple[ObjectSample, Points]]]:
        """A view, and its objects with their clicks, of which a sample is made."""
        rng = np.random.default_rng((self.seed, position))
        view = self._draw_view(rng)
        samples = []
        for _ in range(self.num_objects):
            chosen = sample_object(view.scene, self.sampler_config, rng)
            samples.append((chosen, sample_points(chosen, self.sampler_config, rng)))
        return view, samples

    def _draw_view(self, rng: np.random.Generator) -> PhotoView:
        """A view of a random photo. Raises ValueError if no photo can be used."""
        left_out: list[LeftOut] = []
        for photo in self._photos(rng):
            try:
                image, scene = photo.load()
            except ValueError as error:
                left_out.append(left_out_for(error))
                continue
            left_out += scene.left_out
            if scene.objects or not scene.left_out:
                break
            left_out.append(LeftOut(NO_USABLE, photo.name))
        else:
            raise ValueError(f"none of the {len(self.sources)} photos can be used, the last: {left_out[-1].example}")
        image, scene = self._augmented(image, with_stuff(scene, self.sampler_config, rng), rng)
        return PhotoView(photo.name, image, scene, tuple(left_out))

    def _photos(self, rng: np.random.Generator) -> Iterator[Photo]:
        """Photos to try: some at random, and then all in order, so that a usable one is found if there is any."""
        for _ in range(MAX_TRIES):
            yield self.sources.draw(rng)
        for source in self.sources.parts:
            yield from source.photos

    def _augmented(
        self, image: NDArray[np.uint8], scene: Scene, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], Scene]:
        """A view, drawn again until it shows an object, except for a small share of background views."""
        for _ in range(self.sampler_config.max_draws):
            new_image, new_scene = augment(image, scene, self.augment_config, rng)
            if any(new_scene.areas) or rng.random() < self.sampler_config.keep_background_prob:
                break
        return new_image, new_scene


def collate(samples: Sequence[Batch]) -> Batch:
    """Joins single samples into a batch; objects of one photo stay adjacent."""
    return Batch(
        target=torch.cat([s.target for s in samples]),
        positives=torch.cat([s.positives for s in samples]),
        negatives=torch.cat([s.negatives for s in samples]),
        image=torch.stack([s.image for s in samples]),
        left_out=tuple(one for s in samples for one in s.left_out),
    )


def watched(batches: Iterable[Batch], left_out: set[LeftOut]) -> Iterator[Batch]:
    """The batches. What they leave out is added to `left_out`, and the first of each reason named on standard error.

    However much that is: a run only fails if no photo can be used any more.
    """
    reasons = {one.reason for one in left_out}
    for batch in batches:
        for one in batch.left_out:
            if one.reason not in reasons:
                reasons.add(one.reason)
                tqdm.write(f"train: left out from now on: {one.reason}, for example {one.example}", file=sys.stderr)
            left_out.add(one)
        yield batch


def report_left_out(things: Iterable[LeftOut]) -> None:
    """A line for each reason on standard error."""
    for line in describe_left_out(sorted(things, key=lambda one: (one.reason, one.example))):
        tqdm.write(f"train: left out: {line}", file=sys.stderr)
