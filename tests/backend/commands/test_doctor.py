"""Protects the doctor: each planted fault is found, named in a plain sentence, and comes with what to do."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.annotator import Annotator
from backend.commands import doctor
from backend.commands.doctor import Finding, examine
from backend.factory import Service
from backend.http_client import CA_VARIABLES, USER_AGENT
from backend.label_studio.labeling_config import EXAMPLE
from backend.label_studio.names import ToldNames
from tests.support.fake_label_studio import LEGACY, PERSONAL, FakeLabelStudio, fake_label_studio, jwt


def photo() -> bytes:
    """A bright disc on a dark ground, 160 x 120."""
    rows, columns = np.mgrid[:120, :160]
    pixels = np.full((120, 160, 3), 40, np.uint8)
    pixels[(rows - 60) ** 2 + (columns - 80) ** 2 < 30**2] = 230, 200, 60
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def label_studio() -> Iterator[FakeLabelStudio]:
    """One in which everything is as it should be."""
    with fake_label_studio() as state:
        state.files["/data/upload/1/a.png"] = photo()
        state.tasks.append({"id": 7, "data": {"image": "/data/upload/1/a.png"}, "project": 1, "drafts": []})
        state.connect()
        yield state


@pytest.fixture
def environment(label_studio: FakeLabelStudio, tmp_path: Path) -> dict[str, str]:
    return {
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": PERSONAL,
        "DEVICE": "cpu",
        "DTYPE": "float32",
        "RUNTIME": "torch",  # making OpenVINO's graphs takes ten seconds
        "MODEL_DIR": str(tmp_path),
    }


@pytest.fixture
def drawing_model(annotator: Annotator, monkeypatch: pytest.MonkeyPatch) -> None:
    """For faults that are not the model's: one that draws discs and needs no loading."""
    monkeypatch.setattr(doctor, "build_service", lambda settings: Service(annotator))


def faults(environment: dict[str, str], project: int | None = 1) -> list[Finding]:
    return [finding for finding in examine(environment, project) if finding.todo]


def test_where_all_is_well_every_check_says_so(environment: dict[str, str]) -> None:
    found = list(examine(environment, None))
    assert [finding.check for finding in found] == [
        "settings",
        "device",
        "checkpoint",
        "disk",
        "network",
        "address",
        "token",
        "project",
        "config",
        "connection",
        "interactive",
        "image",
        "click",
    ]
    assert not any(finding.todo for finding in found)
    assert "160 x 120" in found[-2].says
    assert "http://localhost:9090" in found[0].says
    assert "gave a mask of" in found[-1].says


def test_it_says_who_asks(label_studio: FakeLabelStudio, environment: dict[str, str], drawing_model: None) -> None:
    assert faults(environment) == []
    assert len(label_studio.agents) > 8
    assert set(label_studio.agents) == {USER_AGENT}


