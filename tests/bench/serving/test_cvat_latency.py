"""Protects the measurement of a CVAT click beside one of Label Studio: both tools' clicks are answered and counted."""

from __future__ import annotations

import subprocess  # noqa: F401  # the module starts a server: tests/conftest.py marks it by this

import pytest

from bench.serving.cvat_latency import main


def test_both_tools_are_measured_on_one_server(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DTYPE", "float32")
    assert main(["--clicks", "2", "--size", "320x240"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("a photo of 320 x 240 pixels")
    assert [line.split()[0] for line in lines[2:]] == ["CVAT", "Label"]
    assert all(float(line.split()[-1]) > 0 for line in lines[2:])


def test_wrong_options_are_refused() -> None:
    with pytest.raises(SystemExit) as error:
        main(["--clicks", "0"])
    assert error.value.code == 2
