"""Protects that this server says who it is in every request, and whose certificates it trusts."""

from __future__ import annotations

import ast
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from backend.commands.warm import Server, ServerError
from backend.http_client import USER_AGENT, DeadlineAdapter, connection_advice, new_session, trusted_certificates
from skipclick import __version__
from tests.support.fake_label_studio import LEGACY, PERSONAL, fake_label_studio

ROOT = Path(__file__).parents[2]


def test_the_agent_names_the_product_and_its_version() -> None:
    assert f"skipclick-backend/{__version__}" == USER_AGENT
    assert "requests" not in USER_AGENT


@pytest.mark.parametrize("package", ["backend", "skipclick", "train"])
def test_no_request_leaves_but_through_a_session_of_ours(package: str) -> None:
    """`requests` and urllib would name themselves."""
    own = ROOT / "backend" / "http_client.py"
    makers = {"get", "post", "put", "patch", "delete", "head", "options", "request", "Session", "session", "urlopen"}
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / package).rglob("*.py"))
        if path != own
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in ("requests", "request", "urllib3", "urllib")
        and node.func.attr in makers
        and ast.unparse(node.func) != "request.get"
    ]
    assert wrong == []


@pytest.mark.parametrize(("key", "answers"), [(PERSONAL, 3), (LEGACY, 2)])
def test_label_studio_and_its_token_route_are_told(key: str, answers: int) -> None:
    from backend.images.loader import build_images
    from backend.label_studio.auth import build_auth
    from backend.label_studio.client import LabelStudioApi
    from backend.prompts import ImageReference
    from backend.settings import Settings

    with fake_label_studio() as studio:
        studio.keys["Token"] = LEGACY
        settings = Settings(label_studio_url=studio.url, label_studio_api_key=key)
        auth = build_auth(settings)
        LabelStudioApi(auth, 5).get("/api/current-user/whoami")
        with pytest.raises(ValueError, match="404"):
            build_images(settings, auth).load(ImageReference("/data/upload/1/a.png", 1))
        assert studio.agents == [USER_AGENT] * answers


def test_a_host_that_refuses_libraries_gives_its_photo() -> None:
    """As Wikimedia does: 403 for python-requests."""
    agents: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

        def do_POST(self) -> None:
            agents.append(self.headers["User-Agent"])
            self.send_response(403 if "requests" in agents[-1].lower() else 500)
            self.send_header("Content-Length", "0")
            self.end_headers()

    host = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=host.serve_forever, args=(0.01,), daemon=True).start()
    try:
        with pytest.raises(ValueError, match="500"):
            Server(f"http://127.0.0.1:{host.server_port}", pause=0).prepare({}, "", 1)
    finally:
        host.shutdown()
        host.server_close()
    assert agents == [USER_AGENT]


def test_no_proxy_leads_to_the_server_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://proxy.invalid:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(ServerError, match="ProxyError"):
        Server("http://127.0.0.1:1", pause=0).prepare({}, "", 1)
    with pytest.raises(ServerError, match="ConnectionError"):
        Server("http://127.0.0.1:1", pause=0, is_here=True).prepare({}, "", 1)


@pytest.fixture
def no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_certificates")
def test_certificates_of_openssl_s_variables_are_trusted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert new_session(DeadlineAdapter.within(1)).verify is True
    assert trusted_certificates({}) is None
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "gone"))
    assert new_session(DeadlineAdapter.within(1)).verify is True  # as OpenSSL takes it; `doctor` says so
    (tmp_path / "ca.pem").touch()
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert new_session(DeadlineAdapter.within(1)).verify == str(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert new_session(DeadlineAdapter.within(1)).verify == str(tmp_path / "ca.pem")
    both = {"SSL_CERT_FILE": "/a", "REQUESTS_CA_BUNDLE": "/b"}
    assert trusted_certificates(both) == ("REQUESTS_CA_BUNDLE", Path("/b"))


def test_what_to_do_about_errors() -> None:
    assert "NO_PROXY" in connection_advice(requests.exceptions.ProxyError())
    assert "REQUESTS_CA_BUNDLE" in connection_advice(requests.exceptions.SSLError())
    missing = OSError("Could not find a suitable TLS CA certificate bundle, invalid path: /none")
    assert "does not exist" in connection_advice(missing)
    assert connection_advice(requests.ConnectionError()) == ""