@pytest.mark.parametrize(
    ("variables", "says", "todo"),
    [
        ({"REQUESTS_CA_BUNDLE": "{folder}/none.pem"}, "none.pem does not exist", "in PEM format, or unset REQUESTS_CA"),
        ({"SSL_CERT_FILE": "{folder}/none.pem"}, "SSL_CERT_FILE={folder}/none.pem does not", "unset SSL_CERT_FILE"),
        ({"REQUESTS_CA_BUNDLE": "{folder}/text"}, "text contains no certificates", "in PEM format"),
        ({"http_proxy": "http://me:secret@proxy.invalid:3"}, "cannot be|nothing answers", "NO_PROXY"),
    ],
)
def test_certificates_and_proxies(
    environment: dict[str, str],
    drawing_model: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    says: str,
    todo: str,
) -> None:
    (tmp_path / "text").write_text("no certificate")
    for name in (*CA_VARIABLES, "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(folder=tmp_path))
    (fault,) = faults(environment)
    assert re.search(says.format(folder=tmp_path), fault.says)
    assert todo in fault.todo
    found = " ".join(finding.says for finding in examine(environment, 1))
    assert "secret" not in found
    if "http_proxy" in variables:
        assert "use the proxy proxy.invalid:3 to Label Studio" in found


def test_a_host_that_this_machine_does_not_have(environment: dict[str, str], drawing_model: None) -> None:
    (fault,) = faults(environment | {"HOST": "192.0.2.1"})
    assert "192.0.2.1" in fault.says
    assert "HOST=0.0.0.0" in fault.todo


# Faults in this server's own environment: changes to it, the check that must fail, and what it must say.
OWN_FAULTS = {
    "bad setting": ({"PORT": "http"}, "settings", "PORT=http is not a whole number"),
    "mistyped name": ({"LABEL_STUDIO_APIKEY": "x"}, "settings", "did you mean LABEL_STUDIO_API_KEY"),
    "no such device": ({"DEVICE": "cuda:99"}, "device", "DEVICE=cuda:99, but torch finds"),
    "no checkpoint": ({"CHECKPOINT": "/nowhere.safetensors"}, "checkpoint", "/nowhere.safetensors does not exist"),
    "odd resolution": ({"RESOLUTION": "450"}, "checkpoint", "must be multiples of"),
    "no disk": ({"MODEL_DIR": "/dev/null/models"}, "disk", "/dev/null/models cannot be written to"),
    "nothing there": ({"LABEL_STUDIO_URL": "http://127.0.0.1:1"}, "address", "nothing answers at"),
    "no key": ({"LABEL_STUDIO_API_KEY": ""}, "token", "LABEL_STUDIO_API_KEY is not set"),
    "legacy token": ({"LABEL_STUDIO_API_KEY": LEGACY}, "token", "a legacy token"),
    "dead token": ({"LABEL_STUDIO_API_KEY": jwt(token_type="refresh", jti="old")}, "token", "personal access token"),
    "small limit": ({"IMAGE_MAX_PIXELS": "100"}, "image", "more than IMAGE_MAX_PIXELS=100"),
}


@pytest.mark.parametrize(("changes", "check", "sentence"), OWN_FAULTS.values(), ids=OWN_FAULTS)
def test_a_fault_of_this_server(
    environment: dict[str, str], changes: dict[str, str], check: str, sentence: str
) -> None:
    (fault,) = faults(environment | changes)
    assert fault.check == check
    assert sentence in fault.says
    assert fault.todo


def not_smart(state: FakeLabelStudio) -> None:
    state.label_config = EXAMPLE.replace('toName="image" smart="true"', 'toName="image"')


def smart_brush(state: FakeLabelStudio) -> None:
    state.label_config = EXAMPLE.replace(' smart="false"', "")


def other_labels(state: FakeLabelStudio) -> None:
    state.label_config = EXAMPLE.replace(
        '<Label value="Object" background="#1e88e5"/>', '<Label value="Ski"/><Label value="Helmet"/>'
    )


def other_image(state: FakeLabelStudio) -> None:
    state.label_config = EXAMPLE.replace('toName="image" smart="true"', 'toName="picture" smart="true"')


def not_connected(state: FakeLabelStudio) -> None:
    state.backends.clear()


def unreachable(state: FakeLabelStudio) -> None:
    state.backends[0] |= {"state": "ER", "readable_state": "Error", "error_message": "Connection refused"}


def not_interactive(state: FakeLabelStudio) -> None:
    state.backends[0]["is_interactive"] = False


def other_backend(state: FakeLabelStudio) -> None:
    state.health = {"status": "UP", "model_class": "NewModel"}


def still_loading(state: FakeLabelStudio) -> None:
    state.not_ready = "the model is still being loaded"


def no_tasks(state: FakeLabelStudio) -> None:
    state.tasks.clear()


def no_file(state: FakeLabelStudio) -> None:
    state.files.clear()


def no_picture(state: FakeLabelStudio) -> None:
    state.files["/data/upload/1/a.png"] = b"<html>log in</html>"


def other_data(state: FakeLabelStudio) -> None:
    state.tasks[0]["data"] = {"picture": "/data/upload/1/a.png"}


# Faults in Label Studio, in the same way.
THEIR_FAULTS: dict[str, tuple[Callable[[FakeLabelStudio], None], str, str]] = {
    "not smart": (not_smart, "config", 'lacks the attribute smart="true"'),
    "smart brush": (smart_brush, "config", 'lacks the attribute smart="false"'),
    "other labels": (other_labels, "config", 'has no label "Object"'),
    "other image": (other_image, "config", 'toName="picture"'),
    "not connected": (not_connected, "connection", "no backend is connected"),
    "unreachable": (unreachable, "connection", "cannot reach"),
    "not interactive": (not_interactive, "interactive", "not for clicks"),
    "another backend": (other_backend, "connection", "another backend (NewModel)"),
    "still loading": (still_loading, "connection", "the model is still being loaded"),
    "no tasks": (no_tasks, "image", "has no tasks"),
    "no file": (no_file, "image", "status 404"),
    "no picture": (no_picture, "image", "cannot be decoded as an image"),
    "other data": (other_data, "image", 'hold no image under "$image"'),
}


@pytest.mark.parametrize(("plant", "check", "sentence"), THEIR_FAULTS.values(), ids=THEIR_FAULTS)
@pytest.mark.usefixtures("drawing_model")
def test_a_fault_of_label_studio(
    label_studio: FakeLabelStudio,
    environment: dict[str, str],
    plant: Callable[[FakeLabelStudio], None],
    check: str,
    sentence: str,
) -> None:
    plant(label_studio)
    (fault,) = faults(environment)
    assert fault.check == check
    assert sentence in fault.says
    assert fault.todo


def test_several_faults_are_found_at_once(label_studio: FakeLabelStudio, environment: dict[str, str]) -> None:
    for plant in (not_smart, not_connected, no_tasks):
        plant(label_studio)
    found = faults(environment | {"CHECKPOINT": "/nowhere", "MODEL_DIR": "/dev/null/models"})
    assert [fault.check for fault in found] == ["checkpoint", "disk", "config", "connection", "image"]


@pytest.mark.usefixtures("drawing_model")
def test_a_legacy_token_does_where_it_is_allowed(label_studio: FakeLabelStudio, environment: dict[str, str]) -> None:
    label_studio.keys["Token"] = LEGACY
    assert not faults(environment | {"LABEL_STUDIO_API_KEY": LEGACY})


@pytest.mark.usefixtures("drawing_model")
def test_the_editor_asks_the_first_interactive_backend(
    label_studio: FakeLabelStudio, environment: dict[str, str]
) -> None:
    label_studio.backends.clear()
    label_studio.connect(is_interactive=False, state="ER", url="http://127.0.0.1:1")
    label_studio.connect()
    assert not faults(environment)


@pytest.mark.usefixtures("drawing_model")
def test_the_project_must_be_seen_and_be_one(label_studio: FakeLabelStudio, environment: dict[str, str]) -> None:
    assert "no access to a project 9" in faults(environment, 9)[0].says
    label_studio.projects = (1, 2)
    assert 'has access to: 1 ("project 1"), 2 ("project 2")' in faults(environment, None)[0].says


@pytest.mark.usefixtures("drawing_model")
def test_another_server_at_the_address(label_studio: FakeLabelStudio, environment: dict[str, str]) -> None:
    (fault,) = faults(environment | {"LABEL_STUDIO_URL": f"{label_studio.url}/somewhere"})
    assert (fault.check, "is not Label Studio" in fault.says) == ("address", True)


@pytest.mark.usefixtures("drawing_model")
def test_a_label_studio_that_does_not_answer_in_time(environment: dict[str, str]) -> None:
    """It takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        (fault,) = faults(environment | {"LABEL_STUDIO_URL": url, "IMAGE_TIMEOUT": "0.2"})
    assert (fault.check, "did not answer within IMAGE_TIMEOUT=0.2" in fault.says) == ("address", True)


@pytest.mark.usefixtures("drawing_model")
def test_a_protected_server_lets_the_doctor_in(environment: dict[str, str]) -> None:
    assert not faults(environment | {"BASIC_AUTH_USER": "me", "BASIC_AUTH_PASS": "secret"})


def test_the_command_tells_by_its_status(
    label_studio: FakeLabelStudio,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert doctor.main(["--project", "1"]) == 0
    assert "All is well" in capsys.readouterr().out
    not_connected(label_studio)
    assert doctor.main(["--url", label_studio.url, "--project", "1"]) == 1
    shown = capsys.readouterr().out
    assert "FAULT connection" in shown
    assert "1 fault found" in shown
    assert PERSONAL not in shown


@pytest.mark.usefixtures("drawing_model")
@pytest.mark.parametrize(
    ("target", "says", "todo"),
    [
        ("https://127.0.0.1", "redirects to https://127.0.0.1", "set LABEL_STUDIO_URL=https://127.0.0.1"),
        ("https://sso.example/login?next=", "redirects to a login page", "an address without such a login"),
    ],
)
def test_a_label_studio_that_redirects(
    environment: dict[str, str], label_studio: FakeLabelStudio, target: str, says: str, todo: str
) -> None:
    label_studio.redirect = target
    (fault,) = faults(environment)
    assert fault.check == "address"
    assert says in fault.says
    assert todo in fault.todo


@pytest.mark.usefixtures("drawing_model")
def test_images_are_found_as_the_editor_and_the_server_find_them(
    environment: dict[str, str], label_studio: FakeLabelStudio, tmp_path: Path
) -> None:
    """An expression inside a Repeater, for a file under the name that Label Studio told the server."""
    inner = EXAMPLE.replace("<View>", '<View><Repeater on="$pages">').replace("</View>", "</Repeater></View>")
    for name in ("image", "mask", "click"):
        inner = inner.replace(f'="{name}"', f'="{name}_{{{{idx}}}}"')
    label_studio.label_config = inner.replace('"$image"', '"$host/data/$pages[{{idx}}].path"')
    label_studio.tasks[0]["data"] = {"host": "http://localhost:8080", "pages": [{"path": "upload/1/a.png"}]}
    ToldNames(tmp_path).tell("http://localhost:8080/")
    assert faults(environment) == []
