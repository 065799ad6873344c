"""Protects the load test: bodies as Label Studio sends them, bounds, honest counting of failures, and its files."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from werkzeug.serving import make_server

from backend.annotator import Annotator
from backend.settings import Settings
from backend.web.app import create_app
from bench.serving.load import Load, Sent, Target, Workload, draw, image_server, main, measure
from tests.support.fakes import FlatImages

MakeAnnotator = Callable[..., Annotator]


@contextmanager
def backend(annotator: Annotator, **settings: Any) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, create_app(Settings(**settings), annotator), threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_session_against_a_server(make_annotator: MakeAnnotator, tmp_path: Path) -> None:
    urls = [f"/data/upload/1/{place}.jpg" for place in range(3)]
    with backend(make_annotator(), basic_auth_user="me", basic_auth_pass="secret") as url:
        target = Target(url, urls, [(120, 160)] * 3, login=("me", "secret"))
        load = measure(target, Workload(4, clicks=60, seconds=30.0, think=0.0))
    assert len(load.sent) == 60
    assert load.failures == {}
    assert 4 <= len(load.latencies(first=True)) <= 12
    assert load.cache_hit_rate is not None
    assert 0.7 < load.cache_hit_rate < 1  # three misses
    assert load.summary()["clicks_per_second"] > 0
    draw(load, tmp_path / "load.png")
    assert Image.open(tmp_path / "load.png").size[0] > 1000


def test_failures_are_counted_and_drawn(make_annotator: MakeAnnotator, tmp_path: Path) -> None:
    images = FlatImages(sizes={"/a.jpg": (10, 10)})
    with backend(make_annotator(images=images)) as url:
        load = measure(Target(url, ["/a.jpg"], [(120, 160)]), Workload(2, clicks=5, seconds=30, think=0.001))
    assert load.failures == {400: 5}
    assert load.latencies(first=True) == []
    assert "failed requests: 5 x status 400" in "\n".join(load.lines())
    draw(load, tmp_path / "load.png")
    assert (tmp_path / "load.png").stat().st_size > 1000


def test_the_summary_in_words() -> None:
    sent = [Sent(place / 10, 10.0 * place, 200, place == 0, 2 if place == 50 else 1) for place in range(101)]
    load = Load(8, 0.0, 10.1, sent, 0.5)
    first, *_, later, second, cache, failed = load.lines()
    assert first == "8 annotators in a closed loop: 10.0 clicks/s in 10 s"
    assert later == "later clicks, ms: p50 505, p90 901, p95 950, p99 990"
    assert second == "of these, an object's second, ms: p50 500, p90 500, p95 500, p99 500"
    assert cache.endswith("50.0 %")
    assert failed.endswith("none")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--url", "http://example.com:9090"], "is not on this machine"),
        (["--url", "http://localhost:9"], "is the server running"),
        (["--spawn", "--annotators", "1000"], "at most 256 --annotators"),
        (["--spawn", "--seconds", "3601"], "at most 3600"),
        (["--spawn", "--think", "nan"], "not negative"),
        (["--spawn", "--images", "nowhere"], "holds 0 images"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--size", "1080p"], "'1080p' is not a size such as 1920x1080"),
        (["--seconds", "inf"], "'inf' is not a positive number"),
        (["--clicks", "0"], "'0' is not a positive number"),
    ],
)
def test_malformed_options_are_refused_with_exit_code_2(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        main(["--spawn", *arguments])
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line


def test_the_stand_in_for_label_studio_gives_files(make_annotator: MakeAnnotator) -> None:
    import requests

    with image_server({"/data/upload/1/0.jpg": b"jpeg"}) as url:
        assert requests.get(f"{url}/data/upload/1/0.jpg", timeout=5).content == b"jpeg"
        assert requests.get(f"{url}/data/upload/1/1.jpg", timeout=5).status_code == 404


@pytest.mark.slow
def test_a_server_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DTYPE", "float32")
    output = tmp_path / "load"
    size = ["--size", "320x240", "--photos", "2"]
    assert main(["--spawn", "--annotators", "2", "--clicks", "8", *size, "--output", str(output)]) == 0
    written = json.loads(output.with_suffix(".json").read_text())
    assert len(written["sent"]) == 8
    assert written["summary"]["failures"] == {}
    assert written["summary"]["peak_bytes"] is None or written["summary"]["peak_bytes"] > 100 << 20
    assert output.with_suffix(".png").exists()
