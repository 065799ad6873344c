"""Protects the life of the real server process: start, settings that cannot be met, and the way it stops."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from bench.serving.loopback import free_port
from tests.support.recorded import clicked_bodies
from tests.support.server_process import environment

ROOT = Path(__file__).parents[2]


@contextmanager
def backend(folder: Path, port: int, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """The server's process; its log is the file `log` in `folder`."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "backend"],
            cwd=ROOT,
            env=environment(folder, PORT=str(port), **settings),
            stdout=subprocess.DEVNULL,
            stderr=log,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def get(connection: http.client.HTTPConnection, path: str) -> tuple[int, dict[str, str]]:
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def await_ready(port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < deadline
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            if get(connection, "/ready")[0] == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.05)


BUILD = """
import sys
import backend.finetune.run_job, backend.web.app
from backend.factory import build_service
from backend.settings import Settings

build_service(Settings(device="cpu", runtime="torch", dtype="float32")).annotator.close()
print(*sorted({"timm", "torchvision", "torch._dynamo", "sympy"} & sys.modules.keys()))
"""


def test_the_bundled_model_is_served_and_learns_without_timm(tmp_path: Path) -> None:
    """The image for CPUs has neither timm nor torchvision; a start would take twice as long with them, or with torch's
    compiler."""
    for name in ("timm", "torchvision"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name}', name='{name}')")
    settings = environment(tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=ROOT, env=settings, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


class SlowLabelStudio:
    """Gives out one image, when told to."""

    def __init__(self) -> None:
        file = BytesIO()
        Image.new("RGB", (160, 120), "navy").save(file, "PNG")
        self.asked, self.go_on = threading.Event(), threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.set()
                outer.go_on.wait(30)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(file.getvalue())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def slow_label_studio() -> Iterator[SlowLabelStudio]:
    slow = SlowLabelStudio()
    yield slow
    slow.go_on.set()
    slow.server.shutdown()
    slow.server.server_close()


def click(port: int) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/predict", json.dumps(clicked_bodies("03")[0]), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


@pytest.mark.slow
def test_an_answer_arrives_in_one_piece(tmp_path: Path) -> None:
    """Whoever has its header lines has the rest too, also when the server is killed in between; docs/scaling.md."""
    port = free_port()
    with backend(tmp_path, port) as process:
        await_ready(port, process)
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            for path in ["/health", "/metrics", "/openapi.json", "/ui", "/ui/page.css", "/nowhere"] * 20:
                client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                head, _, body = client.recv(1 << 20).partition(b"\r\n\r\n")
                assert f"\r\nContent-Length: {len(body)}" in head.decode(), path
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:  # several at once: the first counts
            client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
            client.shutdown(socket.SHUT_WR)
            answers = b"".join(iter(lambda: client.recv(1 << 20), b""))
            assert answers.count(b"HTTP/1.1 200") == 1


@pytest.mark.slow
def test_silent_connections_keep_no_thread(tmp_path: Path) -> None:
    """With a thread waiting five seconds for each first byte, the answer would come after 45."""
    port = free_port()
    with backend(tmp_path, port) as process, ExitStack() as silent:
        await_ready(port, process)
        for _ in range(300):
            silent.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
        status, _ = get(http.client.HTTPConnection("127.0.0.1", port, timeout=20), "/health")
        assert status == 200


@pytest.mark.slow
def test_clients_that_stop_in_the_middle_leave_threads_for_others(tmp_path: Path) -> None:
    post = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    kinds = {
        "half a line": b"GET /health HTT",
        "half a body": post + b"Content-Length: 1000\r\n\r\n{",
        "half a long body": post + b"Content-Length: 1000000\r\n\r\n" + bytes(300 << 10),
        "half a chunk": post + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        "never reads": b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 400,
        "never closes": b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "no HTTP": b"no HTTP at all\r\n\r\n",
    }
    port = free_port()
    with backend(tmp_path, port, THREADS="12") as process:
        await_ready(port, process)
        for kind, begun in kinds.items():
            with ExitStack() as stopped:
                for _ in range(100):
                    client = stopped.enter_context(socket.socket())
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    client.connect(("127.0.0.1", port))
                    client.setblocking(False)
                    client.send(begun)
                deadline = time.monotonic() + 3
                while time.monotonic() < deadline:
                    probe = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                    assert get(probe, "/health")[0] == 200, kind
                    probe.close()


def worker_of(process: subprocess.Popen[str]) -> int:
    """The process that answers."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


@pytest.mark.slow
def test_a_terminal_that_is_closed_ends_no_click(tmp_path: Path, slow_label_studio: SlowLabelStudio) -> None:
    """It signals every process of its group, the one that answers too, at any time."""
    port = free_port()
    with (
        backend(tmp_path, port, LABEL_STUDIO_URL=slow_label_studio.url) as process,
        ThreadPoolExecutor(4) as pool,
    ):
        await_ready(port, process)
        worker = worker_of(process)
        clicks = [pool.submit(click, port) for _ in range(12)]
        assert slow_label_studio.asked.wait(30)
        for number in range(20):
            os.kill(process.pid, signal.SIGHUP)
            os.kill(worker, signal.SIGHUP)
            time.sleep(0.05)
            if number == 10:
                slow_label_studio.go_on.set()
        assert [one.result(60)[0] for one in clicks] == [200] * 12
        assert worker_of(process) == worker


@pytest.mark.slow
def test_long_bodies_at_once_keep_nobody_from_being_answered(tmp_path: Path) -> None:
    """Sixty took the interpreter for 18 seconds. Those for which there is no place are told before they are read."""
    numbers = b",".join([b"1"] * 900_000)
    bodies = [
        b'{"action": "ANNOTATION_CREATED", "project": {"id": 1}, "x": [%s]}' % numbers,
        b'{"action": "ANNOTATION_CREATED", "project": {"id": 1}, "rle": [%s]}' % (numbers + b"," + numbers),
        b'{"action": "ANNOTATION_CREATED", "project": {"id": 1}, "x": "%s"}' % (b"a" * (12 << 20)),
    ]
    port = free_port()
    with backend(tmp_path, port) as process, ThreadPoolExecutor(40) as pool:
        await_ready(port, process)
        answers = [pool.submit(send, port, bodies[number % 3]) for number in range(40)]
        longest = 0.0
        while not all(answer.done() for answer in answers):
            begin = time.monotonic()
            probe = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            assert get(probe, "/health")[0] == 200
            probe.close()
            longest = max(longest, time.monotonic() - begin)
        statuses = [answer.result(1) for answer in answers]
    assert longest < 3  # a busy machine
    assert set(statuses) <= {201, 503}
    assert statuses.count(201) >= 4


def send(port: int, body: bytes) -> int:
    """The status of an event's answer, also where it comes before all of the event was sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        head = f"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        with suppress(ConnectionError):
            client.sendall(head.encode() + b"\r\n\r\n" + body)
        answer = client.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 201") or b"\r\nRetry-After: " in answer
        return int(answer.split()[1])


@pytest.mark.slow
def test_a_stop_finishes_what_runs_and_exits_with_0(tmp_path: Path, slow_label_studio: SlowLabelStudio) -> None:
    port = free_port()
    with (
        backend(tmp_path, port, LABEL_STUDIO_URL=slow_label_studio.url, SHUTDOWN_TIMEOUT="30") as process,
        ThreadPoolExecutor(1) as pool,
    ):
        await_ready(port, process)
        probe = http.client.HTTPConnection("127.0.0.1", port, timeout=30)  # kept alive, as probes and Label Studio do
        assert get(probe, "/ready") == (200, {"status": "READY"})
        running = pool.submit(click, port)
        assert slow_label_studio.asked.wait(30)
        process.send_signal(signal.SIGTERM)
        while (found := get(probe, "/ready"))[0] == 200:
            time.sleep(0.01)
        assert found == (503, {"error": "the server is stopping"})
        assert not running.done()
        slow_label_studio.go_on.set()
        status, answer = running.result(30)
        assert status == 200
        assert "results" in answer
        assert process.wait(60) == 0
    with pytest.raises(OSError, match="refused"):
        get(http.client.HTTPConnection("127.0.0.1", port, timeout=5), "/health")
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    (start,) = [line["message"] for line in lines if "is ready" in line.get("message", "")]
    for part in ("SkipClick backend 0.", "device cpu", "dtype float32", "bundled (skipclick-lite)", "memo 512MB"):
        assert part in start
    assert slow_label_studio.url in start
    (request,) = [line for line in lines if line.get("route") == "/predict"]
    assert (request["status"], request["task"]) == (200, 2)


@pytest.mark.slow
def test_a_stop_does_not_wait_longer_than_its_limit(tmp_path: Path, slow_label_studio: SlowLabelStudio) -> None:
    port = free_port()
    with (
        backend(tmp_path, port, LABEL_STUDIO_URL=slow_label_studio.url, SHUTDOWN_TIMEOUT="1") as process,
        ThreadPoolExecutor(1) as pool,
    ):
        await_ready(port, process)
        pool.submit(click, port)
        assert slow_label_studio.asked.wait(30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        slow_label_studio.go_on.set()


@pytest.mark.slow
def test_a_checkpoint_that_is_not_there_ends_the_start_with_one_line(tmp_path: Path) -> None:
    with backend(tmp_path, free_port(), CHECKPOINT="/nowhere.safetensors") as process:
        assert process.wait(120) == 3
    log = (tmp_path / "log").read_text()
    assert "cannot start: checkpoint /nowhere.safetensors does not exist; give a file or 'bundled'\n" in log
    assert "Traceback" not in log


def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "backend", *arguments],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )


