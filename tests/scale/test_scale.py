"""Protects the address that stands for many replicas: each photo is looked at once, and no click is lost by a replica
that is killed, restarted or added. Real replicas with the bundled model, and HAProxy with deploy/haproxy.cfg."""

from __future__ import annotations

import subprocess
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from backend.finetune.versions import Versions
from bench.scaling.balancer import CONFIG, haproxy_program
from bench.serving.loopback import local_session
from skipclick import load_checkpoint
from tests.scale.fleet import (
    Answer,
    Fleet,
    Replica,
    body_of,
    click,
    fleet,
    mask,
    post,
    served_by,
    version,
)
from tests.support.tuned_models import tuned_model

pytestmark = pytest.mark.scale

ANNOTATORS = 12
CROWD = 16  # with the annotators as many clicks as a replica has threads for, so that it refuses none
REPLICAS = 3
THREE_MEGABYTES = 3_000_000


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("fleet"), REPLICAS, photos=500) as running:
        yield running


def annotate(three: Fleet, tasks: Sequence[int], clicks: int) -> dict[int, list[Answer]]:
    """A team's answers by task: everybody has tasks of their own and goes from one to the next after each click."""

    def work(mine: Sequence[int]) -> dict[int, list[Answer]]:
        answers: dict[int, list[Answer]] = {task: [] for task in mine}
        for count in range(1, clicks + 1):
            for task in mine:
                answers[task].append(click(three.url, task, count))
        return answers

    shares = [tasks[number::ANNOTATORS] for number in range(ANNOTATORS)]
    with ThreadPoolExecutor(ANNOTATORS) as pool:
        return {task: given for part in pool.map(work, shares) for task, given in part.items()}


