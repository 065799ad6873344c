"""Protects the reader: every command of the README and of docs/ is run, or at least parsed, as it stands there.

A command that no rule below knows fails the test, so a new one cannot be written down untried.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from contextlib import chdir
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.finetune.versions import Versions
from skipclick.checkpoint import save_checkpoint
from tests.support.tuned_models import base_model, tuned_model

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PHOTO = ROOT / "tests" / "e2e" / "photos" / "coffee.jpg"
CHECKPOINT = ROOT / "tests" / "parity" / "nano_skip_checkpoint.pth"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:make|pip|python|torchrun|docker|skipclick) [^`]+)`")


def _commands() -> list[tuple[str, str]]:
    """(page, command) of all shell blocks and of inline code that begins with a program of ours; each command once."""
    found: dict[str, str] = {}
    for page in PAGES:
        text = page.read_text()
        blocks = [body.replace("\\\n", " ") for kind, body in FENCE.findall(text) if not kind]
        lines = [line.partition("  #")[0].strip() for body in blocks for line in body.splitlines()]
        lines += INLINE.findall(FENCE.sub("", text))
        for line in filter(None, lines):
            found.setdefault(line.removesuffix(" ..."), page.name)
    return [(page, command) for command, page in found.items()]


COMMANDS = _commands()


def _words(command: str) -> list[str]:
    words = shlex.split(command)
    while "=" in words[0]:  # settings before the program
        words.pop(0)
    return words


def _run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "LABEL_STUDIO_URL": "http://127.0.0.1:9",
        "OMP_NUM_THREADS": "1",
    }
    for name in ("LABEL_STUDIO_API_KEY", "CHECKPOINT"):
        environment.pop(name, None)
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False)


def _check_make(words: list[str]) -> None:
    run = _run(["make", "--dry-run", *words[1:]], ROOT)
    assert run.returncode == 0, run.stderr


def _small_checkpoint(path: Path) -> str:
    """In place of the bundled one, whose clicks, and whose graphs for OpenVINO, take many times longer."""
    save_checkpoint(base_model(), path, version="small", provenance={})
    return str(path)


def _check_skipclick(arguments: list[str], folder: Path) -> None:
    shutil.copy(PHOTO, folder / "photo.jpg")
    with Image.open(PHOTO) as photo:
        Image.new("1", photo.size, 1).save(folder / "mask.png")
    shutil.copy(CHECKPOINT, folder / "full_model_skipclick.pth")
    _small_checkpoint(folder / "skipclick.safetensors")
    with chdir(folder):
        assert import_module("skipclick.__main__").main(arguments) == 0


def _check_noc(words: list[str], folder: Path) -> None:
    """The command as it stands, but for the data, of which one photo of the check set takes the place, and for a
    small network in place of checkpoints."""
    small = _small_checkpoint(folder / "small.safetensors")
    arguments = [word for word in words[2:] if "=" not in word]
    if "--dataset" in arguments:
        place = arguments.index("--dataset") + 1
        arguments[place:place] = ["folder=skipclick/evaluation/check_set"]
    for option in ("--output", "--plots", "--compare"):
        if option in arguments:
            del arguments[arguments.index(option) : arguments.index(option) + 2]
    absent = re.compile(r".*(\.safetensors|\.pth|_plug:\w+)")  # plugs: tests/bench/baselines/test_isegm_checkout.py
    arguments = [small if word == "bundled" or absent.fullmatch(word) else word for word in arguments]
    limit = [] if "--list" in arguments else ["--limit", "1"]
    with chdir(ROOT):
        assert import_module("bench.noc").main([*arguments, *limit]) == 0


def _check_backend(words: list[str]) -> None:
    if words[3:4] == ["settings"]:
        assert _run([sys.executable, "-m", "backend", "settings"], ROOT).returncode == 0
        return
    run = _run([sys.executable, *[word for word in words[1:] if word != ">"]], ROOT)  # no Label Studio answers here
    assert run.returncode in (1, 2), run.stderr
    assert ("CVAT" if "--cvat" in words else "Label Studio") in run.stdout + run.stderr
    assert "Traceback" not in run.stderr


def _check_cvat(words: list[str]) -> None:
    """CVAT's own command takes the options; there is no CVAT to ask."""
    command = words[: words.index("function") + 2]
    run = _run([str(Path(sys.executable).with_name("cvat-cli")), *command[1:], "--help"], ROOT)
    assert run.returncode == 0, run.stderr
    options = [word for word in words[len(command) :] if word.startswith("--")]
    assert [option for option in options if option not in run.stdout] == []
    assert import_module(words[words.index("--function-module") + 1]).create


def _check_models(options: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On three versions of project 12's head."""
    base, versions = base_model(), Versions(folder)
    save_checkpoint(base, folder / "base.safetensors", version=base.version, provenance={})
    for seed in range(3):
        version = versions.write(12, tuned_model(seed), base, about={}, report={})
        versions.promote(12, version.number)
    monkeypatch.setenv("MODEL_DIR", str(folder))
    monkeypatch.setenv("CHECKPOINT", str(folder / "base.safetensors"))
    with chdir(folder):
        assert import_module("backend.__main__").main(["models", *options]) == 0


def _check_help(module: str, command: list[str], options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What takes hours, or a server: that the command exists and takes these options."""
    with pytest.raises(SystemExit) as ended:
        import_module(module).main([*command, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert [option for option in options if option.startswith("--") and option not in shown] == []


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}: {command}" for page, command in COMMANDS])
def test_a_documented_command_works(
    page: str,
    command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = _words(command)
    match words:
        case ["make", *_]:
            _check_make(words)
        case ["pip", "install", what]:
            assert re.fullmatch(r"\.(\[[a-z,]+\])?", what), "only this project is installed by hand"
            assert set(re.findall(r"[a-z]+", what)) <= PROJECT.get("optional-dependencies", {}).keys()
        case ["skipclick", *arguments]:
            _check_skipclick(arguments, tmp_path)
        case ["python", "bench/noc.py", *_]:
            _check_noc(words, tmp_path)
        case ["python", "-m", "train", name, *options] | ["torchrun", _, _, "-m", "train", name, *options]:
            _check_help("train.__main__", [name], options, capsys)
        case ["deploy/train-nodes.sh", _, _, *options]:
            _check_help("train.__main__", ["fit"], options, capsys)
        case ["python", "-m", "backend", "models", *options]:
            _check_models(options, tmp_path, monkeypatch)
        case ["python", "-m", "backend", "warm", *options]:
            _check_help("backend.commands.warm", [], options, capsys)
        case ["cvat-cli", *_]:
            _check_cvat(words)
        case ["python", "-m", "backend", *_]:
            _check_backend(words)
        case ["python", script, *options] if script.startswith("bench/"):
            subcommand = [word for word in options[:1] if re.fullmatch("[a-z]+", word)]
            _check_help(script.removesuffix(".py").replace("/", "."), subcommand, options, capsys)
        case ["python", script, *_]:
            assert (ROOT / script).is_file()
        case ["pip", "check"]:  # of the image's build
            pass
        case ["docker" | "printf", *_]:  # tests/image builds and runs the image, tests/deploy reads the files
            assert (ROOT / "tests" / "image").is_dir()
        case _:
            pytest.fail(f"{page}: no rule for {command!r}; add one, so that it is tried")


def test_the_readmes_python_runs(tmp_path: Path) -> None:
    (code,) = [body for kind, body in FENCE.findall((ROOT / "README.md").read_text()) if kind == "python"]
    scope = {"image": np.array(Image.open(PHOTO))}
    exec(code, scope)
    assert scope["second"].shape == scope["image"].shape[:2]
