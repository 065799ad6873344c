"""How many replicas a team needs: behind the real HAProxy with simulated accelerators, and as a pure simulation.

    python bench/scaling/scale.py measure                    1,000 annotators on 1 to 8 replicas, two minutes each
    python bench/scaling/scale.py failure --replicas 4       one is killed after a third and returns after two thirds
    python bench/scaling/scale.py overhead                   what HAProxy adds to a click
    python bench/scaling/scale.py simulate                   no HTTP at all: 100 to 100,000 annotators
    python bench/scaling/scale.py simulate --times vit-b-cpu --later 500 --first 2000

--times says how long a replica's device is busy: a name, or a row of a result of bench/serving/latency.py as
FILE:MODEL:RESOLUTION:DEVICE:DTYPE, such as runs/latency.json:vit-b:448:cuda:bfloat16. Each writes OUTPUT.json and .md,
`failure` .png too. All but `simulate` need HAProxy (Debian package haproxy). Exit status 2 for wrong options.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.cli import CommandParser, write_results
from bench.scaling.capacity import TIMES, find_need, times_of
from bench.scaling.fleet_simulation import Pace
from bench.scaling.report import draw_failure, failure_table, measured_table, need_table, overhead_table
from bench.scaling.stub_fleet import measure, measure_failure, measure_overhead
from bench.serving.loopback import exit_on_signals
from skipclick.evaluation.option_types import positive

MAX_ANNOTATORS, MAX_SECONDS = 1_000_000, 3600.0
PACE = Pace()


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    options = _parser().parse_args(arguments)
    output: Path = options.output or Path("runs") / f"scale-{options.command}"
    try:
        text, facts = options.run(options, output)
    except (ValueError, OSError) as error:
        print(f"scale: {error}", file=sys.stderr)
        return 2
    write_results(output, facts, text + "\n")
    print(text)
    return 0


def _measure(options: argparse.Namespace, _: Path) -> tuple[str, dict[str, Any]]:
    source, facts = _conditions(options)
    rows = [
        measure(options.times, people, replicas, options.seconds, PACE)
        for people in options.annotators
        for replicas in options.replicas
    ]
    return f"{source}\n\n{measured_table(rows)}", facts | {"rows": [asdict(row) for row in rows]}


def _failure(options: argparse.Namespace, output: Path) -> tuple[str, dict[str, Any]]:
    source, facts = _conditions(options)
    people, replicas = options.annotators, options.replicas
    served, failed = measure_failure(options.times, people, replicas, options.seconds, PACE)
    title = f"{people:,} annotators, {replicas} replicas; {options.times.name}"
    draw_failure(served, failed, options.seconds, output.with_suffix(".png"), title)
    text = f"{source}\n\n{failure_table(people, replicas, served, failed, options.seconds)}"
    figures = {"annotators": people, "replicas": replicas, "failed": failed, "served": [asdict(one) for one in served]}
    return text, facts | figures


def _simulate(options: argparse.Namespace, _: Path) -> tuple[str, dict[str, Any]]:
    source, facts = _conditions(options)
    needs = [
        find_need(options.times, people, options.seconds, PACE, options.later, options.first)
        for people in options.annotators
    ]
    return f"{source}\n\n{need_table(needs)}", facts | {"needs": [asdict(one) for one in needs]}


def _overhead(options: argparse.Namespace, _: Path) -> tuple[str, dict[str, Any]]:
    added = measure_overhead(options.rounds)
    return overhead_table(added), {"overhead": added}


def _conditions(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """What a run assumes: in words, and as facts for the result file."""
    times = options.times
    words = f"{times.name}: encode {1000 * times.encode:g} ms, click {1000 * times.click:g} ms ({times.source})."
    return words, {"times": asdict(times), "pace": asdict(PACE), "seconds": options.seconds}


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring, failing, simulating, comparing = (
        commands.add_parser(name) for name in ("measure", "failure", "simulate", "overhead")
    )
    measuring.set_defaults(run=_measure)
    measuring.add_argument("--annotators", type=_annotators, nargs="+", default=[1000])
    measuring.add_argument("--replicas", type=positive, nargs="+", default=[1, 2, 3, 4, 6, 8])
    failing.set_defaults(run=_failure)
    failing.add_argument("--annotators", type=_annotators, default=1000)
    failing.add_argument("--replicas", type=positive, default=4)
    simulating.set_defaults(run=_simulate)
    simulating.add_argument("--annotators", type=_annotators, nargs="+", default=[100, 1000, 10_000, 100_000])
    simulating.add_argument("--later", type=float, default=100.0, help="ms for 95 %% of clicks (default: 100)")
    simulating.add_argument("--first", type=float, default=500.0, help="ms for 95 %% of first clicks (default: 500)")
    for command, seconds in ((measuring, 120.0), (failing, 180.0), (simulating, 45.0)):
        command.add_argument("--seconds", type=_seconds, default=seconds, help=f"of a run (default: {seconds:g})")
        command.add_argument(
            "--times", type=_times, default="gpu", help=f"{', '.join(TIMES)}, or FILE:MODEL:RESOLUTION:DEVICE:DTYPE"
        )
    comparing.set_defaults(run=_overhead)
    comparing.add_argument("--rounds", type=positive, default=2000)
    for command in (measuring, failing, simulating, comparing):
        command.add_argument("--output", type=Path, help="names of the results, without ending")
    return parser


def _annotators(text: str) -> int:
    if positive(text) > MAX_ANNOTATORS:
        raise argparse.ArgumentTypeError(f"{text} annotators are too many: at most {MAX_ANNOTATORS:,}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 1 to {MAX_SECONDS:g}")
    return seconds


def _times(text: str) -> Any:
    try:
        return times_of(text)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    exit_on_signals()
    sys.exit(main())