@dataclass
class Clicking:
    """A team that clicks until it is told to stop."""

    answers: dict[int, list[tuple[float, Answer]]] = field(default_factory=dict)
    masks: defaultdict[tuple[int, int, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    """All that were seen, by task, number of the click and the version that answered."""

    def click(self, url: str, task: int, count: int) -> None:
        begin, answer = time.monotonic(), click(url, task, count)
        self.answers[task].append((begin, answer))
        if answer.status == 200:
            self.masks[task, count, version(answer)].add(str(mask(answer)))

    def failed(self) -> list[Answer]:
        return [answer for given in self.answers.values() for _, answer in given if answer.status != 200]

    def since(self, moment: float) -> dict[int, list[Answer]]:
        """Answers to what was sent after `moment`."""
        return {
            task: [answer for begin, answer in given if begin > moment] for task, given in self.answers.items() if given
        }

    def await_rounds(self, count: int) -> None:
        """Wait until on each task so many more clicks are answered; all but the first of them were sent since."""
        goals = {task: len(given) + count for task, given in self.answers.items()}
        deadline = time.monotonic() + 900
        while any(len(self.answers[task]) < goal for task, goal in goals.items()):
            assert time.monotonic() < deadline
            time.sleep(0.02)


@contextmanager
def clicking(three: Fleet, tasks: Sequence[int]) -> Iterator[Clicking]:
    """While this holds, a team clicks: ten clicks on each task of theirs in turn, again and again."""
    team, done = Clicking({task: [] for task in tasks}), threading.Event()

    def work(mine: Sequence[int]) -> None:
        turn = 0
        while not done.is_set():
            for task in mine:
                team.click(three.url, task, 1 + turn % 10)
            turn += 1

    threads = [threading.Thread(target=work, args=(tasks[number::ANNOTATORS],)) for number in range(ANNOTATORS)]
    for thread in threads:
        thread.start()
    try:
        yield team
    finally:
        done.set()
        for thread in threads:
            thread.join()


def restart(replica: Replica, three: Fleet) -> None:
    replica.start()
    replica.await_ready()
    three.balancer.await_replicas(len(three.replicas))


@pytest.mark.parametrize("environment", [{}, {"BASIC_AUTH": "dXNlcjpwYXNzd29yZA=="}], ids=["open", "password"])
def test_the_configuration_is_valid(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [haproxy_program(), "-c", "-f", str(CONFIG)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def test_each_task_is_encoded_once_and_answered_by_one_replica(three: Fleet) -> None:
    tasks, before = three.tasks(200), three.encodes()
    answers = annotate(three, tasks, clicks=10)
    assert Counter(answer.status for given in answers.values() for answer in given) == {200: 2000}
    assert three.encodes() - before == 200
    homes = served_by(answers)
    assert {len(replicas) for replicas in homes.values()} == {1}
    shares = Counter(name for replicas in homes.values() for name in replicas)
    print(f"200 tasks: {dict(shares)}")
    assert len(shares) == REPLICAS
    assert min(shares.values()) > 200 / REPLICAS / 2


def test_every_replica_gives_the_same_mask_to_the_bit(three: Fleet) -> None:
    (task,) = three.tasks(1)
    for count in (1, 2, 3, 7):
        through = mask(click(three.url, task, count))
        assert through is not None
        for replica in three.replicas:
            assert mask(click(replica.url, task, count)) == through  # those that did not see the earlier clicks too


@pytest.mark.parametrize("id_comes", ["first", "last"])
def test_bodies_of_three_megabytes_stay_with_their_replica(three: Fleet, id_comes: str) -> None:
    tasks, before = three.tasks(20), three.encodes()
    regions = [{"type": "brushlabels", "value": {"format": "rle", "rle": [200] * 1000}}] * (THREE_MEGABYTES // 5000)
    for task in tasks:
        small = click(three.url, task, 1)
        body = body_of(task, 2, [{"id": 1, "result": regions}])
        if id_comes == "last":
            sent = body["tasks"][0]
            body["tasks"] = [{key: sent[key] for key in sent if key != "id"} | {"id": sent["id"]}]
        large = post(three.url, body)
        assert (small.status, large.status) == (200, 200), large.body
        assert small.replica == large.replica
        assert mask(large) == mask(click(three.url, task, 2))
    assert three.encodes() - before == 20


def test_setup_health_and_versions_go_anywhere_and_training_to_one(three: Fleet) -> None:
    requests_to = {
        "/setup": {
            "json": {"project": "1.1", "schema": body_of(1, 1)["label_config"], "hostname": "", "access_token": ""}
        },
        "/health": {},
        "/versions": {},
    }
    for path, extra in requests_to.items():
        answers = [
            local_session().request("POST" if extra else "GET", f"{three.url}{path}", timeout=100, **extra)
            for _ in range(30)
        ]
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.headers["X-Served-By"] for answer in answers}) == REPLICAS
    for action in ("PROJECT_UPDATED", "TASKS_CREATED"):
        answer = local_session().post(
            f"{three.url}/webhook", json={"action": action, "project": {"id": 1}}, timeout=100
        )
        assert answer.status_code == 201
    assert local_session().get(f"{three.url}/training?project=1", timeout=100).json()["jobs"] == []
    picture = local_session().get(f"{three.url}/training/picture?project=1&number=1", timeout=100)
    assert "does not learn" not in picture.json()["error"]
    assert three.trainer.metric("skipclick_requests_total", route="/webhook") == 2
    assert sum(replica.metric("skipclick_requests_total", route="/webhook") for replica in three.replicas) == 0


def test_a_killed_replica_loses_no_click_and_moves_only_its_own_tasks(three: Fleet) -> None:
    tasks = three.tasks(60)
    victim = three.replicas[0]
    try:
        with clicking(three, tasks) as team:
            team.await_rounds(5)
            victim.kill()
            three.balancer.await_replicas(REPLICAS - 1)
            noticed = time.monotonic()
            team.await_rounds(5)
    finally:  # the other tests need it
        victim.end()
        restart(victim, three)
    assert team.failed() == []
    assert {len(masks) for masks in team.masks.values()} == {1}
    first = {task: given[0][1].replica for task, given in team.answers.items()}
    always, after = served_by(team.since(0)), served_by(team.since(noticed))
    (dead,) = set(first.values()) - set.union(*after.values())
    assert {task for task in tasks if always[task] != {first[task]}} == {task for task in tasks if first[task] == dead}
    assert {len(homes) for homes in after.values()} == {1}  # until it is noticed, a retry may pick a third one
    assert served_by(annotate(three, tasks, clicks=1)) == {task: {home} for task, home in first.items()}


def test_restarting_all_replicas_one_by_one_fails_no_click(three: Fleet) -> None:
    with clicking(three, three.tasks(60)) as team:
        for replica in three.replicas:
            team.await_rounds(2)
            assert replica.stop() == 0
            team.await_rounds(2)
            restart(replica, three)
        team.await_rounds(2)
    print(f"{sum(map(len, team.answers.values()))} clicks during the restarts")
    assert team.failed() == []
    assert {len(masks) for masks in team.masks.values()} == {1}


def test_a_new_version_reaches_all_replicas_and_no_mask_is_of_two(three: Fleet) -> None:
    base = load_checkpoint("bundled")
    versions = Versions(Path(three.trainer.environment["MODEL_DIR"]))
    tuned = versions.write(1, tuned_model(1, base), base, about={}, report={})
    (task,) = three.tasks(1)
    with clicking(three, [task, *three.tasks(24)]) as team:
        team.await_rounds(2)
        versions.promote(1, tuned.number)
        team.await_rounds(2)
        answers = [click(replica.url, task, 4) for replica in three.replicas]  # two have not seen the clicks before
        versions.rollback(1)
        team.await_rounds(2)
    assert team.failed() == []
    assert {len(masks) for masks in team.masks.values()} == {1}
    assert {name for _, _, name in team.masks} == {base.version, tuned.name}
    assert {version(answer) for answer in answers} == {tuned.name}
    assert {version(click(replica.url, task, 4)) for replica in three.replicas} == {base.version}
    assert len({str(mask(answer)) for answer in answers}) == 1
    assert str(mask(answers[0])) != str(mask(click(three.url, task, 4)))


def test_a_hot_task_is_shared_and_leaves_the_others_at_home(three: Fleet) -> None:
    (hot,), others = three.tasks(1), three.tasks(30)
    homes = served_by(annotate(three, others, clicks=1))
    before, done = three.encodes(), threading.Event()

    def crowd(_: int) -> list[Answer]:
        answers = []
        while not done.is_set():
            answers.append(click(three.url, hot, 1 + len(answers) % 10))
        return answers

    with ThreadPoolExecutor(CROWD) as pool:
        crowds = [pool.submit(crowd, number) for number in range(CROWD)]
        try:
            during = annotate(three, others, clicks=5)
        finally:
            done.set()
        hot_answers = [answer for future in crowds for answer in future.result()]
    assert Counter(answer.status for given in during.values() for answer in given) == {200: 150}
    assert {answer.status for answer in hot_answers} == {200}
    assert served_by(during) == homes
    shares = Counter(answer.replica for answer in hot_answers)
    print(f"the hot task's {len(hot_answers)} clicks: {dict(shares)}")
    assert len(shares) == REPLICAS
    assert three.encodes() - before <= REPLICAS


def test_a_replica_in_the_dns_takes_its_share_and_leaves_with_it(three: Fleet, tmp_path: Path) -> None:
    tasks = three.tasks(60)
    first = served_by(annotate(three, tasks, clicks=1))
    model = three.replicas[0]
    fourth = Replica("127.0.1.4", model.port, model.environment, tmp_path / "fourth.log")
    hosts = [replica.host for replica in three.replicas]
    fourth.start()
    try:
        fourth.await_ready()
        three.names.addresses["replica"] = [*hosts, fourth.host]
        three.balancer.await_replicas(REPLICAS + 1)
        second = served_by(annotate(three, tasks, clicks=2))
        moved = {task for task in tasks if second[task] != first[task]}
        assert 0 < len(moved) < len(tasks) / 2
        assert len(set.union(*(second[task] for task in moved))) == 1
        three.names.addresses["replica"] = hosts
        three.balancer.await_replicas(REPLICAS)
        assert fourth.stop() == 0
    finally:
        fourth.end()
    assert served_by(annotate(three, tasks, clicks=3)) == first
