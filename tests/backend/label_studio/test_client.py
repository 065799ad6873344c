"""Protects how Label Studio is asked: with the right key, renewed when it ends, and errors that name what failed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backend.label_studio.auth import KeyKind, LabelStudioAuth
from backend.label_studio.client import ApiError, LabelStudioApi
from tests.support.fake_label_studio import ACCESS, LEGACY, PERSONAL, FakeLabelStudio, fake_label_studio, jwt


@pytest.fixture
def label_studio() -> Iterator[FakeLabelStudio]:
    with fake_label_studio() as state:
        yield state


def api(url: str, key: str | None) -> LabelStudioApi:
    return LabelStudioApi(LabelStudioAuth(url, key, 5), 5)


def test_a_personal_access_token_is_exchanged(label_studio: FakeLabelStudio) -> None:
    assert api(label_studio.url, PERSONAL).get("/api/current-user/whoami")["email"] == "annotator@example.com"


def test_an_access_token_that_ended_is_renewed_once(label_studio: FakeLabelStudio) -> None:
    asked = api(label_studio.url, PERSONAL)
    asked.get("/api/projects/1/")
    label_studio.access = label_studio.keys["Bearer"] = jwt(token_type="access", jti="newer")
    assert asked.get("/api/projects/1/")["id"] == 1


@pytest.mark.parametrize("key", [None, LEGACY, jwt(token_type="refresh", jti="revoked")])
def test_a_key_that_is_not_taken(label_studio: FakeLabelStudio, key: str | None) -> None:
    with pytest.raises(ApiError) as error:
        api(label_studio.url, key).get("/api/projects/1/")
    assert error.value.status == 401
    assert str(key) not in str(error.value)


def test_what_is_not_there_and_what_is_not_json(label_studio: FakeLabelStudio) -> None:
    label_studio.files["/page"] = b"<html>"
    asked = api(label_studio.url, PERSONAL)
    with pytest.raises(ApiError, match=r"tried GET .*/api/projects/9/: status 404"):
        asked.get("/api/projects/9/")
    with pytest.raises(ApiError, match="is not JSON"):
        asked.get("/page")


def test_nobody_there() -> None:
    with pytest.raises(ApiError, match="ConnectionError") as error:
        api("http://127.0.0.1:1", None).get("/api/projects/1/")
    assert error.value.status is None


def test_queries_are_sent(label_studio: FakeLabelStudio) -> None:
    label_studio.tasks += [{"id": number} for number in range(5)]
    assert len(api(label_studio.url, PERSONAL).get("/api/tasks/", project=1, page_size=2)["tasks"]) == 2


@pytest.mark.parametrize(
    ("key", "kind"),
    [(None, None), (LEGACY, "legacy token"), (PERSONAL, "personal access token"), (ACCESS, "access token")],
)
def test_keys_are_told_by_their_shape(key: str | None, kind: KeyKind | None) -> None:
    assert LabelStudioAuth("http://ls", key, 5).key_kind == kind


def test_a_redirect_says_which_address_to_set(label_studio: FakeLabelStudio) -> None:
    label_studio.redirect = "https://127.0.0.1"
    with pytest.raises(
        ApiError, match=r"redirects to https://127\.0\.0\.1; set LABEL_STUDIO_URL=https://127\.0\.0\.1$"
    ):
        api(label_studio.url, LEGACY).get("/api/projects/1/")


def test_answers_with_nan_and_lone_surrogates_are_read(label_studio: FakeLabelStudio) -> None:
    label_studio.tasks.append({"id": 1, "data": {"a": float("nan"), "b": "\ud800"}, "annotations": []})
    answer = api(label_studio.url, PERSONAL).get("/api/tasks/", page_size=1)
    assert answer["tasks"][0]["data"] == {"a": None, "b": "\ufffd"}
