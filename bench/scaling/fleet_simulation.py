"""A fleet of replicas and its annotators as events in time: no HTTP, no network, any number of annotators.

An annotator clicks, waits for the mask, thinks, clicks again; after a while comes a new photo. A photo's clicks go to
one replica by a consistent hash ring, as deploy/haproxy.cfg sends them. A replica does one thing at a time, clicks
before encodes, but after eight clicks in a row an encode that waits (as `backend/executor.py` on a CPU). A replica that
sees a photo for the first time encodes it; where that happens within an object, it also replays the earlier clicks.
"""

from __future__ import annotations

import heapq
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from backend.executor import MAX_OVERTAKING_CLICKS

POINTS = 1600  # of a replica on the ring, as weight 100 is in HAProxy


@dataclass(frozen=True)
class Times:
    """How long a replica's device is busy, in seconds, and where that is known from."""

    name: str
    encode: float
    click: float
    source: str


@dataclass(frozen=True)
class Pace:
    """How annotators work: mean seconds from a mask to the next click, seconds at a photo, clicks on an object."""

    think: float = 3.0
    photo: float = 60.0
    clicks_per_object: int = 5


@dataclass(frozen=True)
class Plan:
    """A run: who clicks on what for how many seconds, and when a replica dies and returns with empty caches."""

    annotators: int
    replicas: int
    seconds: float
    pace: Pace = Pace()
    dies_at: float | None = None
    returns_at: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Served:
    """One click that was answered."""

    begin: float
    """Seconds since the start."""
    seconds: float
    first: bool
    """Whether the replica had to encode the photo for it."""


@dataclass(slots=True)
class _Annotator:
    """Where an annotator is."""

    photo: int
    place: float
    """Of the photo's task on the ring, in [0, 1)."""
    leaves_at: float
    clicks: int = 0
    """On the object so far."""


@dataclass(slots=True)
class _Click:
    """One click under way."""

    annotator: _Annotator
    begin: float
    first: bool = False
    replay: int = 0
    """Earlier clicks of the object that must be done again."""


@dataclass(slots=True, eq=False)
class _Device:
    """One replica: what it knows, what it does and what waits for it."""

    known: set[int] = field(default_factory=set)
    under_way: list[_Click] = field(default_factory=list)
    clicks: deque[_Click] = field(default_factory=deque)
    encodes: deque[int] = field(default_factory=deque)
    waiting: dict[int, list[_Click]] = field(default_factory=dict)
    """Clicks that need a photo's encode first."""
    busy: bool = False
    in_a_row: int = 0
    alive: bool = True


class Ring:
    """Which replica a key belongs to; those that are dead leave their keys to the next ones."""

    def __init__(self, replicas: int, seed: int = 0) -> None:
        rng = random.Random(f"ring {seed}")  # not the numbers that the keys are drawn from
        points = sorted((rng.random(), replica) for replica in range(replicas) for _ in range(POINTS))
        self._places = [place for place, _ in points]
        self._owners = [owner for _, owner in points]

    def owner(self, place: float, dead: frozenset[int] = frozenset()) -> int:
        """The replica of a key at `place` in [0, 1)."""
        point = bisect_left(self._places, place) % len(self._owners)
        while self._owners[point] in dead:
            point = (point + 1) % len(self._owners)
        return self._owners[point]


def simulate(times: Times, plan: Plan) -> list[Served]:
    """Every click that was answered, in the order of the answers. The same plan and seed give the same list.

    Everybody is at work when it begins, and their photos are known. Raises `ValueError` for a plan without annotators
    or replicas, or whose only replica dies.
    """
    if plan.annotators < 1 or plan.replicas < 1 or (plan.dies_at is not None and plan.replicas < 2):
        raise ValueError("a plan needs at least one annotator and one replica, and two replicas where one dies")
    return _Simulation(times, plan).run()


class _Simulation:
    """The state of a run. The first replica is the one that dies."""

    def __init__(self, times: Times, plan: Plan) -> None:
        self._times, self._plan = times, plan
        self._rng, self._ring = random.Random(plan.seed), Ring(plan.replicas, plan.seed)
        self._devices = [_Device() for _ in range(plan.replicas)]
        self._dead: frozenset[int] = frozenset()
        self._photos, self._order = count(), count()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._served: list[Served] = []

    def run(self) -> list[Served]:
        for _ in range(self._plan.annotators):
            photo, place = next(self._photos), self._rng.random()
            self._devices[self._ring.owner(place)].known.add(photo)
            leaves_at = self._rng.uniform(0, self._plan.pace.photo)  # nobody changes photos with all the others
            self._think(_Annotator(photo, place, leaves_at), 0.0)
        if self._plan.dies_at is not None:
            self._at(self._plan.dies_at, self._die)
        if self._plan.returns_at is not None:
            self._at(self._plan.returns_at, self._return)
        while self._events:
            moment, _, event = heapq.heappop(self._events)
            event(moment)
        return self._served

    def _at(self, moment: float, event: Callable[[float], None]) -> None:
        if moment <= self._plan.seconds:
            heapq.heappush(self._events, (moment, next(self._order), event))

    def _think(self, annotator: _Annotator, now: float) -> None:
        self._at(now + self._rng.expovariate(1 / self._plan.pace.think), partial(self._click, annotator))

    def _click(self, annotator: _Annotator, now: float) -> None:
        if now >= annotator.leaves_at:
            annotator.photo, annotator.place = next(self._photos), self._rng.random()
            annotator.leaves_at, annotator.clicks = now + self._plan.pace.photo, 0
        annotator.clicks = annotator.clicks % self._plan.pace.clicks_per_object + 1
        self._send(_Click(annotator, now), now)

    def _send(self, click: _Click, now: float) -> None:
        device, photo = self._devices[self._ring.owner(click.annotator.place, self._dead)], click.annotator.photo
        if photo in device.known:
            device.clicks.append(click)
        else:
            click.first, click.replay = True, click.annotator.clicks - 1
            device.encodes.append(photo)
            device.waiting[photo] = [click]  # one annotator to a photo, so one click at a time
        self._start(device, now)

    def _start(self, device: _Device, now: float) -> None:
        if device.busy:
            return
        if device.clicks and not (device.encodes and device.in_a_row >= MAX_OVERTAKING_CLICKS):
            click = device.clicks.popleft()
            device.busy, device.in_a_row, device.under_way = True, device.in_a_row + 1, [click]
            self._at(now + self._times.click * (1 + click.replay), partial(self._clicked, device, click))
        elif device.encodes:
            device.busy, device.in_a_row = True, 0
            self._at(now + self._times.encode, partial(self._encoded, device, device.encodes.popleft()))

    def _encoded(self, device: _Device, photo: int, now: float) -> None:
        if not device.alive:  # what it was at never ends
            return
        device.known.add(photo)
        device.clicks.extend(device.waiting.pop(photo))
        device.busy = False
        self._start(device, now)

    def _clicked(self, device: _Device, click: _Click, now: float) -> None:
        if not device.alive:
            return
        device.busy, device.under_way = False, []
        self._served.append(Served(click.begin, now - click.begin, click.first))
        self._think(click.annotator, now)
        self._start(device, now)

    def _die(self, now: float) -> None:
        lost, self._devices[0], self._dead = self._devices[0], _Device(), frozenset({0})
        lost.alive = False
        for click in [*lost.under_way, *lost.clicks, *(click for some in lost.waiting.values() for click in some)]:
            self._send(click, now)  # as HAProxy does

    def _return(self, now: float) -> None:
        self._dead = frozenset()
