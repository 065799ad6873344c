"""For the operator: Prometheus metrics and one log line per request, without tokens, bodies and queries."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections import Counter as Counted
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import get_args

from flask import Flask, Response, g, request
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from backend.factory import Service
from backend.finetune.job_store import State
from backend.finetune.scheduler import Training
from backend.readiness import Readiness
from skipclick import __version__

logger = logging.getLogger("backend.requests")

_SANE_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 100)


class Telemetry:
    """Metrics of one app, in its own registry."""

    def __init__(self, readiness: Readiness, training: Training | None = None) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # process_resident_memory_bytes, process_cpu_seconds_total, ...
        self._registry.register(_ServiceCollector(readiness, training))
        self._requests = Counter(
            "skipclick_requests", "Requests answered", ["route", "status"], registry=self._registry
        )
        self._latency = Histogram(
            "skipclick_request_seconds",
            "Time to answer",
            ["route", "status"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._stages = Histogram(
            "skipclick_stage_seconds",
            "Time in one stage of a prediction",
            ["stage"],
            buckets=_SECONDS,
            registry=self._registry,
        )

    def record(
        self, request_id: str, route: str, status: int, milliseconds: float, facts: Mapping[str, object]
    ) -> None:
        """Count a request and log its line. `facts` may hold "stages", milliseconds by stage."""
        stages = facts.get("stages")
        shown: dict[str, object] = {"id": request_id, "route": route, "status": status, "ms": round(milliseconds, 1)}
        shown |= {name: value for name, value in facts.items() if name != "stages"}
        if isinstance(stages, Mapping):
            for stage, duration in stages.items():
                self._stages.labels(stage).observe(duration / 1000)
                shown[f"{stage}_ms"] = round(duration, 1)
        self._requests.labels(route, str(status)).inc()
        self._latency.labels(route, str(status)).observe(milliseconds / 1000)
        line = " ".join(f"{name}={one_line(value)}" for name, value in shown.items())
        logger.info("%s", line, extra={"facts": shown})

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


def observe_requests(app: Flask, telemetry: Telemetry) -> None:
    """Give every request an id and a place for facts, and at the end its metrics and log line."""

    @app.before_request
    def begin() -> None:
        given = request.headers.get("X-Request-ID", "")  # from a proxy, so that both logs have the same id
        g.request_id = given if _SANE_ID.fullmatch(given) else secrets.token_hex(6)
        g.begin, g.facts = time.perf_counter(), {}
        g.at_the_end = ExitStack()

    @app.teardown_request
    def clean_up(_: BaseException | None) -> None:
        at_the_end = g.pop("at_the_end", None)
        if at_the_end is not None:
            at_the_end.close()

    @app.after_request
    def end(response: Response) -> Response:
        route = request.url_rule.rule if request.url_rule else "unknown"
        milliseconds = (time.perf_counter() - g.begin) * 1000
        telemetry.record(g.request_id, route, response.status_code, milliseconds, g.facts)
        response.headers["X-Request-ID"] = g.request_id
        stages = g.facts.get("stages", {})
        if stages:  # shown by browsers' developer tools and the page /ui
            response.headers["Server-Timing"] = ", ".join(f"{name};dur={ms:.1f}" for name, ms in stages.items())
        return response


def one_line(value: object) -> str:
    """A value as text for a log line: what clients send must not start new lines."""
    return " ".join(str(value).split())[:1000]


class _ServiceCollector(Collector):
    """Collects figures from the parts of the service on request, so that nothing is counted twice."""

    def __init__(self, readiness: Readiness, training: Training | None) -> None:
        self._readiness = readiness
        self._training = training

    def collect(self) -> Iterator[Metric]:
        trouble = self._readiness.trouble()
        yield GaugeMetricFamily("skipclick_ready", "1 if new requests are welcome", 1 if trouble is None else 0)
        folders = len(self._readiness.folder_troubles())
        yield GaugeMetricFamily("skipclick_folders_in_trouble", "Folders in which nothing can be kept", folders)
        if self._training is not None:
            yield from _trainings(self._training)
        service = self._readiness.loaded()
        if service is None:
            return
        yield _model(service)
        yield from _caches(service)
        encodes = CounterMetricFamily(
            "skipclick_encodes",
            "Looks of the network: at photos, at crops, and at crops ahead of a click",
            labels=["kind"],
        )
        for kind, count in service.annotator.encodes().items():
            encodes.add_metric([kind], count)
        yield encodes
        queue = GaugeMetricFamily("skipclick_queue_length", "Work that waits for the device", labels=["priority"])
        for priority, length in service.annotator.queue().items():
            queue.add_metric([priority], length)
        yield queue
        memory = GaugeMetricFamily("skipclick_device_memory_bytes", "Memory of the GPU", labels=["kind"])
        for kind, size in service.device_memory().items():
            memory.add_metric([kind], size)
        yield memory


def _model(service: Service) -> Metric:
    facts = {
        "version": __version__,
        "model": service.annotator.version,
        "device": service.device,
        "runtime": service.runtime,
        "dtype": service.dtype,
        "resolution": f"{service.resolution[0]}x{service.resolution[1]}",
    }
    metric = GaugeMetricFamily("skipclick_model_info", "What serves, in labels; always 1", labels=list(facts))
    metric.add_metric(list(facts.values()), 1)
    return metric


def _trainings(training: Training) -> Iterator[Metric]:
    jobs = training.jobs.newest_of_each()
    states = Counted(job.state for job in jobs)
    metric = GaugeMetricFamily(
        "skipclick_training_projects", "Projects by the state of their newest training", labels=["state"]
    )
    for state in get_args(State):
        metric.add_metric([state], states[state])
    yield metric
    nocs = GaugeMetricFamily(
        "skipclick_training_noc",
        "Mean clicks for a held-out object, as a training of the project measured them last",
        labels=["project", "measure"],
    )
    for job in jobs:
        for measure, clicks in training.jobs.last_noc(job.project).items():
            nocs.add_metric([str(job.project), measure], clicks)
    yield nocs


def _caches(service: Service) -> Iterator[Metric]:
    stats = service.annotator.cache_stats()
    for name in ("hits", "misses", "evictions"):
        counter = CounterMetricFamily(f"skipclick_cache_{name}", f"Cache {name}", labels=["cache"])
        for cache, one in stats.items():
            counter.add_metric([cache], getattr(one, name))
        yield counter
    for name in ("entries", "bytes"):
        gauge = GaugeMetricFamily(f"skipclick_cache_{name}", f"Cache {name} now", labels=["cache"])
        for cache, one in stats.items():
            gauge.add_metric([cache], getattr(one, name))
        yield gauge
