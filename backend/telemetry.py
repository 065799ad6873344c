"""What the server tells its operator: Prometheus metrics and one log line per request. Never tokens,
bodies, queries."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from skipclick.features import CacheStats

logger = logging.getLogger("backend.requests")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 100)


class Telemetry:
    """Metrics of one app, in a registry of its own."""

    def __init__(self, cache_stats: Callable[[], Mapping[str, CacheStats]]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_CacheCollector(cache_stats))
        self._requests = Counter(
            "skipclick_requests", "Requests answered", ["route", "status"], registry=self._registry
        )
        self._latency = Histogram(
            "skipclick_request_seconds",
            "Time to answer",
            ["route"],
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
        shown = {name: value for name, value in facts.items() if name != "stages"}
        if isinstance(stages, Mapping):
            for stage, duration in stages.items():
                self._stages.labels(stage).observe(duration / 1000)
                shown[f"{stage}_ms"] = f"{duration:.1f}"
        self._requests.labels(route, str(status)).inc()
        self._latency.labels(route).observe(milliseconds / 1000)
        logger.info(
            "id=%s route=%s status=%d ms=%.1f%s",
            request_id,
            route,
            status,
            milliseconds,
            "".join(f" {name}={one_line(value)}" for name, value in shown.items()),
        )

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


def one_line(value: object) -> str:
    """Text of a value for a log line: what clients send must not begin lines of its own."""
    return " ".join(str(value).split())[:1000]


class _CacheCollector(Collector):
    """Reads the caches' own statistics when asked, so that nothing has to be counted twice."""

    def __init__(self, cache_stats: Callable[[], Mapping[str, CacheStats]]) -> None:
        self._cache_stats = cache_stats

    def collect(self) -> Iterator[Metric]:
        counters = {
            name: CounterMetricFamily(f"skipclick_cache_{name}", f"Cache {name}", labels=["cache"])
            for name in ("hits", "misses", "evictions")
        }
        gauges = {
            name: GaugeMetricFamily(f"skipclick_cache_{name}", f"Cache {name} now", labels=["cache"])
            for name in ("entries", "bytes")
        }
        for cache, stats in self._cache_stats().items():
            for name, metric in (counters | gauges).items():
                metric.add_metric([cache], getattr(stats, name))
        yield from (counters | gauges).values()
