"""Protects proposals in Label Studio: what is stored is right and the same each time, nothing is stored where somebody
annotated, clicks go first, and switched off everything is as before."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from numpy.typing import NDArray
from torch import Tensor

from backend.annotator import Annotator, OverloadedError
from backend.executor import DeviceExecutor
from backend.factory import build_heads
from backend.finetune.versions import Versions
from backend.heads import Head, Heads
from backend.settings import Settings
from backend.web.app import create_app
from backend.web.proposing import Proposing
from skipclick import Click, Predictor, brush_rle
from skipclick.cache import ByteLru, SharedCache
from skipclick.model import SkipClick
from skipclick.predictor import ClickRequest
from skipclick.proposals import ProposalRule, Prototypes, pooled
from tests.support.project_heads import CUP, IMAGE, OnePhoto, photo
from tests.support.recorded import recorded_requests
from tests.support.small_models import bundled_at_160_pixels
from tests.support.tuned_models import tuned_model

CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="tag" toName="image" smart="false"><Label value="Ski"/><Label value="Helmet"/></BrushLabels>
<KeyPointLabels name="tag2" toName="image" smart="true"><Label value="Ski"/></KeyPointLabels></View>"""


class Watched(Predictor):
    """Notes what runs on the device; while the gate is closed nothing gets on."""

    def __init__(self, model: SkipClick) -> None:
        super().__init__(model, keep_taps=True)
        self.log: list[Sequence[Click]] = []
        self.gate, self.inside = threading.Event(), threading.Event()
        self.gate.set()

    def probabilities(self, requests: Sequence[ClickRequest]) -> Tensor:
        self.log += [request.clicks for request in requests]
        self.inside.set()
        assert self.gate.wait(60)
        return super().probabilities(requests)


@pytest.fixture(autouse=True)
def _few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.web.predict.DEFAULT_RULE", ProposalRule(side=4))


@pytest.fixture(scope="module")
def predictor() -> Watched:
    return Watched(bundled_at_160_pixels())


@pytest.fixture(scope="module")
def cup(predictor: Watched) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """The cup of the photo, and what it looks like to the backbone."""
    features = predictor.encode(photo().pixels)
    (answer,) = predictor.predict([ClickRequest(features, [Click(CUP[0].x, CUP[0].y)])])
    return answer.mask.full(), pooled(features, answer.mask.full())


def annotator_of(predictor: Predictor, accepted: Prototypes | None, executor: DeviceExecutor) -> Annotator:
    heads = Heads(Head("v1", predictor, accepted=accepted))
    features = SharedCache("features", ByteLru(64 << 20))
    return Annotator(heads, OnePhoto(), executor, features=features, memo_bytes=8 << 20)


@pytest.fixture
def make(
    predictor: Watched, cup: tuple[NDArray[np.bool_], NDArray[np.float32]]
) -> Iterator[Callable[..., tuple[FlaskClient, Annotator]]]:
    """Makes a server whose projects have accepted one cup."""
    made = []

    def build(label: str = "Ski", **settings: Any) -> tuple[FlaskClient, Annotator]:
        accepted = Prototypes.of([(label, cup[1])])
        annotator = annotator_of(predictor, accepted, DeviceExecutor())
        made.append(annotator)
        given = {"predict": "similar", "predict_seconds": 120.0} | settings
        return create_app(Settings(**given), annotator).test_client(), annotator

    yield build
    for annotator in made:
        annotator.close()


def opened(**changes: Any) -> dict[str, Any]:
    """A task that was just opened."""
    body: dict[str, Any] = recorded_requests("02", "/predict")[0]["body"]
    body["label_config"] = CONFIG
    body["tasks"][0].update(changes)
    return body


Make = Callable[..., tuple[FlaskClient, Annotator]]


def test_an_opened_task_gets_masks_like_the_accepted_ones(
    make: Make, cup: tuple[NDArray[np.bool_], NDArray[np.float32]]
) -> None:
    client, _ = make()
    (prediction,) = client.post("/predict", json=opened()).json["results"]
    assert prediction["model_version"] == "v1"
    assert 0.75 <= prediction["score"] <= 1
    regions = prediction["result"]
    assert len({region["id"] for region in regions}) == len(regions) >= 1
    height, width = photo().size
    masks = [brush_rle.decode(region["value"]["rle"], height, width) > 0 for region in regions]
    assert np.sum(masks, axis=0).max() == 1
    assert max(np.count_nonzero(one & cup[0]) / np.count_nonzero(one | cup[0]) for one in masks) > 0.75
    for region in regions:
        assert (region["type"], region["from_name"], region["to_name"]) == ("brushlabels", "tag", "image")
        assert region["value"]["brushlabels"] == ["Ski"]
        assert (region["original_width"], region["original_height"]) == (width, height)
        assert 0.75 <= region["score"] <= 1


