"""Protects the figures of docs/scaling.md: the simulation agrees with queueing theory where there is a formula, a
replica's death moves its own photos only, and the stub replica behaves as the simulation assumes."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.scaling.balancer import Names
from bench.scaling.capacity import TIMES, find_need, times_of
from bench.scaling.fleet_simulation import Pace, Plan, Ring, Times, simulate
from bench.scaling.scale import main
from bench.scaling.stub_fleet import click_body
from bench.scaling.stub_replica import ENCODED, build
from tests.support.processes import descendants, is_running

ROOT = Path(__file__).parents[3]

STAYING = Pace(think=3.0, photo=1e9)
FAST = Times("a device", encode=0.030, click=0.005, source="a test")


def test_waiting_for_clicks_is_as_long_as_theory_says() -> None:
    """Clicks of many annotators come at random and all take as long: a queue M/D/1 waits s * rho / (2 (1 - rho))."""
    served = simulate(FAST, Plan(360, 1, 300.0, STAYING))
    rho = 360 / 3.0 * FAST.click
    expected = FAST.click * (1 + rho / (2 * (1 - rho)))
    assert np.mean([one.seconds for one in served]) == pytest.approx(expected, rel=0.03)
    assert not any(one.first for one in served)


def test_where_there_are_replicas_enough_hardly_anybody_waits() -> None:
    """Which could not be if photos and replicas were drawn from the same random numbers."""
    served = simulate(FAST, Plan(1000, 40, 30.0, STAYING))
    assert np.mean([one.seconds for one in served]) == pytest.approx(FAST.click, rel=0.05)


def test_annotators_click_and_change_photos_at_their_pace() -> None:
    served = simulate(FAST, Plan(300, 4, 240.0))
    assert len(served) == pytest.approx(300 * 240 / 3.0, rel=0.03)
    firsts = sum(one.first for one in served)
    assert firsts == pytest.approx(300 * 240 / 62, rel=0.05)  # a minute, and the click after it
    assert min(one.seconds for one in served if one.first) >= FAST.encode + FAST.click - 1e-9
    assert served == simulate(FAST, Plan(300, 4, 240.0))


def test_who_loses_a_replica_waits_for_an_encode_and_the_clicks_again() -> None:
    slow = Times("a device", encode=1.0, click=0.1, source="a test")
    served = simulate(slow, Plan(8, 2, 90.0, STAYING, dies_at=30.0, returns_at=60.0))
    assert {one.first for one in served if one.begin < 29} == {False}
    first = [one for one in served if one.first]
    assert 2 <= len(first) <= 16  # the lost photos, once at the death and once at the return
    assert min(one.begin for one in first) > 28
    assert max(one.seconds for one in first) > 1.0 + 2 * 0.1  # some were in the middle of an object


@settings(max_examples=30)
@given(st.integers(2, 6), st.integers(0, 1000), st.data())
def test_a_death_moves_only_the_dead_replica_s_keys(replicas: int, seed: int, data: st.DataObject) -> None:
    ring, dead = Ring(replicas, seed), data.draw(st.integers(0, replicas - 1))
    rng = random.Random(seed)
    for place in (rng.random() for _ in range(100)):
        before, after = ring.owner(place), ring.owner(place, frozenset({dead}))
        assert after != dead
        assert before in (dead, after)


def test_the_ring_s_shares_are_nearly_equal() -> None:
    ring = Ring(8)
    shares = np.bincount([ring.owner(place) for place in np.linspace(0, 1, 20_000, endpoint=False)])
    assert shares.max() / shares.min() < 1.2


def test_what_is_needed_is_enough_and_one_less_is_not() -> None:
    found = find_need(FAST, 1000, 30.0, Pace(), later_ms=100, first_ms=500)
    replicas = found.enough.replicas
    assert found.enough.later["p95"] <= 100
    assert found.enough.first["p95"] <= 500
    assert found.after_a_death.replicas == replicas + 1
    assert found.after_a_death.first["p95"] > found.enough.first["p95"]
    fewer = simulate(FAST, Plan(1000, replicas - 1, 30.0))
    assert np.percentile([one.seconds for one in fewer if one.begin >= 3 and not one.first], 95) > 0.1
    with pytest.raises(ValueError, match="alone takes longer"):
        find_need(TIMES["vit-b-cpu"], 10, 30.0, Pace(), later_ms=100, first_ms=500)


def test_times_come_from_a_result_of_the_latency_benchmark(tmp_path: Path) -> None:
    setting = {"model": "vit-b", "resolution": 448, "device": "cuda", "dtype": "bfloat16"}
    rows = [{"setting": setting, "state": s, "total": {"median": m}} for s, m in (("warm", 4.0), ("cold", 29.0))]
    file = tmp_path / "latency.json"
    file.write_text(json.dumps({"stages": rows}))
    times = times_of(f"{file}:vit-b:448:cuda:bfloat16")
    assert (times.click, times.encode) == pytest.approx((0.004, 0.025))
    assert times.source == "measured, latency.json"
    for wrong, words in ((f"{file}:vit-b:896:cuda:bfloat16", "no stages of vit-b, 896"), ("fast", "none of gpu")):
        with pytest.raises(ValueError, match=words):
            times_of(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "--annotators", "0"], "'0' is not a positive number"),
        (["simulate", "--annotators", "1000001"], "at most 1,000,000"),
        (["measure", "--replicas", "0"], "'0' is not a positive number"),
        (["failure", "--seconds", "nan"], "'nan' is not a number of seconds from 1 to 3600"),
        (["failure", "--times", "fast"], "none of gpu"),
        (["overhead", "--rounds", "-1"], "'-1' is not a positive number"),
    ],
)
def test_malformed_options_are_refused_with_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    (error_line,) = capsys.readouterr().err.splitlines()
    assert message in error_line


def test_a_need_that_cannot_be_met_ends_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--times", "vit-b-cpu"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("scale: ViT-B, two cores alone takes longer")


def test_a_simulation_leaves_its_table_and_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "needs"
    assert main(["simulate", "--annotators", "50", "100", "--seconds", "20", "--output", str(output)]) == 0
    text = output.with_suffix(".md").read_text()
    assert text == capsys.readouterr().out
    assert "assumed, not measured" in text
    assert text.count("\n| ") == 3  # a head and two teams
    facts = json.loads(output.with_suffix(".json").read_text())
    assert [one["enough"]["annotators"] for one in facts["needs"]] == [50, 100]


def test_the_stub_encodes_a_photo_once_and_replays_what_it_has_not_seen() -> None:
    async def run() -> None:
        async with TestClient(TestServer(build(encode=0.2, click=0.05))) as client:
            loop = asyncio.get_running_loop()

            async def click(task: int, clicks: int) -> tuple[str, float]:
                begin = loop.time()
                async with client.post("/predict", data=click_body(task, clicks)) as answer:
                    return answer.headers[ENCODED], loop.time() - begin

            async with client.post("/warm", data=click_body(7, 1)) as answer:
                assert (await answer.json())["kept"] == 1
            assert (await click(7, 3))[0] == "0"
            new, seconds = await click(8, 3)
            assert (new, (await click(8, 4))[0]) == ("1", "0")
            assert seconds >= 0.2 + 3 * 0.05 - 0.001  # never faster than the device
            both = await asyncio.gather(click(9, 1), click(9, 1))
            assert [new for new, _ in both] == ["1", "1"]

    asyncio.run(run())


def test_names_are_answered_as_the_dns_does() -> None:
    names = Names({"replica": ["127.0.1.1", "127.0.1.2"]})
    question = b"\x07replica\x00" + b"\x00\x01\x00\x01"
    answer = names.answer(b"\x12\x34\x01\x00\x00\x01" + bytes(6) + question)
    assert answer[:8] == b"\x12\x34\x85\x80\x00\x01\x00\x02"
    assert answer[12:].startswith(question)
    assert answer.endswith(b"\x00\x04\x7f\x00\x01\x02")
    assert names.answer(b"\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\x05other\x00\x00\x01\x00\x01")[6:8] == b"\x00\x00"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the started processes in Linux's /proc")
def test_a_measurement_that_is_ended_ends_what_it_started(tmp_path: Path) -> None:
    """HAProxy's place is taken by a program that does nothing, so that the measurement waits for it."""
    folder, balancer = tmp_path / "temporary", tmp_path / "haproxy"
    folder.mkdir()
    balancer.write_text("#!/bin/sh\nexec sleep 600\n")
    balancer.chmod(0o755)
    command = [
        sys.executable,
        "bench/scaling/scale.py",
        "measure",
        "--replicas",
        "2",
        "--output",
        str(tmp_path / "out"),
    ]
    environment = os.environ | {"HAPROXY": str(balancer), "TMPDIR": str(folder)}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        try:
            deadline = time.monotonic() + 200
            while len(started := descendants(process.pid)) < 3:  # two replicas, and HAProxy when they are ready
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.terminate()
            assert process.wait(60) == 128 + signal.SIGTERM
        finally:
            process.kill()
    assert not any(map(is_running, started))
    assert list(folder.iterdir()) == []
