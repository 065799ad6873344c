"""What is left out of a data set: photos, annotations and records, each with its reason, to be counted at the end.

An unusable one never affects others, and nothing is left out silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

PhotoT = TypeVar("PhotoT", covariant=True)


@dataclass(frozen=True)
class LeftOut:
    """Something that is not used, and why."""

    reason: str
    """Without names and numbers, so that the same reason has the same words everywhere."""
    example: str
    """A photo or an annotation's place in its file; of several, the first one."""
    count: int = 1


@dataclass(frozen=True)
class Listing(Generic[PhotoT]):
    """What a data set's files name: the photos, in their order, and what cannot be used as far as the files tell."""

    photos: Sequence[PhotoT]
    left_out: Sequence[LeftOut] = ()


class UnusableError(ValueError):
    """A photo or a mask cannot be used. `reason`: without names and numbers, to count by."""

    def __init__(self, message: str, reason: str = "the photo or its masks cannot be used") -> None:
        super().__init__(message)
        self.reason = reason


def left_out_for(error: ValueError) -> LeftOut:
    """The photo that could not be read; the example is the error's whole sentence, which names it."""
    return LeftOut(error.reason if isinstance(error, UnusableError) else UnusableError("").reason, str(error))


def count_by_reason(things: Iterable[LeftOut]) -> list[LeftOut]:
    """One for each reason: its first example, and how many there are."""
    found: dict[str, LeftOut] = {}
    for one in things:
        known = found.get(one.reason)
        found[one.reason] = one if known is None else replace(known, count=known.count + one.count)
    return list(found.values())


def describe_left_out(things: Iterable[LeftOut]) -> list[str]:
    """A line for each reason: how many, why, and an example."""
    return [f"{one.count:,} × {one.reason}, for example {one.example}" for one in count_by_reason(things)]