def test_the_same_request_has_the_same_answer(make: Make) -> None:
    """On a server that was just started too; of another task the regions have other ids."""
    first, second = (make()[0].post("/predict", json=opened()) for _ in range(2))
    assert first.data == second.data
    other = make()[0].post("/predict", json=opened(id=77)).json["results"][0]["result"]
    assert not {one["id"] for one in other} & {one["id"] for one in first.json["results"][0]["result"]}


@pytest.mark.parametrize(
    ("label", "changes"),
    [
        ("Ski", {"annotations": [{"id": 1, "result": [{"id": "a", "type": "choices"}]}]}),
        ("Ski", {"annotations": [{"id": 1, "result": []}]}),
        ("Ski", {"drafts": [{"id": 1, "result": [{"id": "a", "type": "brushlabels"}]}]}),
        ("Ski", {"data": {"image": ["/a.png", "/b.png"]}}),
        ("Ski", {"data": {"text": "no image"}}),
        ("Boot", {}),
        ("ski", {}),
        ("", {}),
    ],
    ids=[
        "annotated",
        "annotated as empty",
        "begun",
        "pages",
        "no image",
        "no such label",
        "another case",
        "unlabelled",
    ],
)
def test_nothing_is_stored(make: Make, label: str, changes: dict[str, Any]) -> None:
    client, _ = make(label)
    assert client.post("/predict", json=opened(**changes)).json == {"results": []}


def test_label_studio_is_made_to_send_many_tasks_one_by_one(make: Make, predictor: Watched) -> None:
    """One result for several tasks is not stored: Label Studio 1.23.2 (ml/models.py) then asks for each alone."""
    client, _ = make()
    predictor.log.clear()
    several = 0
    for request in recorded_requests("90", "/predict"):
        results = client.post("/predict", json=request["body"]).json["results"]
        several += len(request["body"]["tasks"]) > 1
        assert [one["result"] for one in results] == [[]]
    assert several
    assert predictor.log == []


@pytest.mark.parametrize("name", ["02", "31", "32", "90"])
@pytest.mark.parametrize("predict", ["off", "similar"])
def test_without_prototypes_or_switched_off_nothing_changes(
    make: Make, predictor: Watched, name: str, predict: str
) -> None:
    client, annotator = make(predict=predict)
    if predict == "similar":
        annotator = annotator_of(predictor, None, DeviceExecutor())
        client = create_app(Settings(predict="similar"), annotator).test_client()
    for request in recorded_requests(name, "/predict"):
        if request["body"]["params"]["context"] is None:
            assert client.post("/predict", json=request["body"]).json == {"results": []}
    annotator.close()


def test_a_click_goes_before_proposals(make: Make, predictor: Watched) -> None:
    _, annotator = make()
    annotator.size_of(IMAGE)
    predictor.log.clear()
    predictor.inside.clear()
    predictor.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        proposals = pool.submit(annotator.propose, IMAGE, 1, 120.0, ProposalRule(side=4))
        assert predictor.inside.wait(60)
        click = pool.submit(annotator.annotate, IMAGE, CUP[:1], None, photo().size)
        deadline = time.monotonic() + 60
        while annotator.queue()["click"] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        predictor.gate.set()
        assert not click.result(120).mask.empty
        assert proposals.result(120).found
    assert [(one.x, one.y) for one in predictor.log[1]] == [(CUP[0].x, CUP[0].y)]
    assert len(predictor.log) > 8


def test_no_part_is_begun_while_a_click_is_under_way(make: Make, predictor: Watched) -> None:
    """A click comes to the device more than once, and has work of its own in between."""
    _, annotator = make()
    predictor.log.clear()
    with ThreadPoolExecutor(1) as pool:
        with annotator._click_under_way():
            proposals = pool.submit(annotator.propose, IMAGE, 1, 120.0, ProposalRule(side=2))
            deadline = time.monotonic() + 60
            while annotator.encodes()["photo"] == 0:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            time.sleep(0.3)
            assert predictor.log == []
        proposals.result(120)
    assert len(predictor.log) > 1


