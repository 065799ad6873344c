"""How many clicks a method needs: the NoC benchmark with a simulated annotator.

Each object is clicked until its IoU reaches 0.95, at most 20 times: the first click into the middle of the object, each
further one into the middle of the largest error. NoC@t is the mean number of clicks until the IoU reaches t, where an
object that never does counts 20 (paper section 4.1 and appendix A). Every IoU and every click goes to the output file.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.baselines import RIVALS
from bench.compare import check_comparable, compare, comparison_report, side_by_side_table
from bench.journal import append_entry, resume_journal, start_journal
from bench.models import checkpoint_sha256, load_model, use_deterministic_kernels
from bench.published import TABLES
from bench.runner import Task, Timed, Workers, collect, open_workers, plan, run_task
from bench.tables import check_table, paper_table, published_table, report
from bench.throughput import Throughput, benchmark_throughput, simple_loops, throughput_table
from skipclick.atomic_io import replaced_atomically
from skipclick.evaluation.datasets import LAYOUTS, describe_datasets, open_dataset
from skipclick.evaluation.evaluate import make_rules
from skipclick.evaluation.results import Results, read_results, write_results
from skipclick.evaluation.versions import software_versions
from skipclick.predictor import DTYPES

EXAMPLES = """\
examples:
  the paper's protocol on three sets, every click to a file:
    python bench/noc.py --model bundled --dataset GrabCut=DIR Berkeley=DIR DAVIS=DIR --output runs/noc.json
  two models side by side, figures for a paper:
    python bench/noc.py --model mine.safetensors grabcut --dataset GrabCut=DIR --output runs/two.json --plots runs/plots
  what annotators get, clicking as people do, on a team's own photos:
    python bench/noc.py --model bundled --dataset folder=DIR --protocol serve --clicks jitter --seeds 5
  did it get worse? (exit status 1 if so):
    python bench/noc.py --model new.safetensors --dataset GrabCut=DIR --compare runs/old.json --tolerance 0.1
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 where results got worse or did not repeat, 2 after one line where the input is at fault."""
    command = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser()
    options = parser.parse_args(command)
    try:
        if options.list:
            print(describe_datasets(dict(options.dataset)))
            return 0
        if not options.model or not options.dataset:
            parser.error("--model and --dataset are needed, or --list, which says what data sets there are")
        return _measure(options, command)
    except (ValueError, OSError) as error:
        print(f"noc: {error}", file=sys.stderr)
        return 2
    except BrokenProcessPool:
        print("noc: a worker process died, perhaps for lack of memory: use fewer --jobs", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        hint = ": the same command with --resume continues" if options.output else ""
        print(f"noc: interrupted{hint}", file=sys.stderr)
        return 130


def _measure(options: argparse.Namespace, command: Sequence[str]) -> int:
    """The whole command: measure, write, report, compare."""
    _check(options)
    old = read_results(options.compare) if options.compare else None
    use_deterministic_kernels(options.device)
    rules = make_rules(options.protocol, options.clicks, options.seeds or 3, options.thresholds, options.flip)
    datasets = [open_dataset(name, folder, options.limit) for name, folder in options.dataset]
    names = [dataset.name for dataset in datasets]
    if old:
        check_comparable(old, rules.to_dict(), options.model, names)
    if options.table:
        check_table(options.table, len(options.model), names)
    tasks = plan(options.model, datasets, rules, device=options.device, dtype=options.dtype, side=options.resolution)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    status = 0
    with open_workers(options.device, options.jobs, options.batch) as workers:
        measured = _run_all(tasks, workers, options)
        results = collect(tasks, [one.measurement for one in measured], command, created)
        if options.output:
            write_results(options.output, results)
            _journal(options.output).unlink()
        sections = [report(results)]
        if len(results.runs) > 1:
            sections.append(f"### Does it differ?\n\n{side_by_side_table(results)}")
        if options.profile:
            sections.append(throughput_table(_ways(tasks, measured, workers)))
        if options.repeat:
            again = collect(tasks, [run_task(task, workers).measurement for task in tasks], command, created)
            difference = first_difference(results, again)
            sections.append(f"Measured twice: {difference or 'every click and every IoU the same, bit for bit'}.")
            status = 1 if difference else status
    if options.table:
        sections.append(paper_table(results, options.table, options.paper))
    elif options.paper:
        sections.append(published_table(results))
    if old:
        comparison = compare(old, results)
        sections.append(f"### Against {options.compare}\n\n{comparison_report(comparison, options.tolerance)}")
        status = 1 if comparison.regressions(options.tolerance) else status
    if options.plots:
        sections.append("Figures: " + ", ".join(map(str, _plot(results, tasks, options.plots))))
    text = "\n\n".join(sections)
    print(text)
    if options.output:
        with replaced_atomically(options.output.with_suffix(".md")) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    return status


def _check(options: argparse.Namespace) -> None:
    """Raises ValueError where options contradict each other or need what is not installed: before hours of work."""
    if options.seeds is not None and options.clicks != "jitter":
        raise ValueError("--seeds are those of --clicks jitter: centre clicks draw nothing")
    if options.output and options.output.suffix != ".json":
        raise ValueError(
            f"--output {options.output} is a JSON file, with a .md beside it: give a name that ends in .json"
        )
    if options.resume and not options.output:
        raise ValueError("--resume continues the journal beside --output: give the --output of the interrupted run")
    if options.resume and options.profile:
        raise ValueError("--profile times a whole run: leave --resume away")
    if options.plots:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise ValueError("--plots needs matplotlib: pip install -r requirements/bench.txt") from None


def _run_all(tasks: Sequence[Task], workers: Workers, options: argparse.Namespace) -> list[Timed]:
    """Measure every task; with an output file, through a journal beside it."""
    if not options.output:
        return [run_task(task, workers) for task in tasks]
    journal = _journal(options.output)
    subject = _subject(tasks, workers)
    if options.resume and journal.exists():
        done = resume_journal(journal, subject)
    else:
        if journal.exists():
            print(f"noc: {journal} is begun anew (--resume would have continued it)", file=sys.stderr)
        start_journal(journal, subject)
        done = []
    return [run_task(task, workers, done, lambda entry: append_entry(journal, entry)) for task in tasks]


def _ways(tasks: Sequence[Task], measured: Sequence[Timed], workers: Workers) -> Iterator[Throughput]:
    """This run beside simple loops over the same photos."""
    for task, one in zip(tasks, measured, strict=True):
        yield from simple_loops(task)
        yield benchmark_throughput(task, one, workers)


def _journal(output: Path) -> Path:
    return output.with_name(output.name + ".journal")


def _subject(tasks: Sequence[Task], workers: Workers) -> dict[str, Any]:
    """What must be the same where a run is resumed, for its results to be those of an uninterrupted one."""
    names = list(dict.fromkeys(task.spec.name for task in tasks))
    return {
        "versions": software_versions(),
        "rules": tasks[0].rules.to_dict(),
        "models": [(name, checkpoint_sha256(name)) for name in names],
        "settings": [asdict(task.spec) for task in tasks],
        "data sets": [(task.dataset.name, task.dataset.folder, len(task.dataset)) for task in tasks],
        "batch": workers.group,
    }


def first_difference(one: Results, other: Results) -> str | None:
    """Where two runs of one command found different things (times apart), in words; None if nowhere."""
    for run, run_again in zip(one.runs, other.runs, strict=True):
        for measurement, again in zip(run.measurements, run_again.measurements, strict=True):
            where = f"{run.name} on {measurement.dataset}"
            if measurement.problems != again.problems:
                return f"{where}: other photos were broken the second time"
            for first, second in zip(measurement.objects, again.objects, strict=True):
                if (first.ious, first.clicks) != (second.ious, second.clicks):
                    return f"{where}: {first.image} #{first.object_id} went differently the second time"
    return None


def _plot(results: Results, tasks: Sequence[Task], folder: Path) -> list[Path]:
    from bench.plots import save_plots  # matplotlib is needed for this alone

    specs = {(task.spec.name, task.dataset.name): task.spec for task in tasks}
    datasets = {task.dataset.name: task.dataset for task in tasks}
    return save_plots(
        results,
        folder,
        lambda run, measurement: load_model(specs[run.name, measurement.dataset]),
        lambda measurement: datasets[measurement.dataset],
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="noc.py", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_argument_group("what to measure")
    what.add_argument(
        "--model",
        nargs="+",
        metavar="MODEL",
        help="'bundled', a checkpoint file (.safetensors of ours, .pth of the authors), or a rival: "
        + "; ".join(f"{name} ({what_it_is})" for name, what_it_is in RIVALS.items()),
    )
    what.add_argument(
        "--dataset",
        nargs="+",
        default=[],
        type=_named_folder,
        metavar="NAME=DIR",
        help=f"data sets and where they lie; NAME is one of {', '.join(LAYOUTS)}",
    )
    what.add_argument("--limit", type=_positive, metavar="N", help="only the first N photos of each data set")
    what.add_argument("--list", action="store_true", help="say what each data set's folder holds and how much is there")

    how = parser.add_argument_group("protocol")
    how.add_argument(
        "--protocol",
        choices=("paper", "serve"),
        default="paper",
        help="paper: as the released code evaluates (default); serve: what the backend gives annotators",
    )
    how.add_argument(
        "--clicks",
        choices=("center", "jitter"),
        default="center",
        help="the middle of the largest error (default), or a random point of its inner half, as people click",
    )
    how.add_argument("--seeds", type=_positive, metavar="N", help="of jittered clicks: measured N times (default: 3)")
    how.add_argument(
        "--thresholds",
        nargs="+",
        type=_percent,
        default=[85, 90, 95],
        metavar="PERCENT",
        help="IoU whose NoC is reported (default: 85 90 95)",
    )
    how.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        help="average with the mirrored photo (default: as the protocol does, paper yes, serve no)",
    )
    how.add_argument(
        "--resolution",
        type=_positive,
        metavar="SIDE",
        help="side in pixels that the network works at (default: the paper's for the data set, 448, 672 or 896, "
        "and the model's own for a ConvNet such as the bundled one)",
    )

    running = parser.add_argument_group("running")
    running.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    running.add_argument("--dtype", default="float32", choices=sorted(DTYPES), help="of the network (default: float32)")
    running.add_argument(
        "--jobs",
        type=_positive,
        metavar="N",
        help="on the CPU, processes with one thread each (default: 1; fastest: one for each core); on a GPU, threads "
        "that share it (default: 4)",
    )
    running.add_argument(
        "--batch",
        type=_positive,
        metavar="N",
        help="photos whose objects are clicked in one batch (default: 1, on a GPU 8); changes results by rounding only",
    )
    running.add_argument("--resume", action="store_true", help="continue the interrupted run of the same --output")
    running.add_argument("--repeat", action="store_true", help="measure twice; exit status 1 if any bit differs")
    running.add_argument(
        "--profile",
        action="store_true",
        help="also run two simple loops, and show photos and clicks per second and where the time goes",
    )

    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", type=Path, metavar="FILE.json", help="every click and IoU; the tables go to FILE.md beside it"
    )
    output.add_argument("--plots", type=Path, metavar="DIR", help="figures as PDF and PNG (needs matplotlib)")
    output.add_argument("--paper", action="store_true", help="print the published figures beside the measured ones")
    output.add_argument(
        "--table",
        type=int,
        choices=sorted(TABLES),
        help="lay out as this table of the paper (1: its four checkpoints to --model, in the paper's order)",
    )

    comparison = parser.add_argument_group("comparison")
    comparison.add_argument("--compare", type=Path, metavar="OLD.json", help="an earlier --output, object by object")
    comparison.add_argument(
        "--tolerance",
        type=_tolerance,
        default=0.0,
        metavar="CLICKS",
        help="exit status 1 if NoC@85 or @90 rose by more than this and the 95%% interval excludes zero (default: 0)",
    )
    return parser


def _named_folder(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not separator or not folder:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR")
    return name, Path(folder)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _tolerance(text: str) -> float:
    try:
        clicks = float(text)
    except ValueError:
        clicks = -1.0
    if not 0 <= clicks < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of clicks from 0")
    return clicks


def _percent(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage from 1 to 100")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
