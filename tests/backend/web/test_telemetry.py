"""Protects the metrics: what they are called, and that the dashboard asks for nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from backend.annotator import Annotator
from backend.factory import Service
from backend.finetune.job_store import Job, Jobs, write_job
from backend.finetune.scheduler import Training
from backend.finetune.store import AnnotationStore
from backend.readiness import Readiness
from backend.settings import Settings
from backend.web.app import build_app
from tests.support.recorded import clicked_bodies

DASHBOARD = json.loads((Path(__file__).parents[3] / "deploy" / "grafana.json").read_text(encoding="utf-8"))


@pytest.fixture
def client(annotator: Annotator, tmp_path: Path) -> FlaskClient:
    """A server that learns. Project 3 was trained once, and waits for its second training; 4 failed."""
    jobs = Jobs(tmp_path)
    first = jobs.enqueue(3, "the test", 0)
    write_job(jobs.path(first), replace(first, state="done", noc={"NoC@85": 2.25, "NoC@90": 3.5}))
    jobs.enqueue(3, "the test", 0)
    write_job(jobs.path(Job(4, 1, "the test", "")), Job(4, 1, "the test", "", state="failed"))
    rules = {"automatic": True, "after_objects": 20, "quiet_seconds": 60.0}
    training = Training(AnnotationStore(tmp_path), jobs, **rules)  # type: ignore[arg-type]
    return build_app(Settings(), Readiness.of(Service(annotator)), training).test_client()


def series(client: FlaskClient) -> dict[str, set[str]]:
    """Names of all series that a scrape gives, or announces, with their labels."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        found.setdefault(family.name, set())
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def queries(part: Any) -> list[str]:
    """All Prometheus queries below a part of the dashboard."""
    if isinstance(part, list):
        return [query for child in part for query in queries(child)]
    if not isinstance(part, dict):
        return []
    own = [part["expr"]] if "expr" in part else []
    return own + [query for child in part.values() for query in queries(child)]


def test_the_dashboard_asks_for_metrics_that_exist(client: FlaskClient) -> None:
    for body in clicked_bodies("04"):
        client.post("/predict", json=body)
    known = series(client)
    asked = queries(DASHBOARD["panels"])
    assert len(asked) >= len(DASHBOARD["panels"])
    for query in asked:
        names = re.findall(r"\b(?:skipclick|process)_\w+", query)
        assert names, query
        assert not set(names) - known.keys(), query
        for label in re.findall(r"by \(([\w, ]+)\)", query):
            used = {one.strip() for one in label.split(",")}
            if "skipclick_device_memory_bytes" not in names:  # without a GPU it is announced, but has no series
                assert used <= set().union(*(known[name] for name in names)), query


def test_every_metric_of_ours_is_on_the_dashboard_or_is_a_detail(client: FlaskClient) -> None:
    client.post("/predict", json=clicked_bodies("03")[0])
    ours = {name for name in series(client) if name.startswith("skipclick_")}
    shown = {name for query in queries(DASHBOARD["panels"]) for name in re.findall(r"skipclick_\w+", query)}
    families = {re.sub(r"_(total|created|count|sum|bucket)$", "", name) for name in ours}
    missing = {family for family in families if not any(name.startswith(family) for name in shown)}
    assert missing == {"skipclick_cache_entries"}


def test_the_page_of_the_docs_lists_the_metrics(client: FlaskClient) -> None:
    client.post("/predict", json=clicked_bodies("03")[0])
    page = (Path(__file__).parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")
    listed = set()
    for name in re.findall(r"`(skipclick_[\w{},]+)`", page):
        head, _, rest = name.partition("{")
        choices, _, tail = rest.partition("}")
        listed |= {f"{head}{choice}{tail}" for choice in choices.split(",")} if rest else {name}
    families = {re.sub(r"_(created|count|sum|bucket)$", "", name) for name in series(client)}
    assert listed <= families
    assert {name for name in families if name.startswith("skipclick_")} - listed <= {
        name.removesuffix("_total") for name in listed
    }


def test_the_panels_have_titles_units_and_places() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_what_a_scrape_says(client: FlaskClient) -> None:
    client.post("/predict", json=clicked_bodies("03")[0])
    client.get("/nothing")
    text = client.get("/metrics").text
    for line in (
        "skipclick_ready 1.0",
        'skipclick_requests_total{route="/predict",status="200"} 1.0',
        'skipclick_requests_total{route="unknown",status="404"} 1.0',
        'skipclick_request_seconds_count{route="/predict",status="200"} 1.0',
        'skipclick_stage_seconds_count{stage="click"} 1.0',
        'skipclick_cache_evictions_total{cache="features"} 0.0',
        'skipclick_queue_length{priority="click"} 0.0',
        'skipclick_training_projects{state="queued"} 1.0',
        'skipclick_training_projects{state="running"} 0.0',
        'skipclick_training_projects{state="failed"} 1.0',
        'skipclick_training_noc{measure="NoC@85",project="3"} 2.25',
        "process_resident_memory_bytes ",
    ):
        assert line in text
    assert re.search(r'skipclick_model_info\{[^}]*model="discs-1"[^}]*\} 1.0', text)