def test_after_the_deadline_nothing_is_stored_and_the_work_goes_on(make: Make, predictor: Watched) -> None:
    client, annotator = make(predict_seconds=0.05)
    predictor.gate.clear()
    begin = time.monotonic()
    assert client.post("/predict", json=opened()).json == {"results": []}
    assert time.monotonic() - begin < 30
    predictor.gate.set()
    deadline = time.monotonic() + 120
    while not client.post("/predict", json=opened()).json["results"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    annotator.forget()  # and what was found is only remembered
    assert annotator._proposals.stats().entries == 0


def test_of_two_requests_for_a_task_one_is_answered() -> None:
    """Label Studio's data manager asks twice at once, and stores every answer."""
    proposing = Proposing(60)
    entered, leave = threading.Event(), threading.Event()

    def first() -> bool:
        with proposing.only("1/2") as is_only:
            entered.set()
            assert leave.wait(60)
            return is_only

    def second() -> tuple[bool, bool]:
        with proposing.only("1/2") as is_only:
            return is_only, leave.is_set()

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first)
        assert entered.wait(60)
        with proposing.only("1/3") as is_only:  # another task
            assert is_only
        two = pool.submit(second)
        time.sleep(0.05)
        leave.set()
        assert one.result(60)
        assert two.result(60) == (False, True)


def test_the_second_request_may_come_after_the_first_was_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what was known already; Label Studio sent it before it had stored the first answer."""
    proposing = Proposing(60)

    def is_only() -> bool:
        with proposing.only("1/2") as found:
            return found

    assert [is_only() for _ in range(3)] == [True, False, False]
    now = time.monotonic()
    monkeypatch.setattr("backend.web.proposing.time.monotonic", lambda: now + 60)
    assert is_only()


def test_a_request_that_failed_was_not_answered() -> None:
    proposing = Proposing(60)
    with pytest.raises(OverloadedError), proposing.only("1/2"):
        raise OverloadedError
    with proposing.only("1/2") as is_only:
        assert is_only


@pytest.mark.parametrize(("predict", "helps"), [("similar", True), ("similar", False), ("off", True)])
def test_a_version_proposes_where_it_is_asked_to_and_was_found_to_help(
    tmp_path: Path, predictor: Watched, predict: str, helps: bool
) -> None:
    base, executor = bundled_at_160_pixels(), DeviceExecutor()
    versions = Versions(tmp_path)
    known = Prototypes({"Ski": np.eye(520, dtype=np.float32)[:1]})
    about = {"proposals": {"helps": helps}}
    versions.write(1, tuned_model(1, base), base, about=about, report={}, prototypes=known)
    versions.promote(1, 1)
    heads = build_heads(Settings(model_dir=tmp_path, predict=predict), base, predictor, executor)
    assert (heads.of(1).accepted is not None) == (predict == "similar" and helps)
    assert heads.of(2).accepted is None
    heads.close()
    executor.close()


@pytest.mark.parametrize("predict", ["off", "similar"])
def test_the_status_tells_what_was_measured_of_the_version_in_service(
    tmp_path: Path, predictor: Watched, predict: str
) -> None:
    base, executor, versions = bundled_at_160_pixels(), DeviceExecutor(), Versions(tmp_path)
    measured = {"objects": 12, "proposals": 11, "precision": 0.82, "recall": 0.75, "helps": True}
    versions.write(1, tuned_model(1, base), base, about={"proposals": measured}, report={})
    versions.write(1, tuned_model(2, base), base, about={"proposals": measured | {"helps": False}}, report={})
    versions.write(2, tuned_model(1, base), base, about={}, report={})
    for project in (1, 2):
        versions.promote(project, 1)
    settings = Settings(model_dir=tmp_path, predict=predict)
    heads = build_heads(settings, base, predictor, executor)
    annotator = Annotator(heads, OnePhoto(), executor, features=SharedCache("features", ByteLru(0)), memo_bytes=0)
    found = create_app(settings, annotator).test_client().get("/status").json["proposals"]
    first, second = (f"{base.version}+p{project}.v1" for project in (1, 2))
    assert found == {
        "switched_on": predict == "similar",
        "projects": [
            {"project": 1, "version": first, "measured": measured},
            {"project": 2, "version": second, "measured": None},
        ],
    }
    annotator.close()


def test_damaged_prototypes_leave_the_head_in_service(tmp_path: Path, predictor: Watched) -> None:
    base, executor = bundled_at_160_pixels(), DeviceExecutor()
    versions = Versions(tmp_path)
    versions.write(1, tuned_model(1, base), base, about={"proposals": {"helps": True}}, report={})
    versions.promote(1, 1)
    heads = build_heads(Settings(model_dir=tmp_path, predict="similar"), base, predictor, executor)
    assert heads.of(1).version.endswith("+p1.v1")
    assert heads.of(1).accepted is None
    heads.close()
    executor.close()