def test_bad_settings_end_the_start_with_a_line_each() -> None:
    done = run(PORT="http", THREAD="8")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "cannot start: unknown setting THREAD; did you mean THREADS?",
        "cannot start: PORT=http is not a whole number from 0 to 65535",
    ]


def test_an_address_that_this_machine_does_not_have_ends_the_start_with_one_line() -> None:
    done = run(HOST="192.0.2.1", PORT="0")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("cannot start: HOST=192.0.2.1 is not an address of this machine")


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="needs the loopback address of IPv6")
@pytest.mark.parametrize(("host", "reached_at"), [("::1", ["::1"]), ("::", ["::1", "127.0.0.1"])])
def test_it_listens_on_ipv6(tmp_path: Path, host: str, reached_at: list[str]) -> None:
    port = free_port()
    with backend(tmp_path, port, HOST=host) as process:
        deadline = time.monotonic() + 120
        left = list(reached_at)
        while left:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            connection = http.client.HTTPConnection(left[0], port, timeout=30)
            with suppress(OSError):
                assert get(connection, "/health")[0] == 200
                left.pop(0)
            connection.close()
            time.sleep(0.05)
    assert f"[{host}]:{port}" in (tmp_path / "log").read_text()


def test_the_command_line_explains_itself() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    for command in ("serve", "doctor", "warm", "models", "settings"):
        assert f"\n  {command} " in shown.stdout
    assert run("settings").stdout == (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    for wrong in (["nonsense"], ["settings", "now"], ["serve", "--fast"]):
        done = run(*wrong)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
