"""Measures how many clicks a model needs per object (NoC), with a simulated annotator.

The first click goes to the middle of the object, each further click to the middle of the largest error, until the IoU
reaches 0.95 or after 20 clicks. NoC@t is the mean number of clicks until the IoU reaches t; an object that never
reaches it counts as 20 (section 4.1 and appendix A of the paper). --output keeps every click and every IoU.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.baselines import BASELINES, SAM_FAMILY
from bench.cli import CommandParser
from bench.compare import check_comparable, compare, comparison_report, side_by_side_table
from bench.five_clicks import FIVE_CLICKS, NUM_OBJECTS, five_click_rules, larger_objects
from bench.models import checkpoint_sha256, load_model, published_row, use_deterministic_kernels
from bench.published import TABLES
from bench.runner import Entry, Task, Workers, collect, open_workers, plan, run_task
from bench.tables import paper_table, published_table, report
from skipclick.atomic_io import atomic_write
from skipclick.evaluation.datasets import describe_datasets, open_dataset
from skipclick.evaluation.evaluate import make_rules
from skipclick.evaluation.journal import append_entry, resume_journal, start_journal
from skipclick.evaluation.option_types import named_folder, positive
from skipclick.evaluation.results import Measurement, Results, read_results, write_results
from skipclick.evaluation.starts import GIVEN
from skipclick.evaluation.versions import software_versions
from skipclick.predictor import DTYPES, RUNTIMES

JOURNAL = "skipclick-noc-journal-1"

EXAMPLES = """\
examples:
  noc.py --model bundled grabcut --dataset GrabCut=DIR --output noc.json
  noc.py --model new.safetensors --dataset GrabCut=DIR --compare noc.json
  noc.py --table 3 --model full_model_skipclick.pth sam:DIR --dataset SHSeg=DIR
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 if results got worse, 2 after a one-line message if the input is wrong."""
    command = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser()
    options = parser.parse_args(command)
    try:
        if options.list:
            print(_baselines() + "\n" + describe_datasets(dict(options.dataset)))
            return 0
        if not options.model or not options.dataset:
            parser.error("give --model and --dataset, or --list to see the baselines and data sets")
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
    five_clicks = options.protocol == "coco5"
    if options.table:
        options.thresholds = sorted(TABLES[options.table].thresholds | set(options.thresholds))
    rules = make_rules(
        "paper" if five_clicks else options.protocol,
        options.clicks,
        options.seeds or 3,
        options.thresholds,
        False if five_clicks and options.flip is None else options.flip,
        options.zoom,
        options.start,
    )
    rules = replace(rules, num_clicks=options.num_clicks or rules.num_clicks)
    datasets = [open_dataset(name, folder, options.limit) for name, folder in _wanted(options)]
    if five_clicks:
        rules, datasets = five_click_rules(rules), [larger_objects(dataset) for dataset in datasets]
    names = [dataset.name for dataset in datasets]
    if old:
        check_comparable(old, rules.to_dict(), options.model, names)
    tasks = plan(
        options.model,
        datasets,
        rules,
        device=options.device,
        dtype=options.dtype,
        runtime=options.runtime,
        adapt=options.adapt,
        side=options.resolution,
        mask_feedback=not options.no_mask_feedback,
    )
    created = datetime.now(UTC).isoformat(timespec="seconds")
    jobs, batch = (1, 1) if options.adapt else (options.jobs, options.batch)
    with open_workers(options.device, jobs, batch) as workers:
        results = collect(tasks, _run_all(tasks, workers, options), command, created)
    if options.output:
        write_results(options.output, results)
        _journal(options.output).unlink()
    sections = [report(results)]
    if len(results.runs) > 1:
        sections.append(f"### Does it differ?\n\n{side_by_side_table(results)}")
    if options.table:
        rows = {name: published_row(name, options.table, adapted=bool(options.adapt)) for name in options.model}
        sections.append(paper_table(results, options.table, rows))
    if five_clicks:
        rows = {name: "SAM 3" if name.startswith("sam3:") else None for name in options.model}
        sections.append(published_table(results, FIVE_CLICKS, rows, NUM_OBJECTS))
    status = 0
    if old:
        comparison = compare(old, results)
        sections.append(f"### Against {options.compare}\n\n{comparison_report(comparison, options.tolerance)}")
        status = 1 if comparison.regressions(options.tolerance) else status
    if options.plots:
        sections.append("Figures: " + ", ".join(map(str, _plot(results, tasks, options.plots))))
    text = "\n\n".join(sections)
    print(text)
    if options.output:
        with atomic_write(options.output.with_suffix(".md")) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    return status


def _wanted(options: argparse.Namespace) -> list[tuple[str, Path]]:
    """The data sets to measure: of those given the ones that the table has, or all where it has none of them."""
    of_table = TABLES[options.table].datasets if options.table else ()
    return [one for one in options.dataset if one[0] in of_table] or list(options.dataset)


def _check(options: argparse.Namespace) -> None:
    """Raises ValueError where options contradict each other or need what is not installed: before hours of work."""
    if options.table and options.num_clicks:
        raise ValueError("--table is of published figures, which are of 20 clicks at most: omit --num-clicks")
    if options.protocol == "coco5" and (
        options.table or options.num_clicks or options.start or options.clicks != "center"
    ):
        raise ValueError("--protocol coco5 is of five centre clicks: omit --table, --num-clicks, --start and --clicks")
    if options.seeds is not None and options.clicks == "center":
        raise ValueError("--seeds are those of --clicks jitter or weighted: centre clicks draw nothing")
    if options.start in GIVEN and (others := [name for name, _ in options.dataset if name != "DAVIS-585"]):
        raise ValueError(
            f"--start {options.start} is of masks that come with DAVIS-585 alone: omit {', '.join(others)}"
        )
    if options.no_mask_feedback and not any(name.partition(":")[0] in SAM_FAMILY for name in options.model):
        raise ValueError("--no-mask-feedback is of SAM's family, and no such --model is given")
    if options.output and options.output.suffix != ".json":
        raise ValueError(
            f"--output {options.output} is a JSON file, with a .md beside it: give a name that ends in .json"
        )
    if options.resume and not options.output:
        raise ValueError("--resume continues the journal beside --output: give the --output of the interrupted run")
    if options.adapt and (options.protocol == "serve" or options.resume or options.plots):
        raise ValueError("--adapt is not of the server, and goes in one piece: omit --resume and --plots")
    if options.adapt and (options.jobs or options.batch or 1) > 1:
        raise ValueError("--adapt learns from one photo after the other: omit --jobs and --batch")
    if options.plots and options.start:
        raise ValueError("--plots draws objects that begin with nothing: omit --start")
    if options.plots:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise ValueError("--plots needs matplotlib: pip install -r requirements/bench.txt") from None


def _run_all(tasks: Sequence[Task], workers: Workers, options: argparse.Namespace) -> list[Measurement]:
    """Measure every task; with an output file, through a journal beside it."""
    if not options.output:
        return [run_task(task, workers) for task in tasks]
    journal = _journal(options.output)
    subject = _subject(tasks, workers)
    if options.resume and journal.exists():
        remedy = "give the command that was interrupted, or leave --resume out to start over"
        done = resume_journal(journal, JOURNAL, subject, Entry.from_dict, remedy)
    else:
        if journal.exists():
            print(f"noc: starting over; --resume would have continued {journal}", file=sys.stderr)
        start_journal(journal, JOURNAL, subject)
        done = []
    return [run_task(task, workers, done, lambda entry: append_entry(journal, asdict(entry))) for task in tasks]


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


def _baselines() -> str:
    return "\n".join(["Baselines:", *(f"  {name}: {what}" for name, what in BASELINES.items()), ""])


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="noc.py",
        usage="%(prog)s --model MODEL [...] --dataset NAME=DIR [...] [options]",
        description="Measure how many clicks a model needs per object (NoC), with a simulated annotator.",
        epilog=EXAMPLES,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34),
        add_help=False,
    )
    what = parser.add_argument_group("what to measure")
    what.add_argument("--model", nargs="+", metavar="MODEL", help="'bundled', a checkpoint file or a baseline")
    what.add_argument("--dataset", nargs="+", default=[], type=named_folder, metavar="NAME=DIR", help="a data set")
    what.add_argument("--limit", type=positive, metavar="N", help="only the first N photos of each data set")
    what.add_argument("--list", action="store_true", help="list baselines and data sets, and exit")
    what.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)

    how = parser.add_argument_group("protocol")
    how.add_argument("--protocol", choices=("paper", "serve", "coco5"), default="paper", help="default: paper")
    how.add_argument(
        "--clicks",
        choices=("center", "jitter", "weighted"),
        default="center",
        help="where in the largest error",
    )
    how.add_argument("--num-clicks", type=positive, metavar="N", help="at most so many (default: 20)")
    how.add_argument("--seeds", type=positive, metavar="N", help="of random clicks (default: 3)")
    how.add_argument(
        "--thresholds", nargs="+", type=_percent, default=[85, 90, 95], metavar="PERCENT", help="of NoC (85 90 95)"
    )
    how.add_argument("--flip", action=argparse.BooleanOptionalAction, help="average with the mirrored photo (if paper)")
    how.add_argument("--zoom", action=argparse.BooleanOptionalAction, help="look closer after a click (if serve)")
    how.add_argument("--start", type=_start, metavar="WHAT", help="box, or masks: noise, sp, stm or a DIR")
    how.add_argument("--start-from", dest="start", type=_start, help=argparse.SUPPRESS)
    how.add_argument("--adapt", choices=("clicks", "masks", "both"), help="let the decoder learn during use")
    how.add_argument("--resolution", type=positive, metavar="SIDE", help="input size (default: published, or own)")
    how.add_argument("--no-mask-feedback", action="store_true", help="SAM's family: clicks alone")

    running = parser.add_argument_group("running")
    running.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    running.add_argument("--runtime", default="torch", choices=RUNTIMES, help="of our models (default: torch)")
    running.add_argument("--dtype", default="float32", choices=sorted(DTYPES), metavar="DTYPE", help=", ".join(DTYPES))
    running.add_argument("--jobs", type=positive, metavar="N", help="processes (1), or threads on a GPU (4)")
    running.add_argument("--batch", type=positive, metavar="N", help="photos clicked together (1, on a GPU 8)")
    running.add_argument("--resume", action="store_true", help="continue an interrupted run")

    output = parser.add_argument_group("output and comparison")
    output.add_argument("--output", type=Path, metavar="FILE.json", help="every click; tables go to FILE.md")
    output.add_argument("--plots", type=Path, metavar="DIR", help="figures as PDF and PNG")
    output.add_argument("--table", type=int, choices=TABLES, metavar="N", help="1 to 6: a table of the paper")
    output.add_argument("--compare", type=Path, metavar="OLD.json", help="compare with an earlier --output")
    output.add_argument(
        "--tolerance", type=_tolerance, default=0.0, metavar="CLICKS", help="exit 1 if NoC@85 or 90 rises by more"
    )
    return parser


def _tolerance(text: str) -> float:
    try:
        clicks = float(text)
    except ValueError:
        clicks = -1.0
    if not 0 <= clicks < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of clicks from 0")
    return clicks


def _start(text: str) -> str:
    if text not in ("box", "noise", *GIVEN) and not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no folder of masks; give one, or box, noise, sp or stm")
    return text


def _percent(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage from 1 to 100")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
