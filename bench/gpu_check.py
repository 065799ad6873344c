"""Does everything that a GPU does work, and how fast is it: one command that checks and measures all of it.

    make gpu-check                          at most eight minutes on a GPU of the H100 class
    make gpu-check DEVICE=cpu QUICK=1       each check once on a CPU, in seconds: that this command still works
    make gpu-check RESUME=1                 what an earlier run did not finish

Every case is written to OUTPUT.jsonl as soon as it is measured, so a run may be stopped at any time. In the end
OUTPUT.md has a table for each check and a verdict for each budget. ViT-B and ViT-L have random weights: that changes
no speed but that of masks, which are ragged. Exit status 1 if a check failed or a budget is missed, 2 for wrong
options.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.cli import CommandParser
from bench.gpu_measures import CHECKS, Figures, Scope
from bench.serving.loopback import exit_on_signals
from skipclick.atomic_io import atomic_write
from skipclick.evaluation.versions import software_versions
from train.config import RECIPES


def full_scope(device: str) -> Scope:
    """What a GPU is asked."""
    vit_b = [("vit-b", 448, "bfloat16"), ("vit-b", 896, "bfloat16"), ("vit-b", 672, "bfloat16")]
    others = [("vit-b", 448, "float32"), ("vit-b", 448, "float16"), ("vit-l", 448, "bfloat16")]
    tiny = [("skipclick-lite", 320, "float32"), ("skipclick-lite", 320, "bfloat16")]
    return Scope(
        device,
        networks=(*vit_b, *others, *tiny),
        served=(0, 1),
        dtypes=("float32", "bfloat16", "float16"),
        rounds=30,
        photo_sizes=((1080, 1920), (3000, 4000)),
        annotators=8,
        seconds=6.0,
        num_photos=60,
        training=replace(RECIPES["paper"], steps=48, precision="bfloat16"),
        compiled=(False, True),
        latency=("--models", "vit-b", "--dtypes", "bfloat16", "--devices", device),
    )


@dataclass(frozen=True)
class Budget:
    """A limit for one figure."""

    check: str
    case: str
    figure: str
    limit: float
    at_least: bool = False

    def verdict(self, figures: Figures) -> str:
        """In words, given the figures of its case."""
        value = figures.get(self.figure)
        if value is None:
            return "not measured"
        is_met = value >= self.limit if self.at_least else value <= self.limit
        return f"{'met' if is_met else 'MISSED'}: {value:.4g}"


BUDGETS = (
    Budget("tests", "requires_cuda", "failed", 0),
    Budget("masks", "float32, graphs off", "lowest IoU", 0.99, at_least=True),
    Budget("masks", "float32, graphs on", "lowest IoU", 0.99, at_least=True),
    Budget("clicks", "vit-b 448 bfloat16", "model part, ms", 1.0),
    Budget("clicks", "vit-b 896 bfloat16", "model part, ms", 3.0),
    Budget("clicks", "vit-b 896 bfloat16", "features, MB", 35.0),
    Budget("server", "vit-b 448 bfloat16, 1920x1080, annotators: 1", "later click, ms", 5.0),
    Budget("server", "vit-b 896 bfloat16, 1920x1080, annotators: 1", "later click, ms", 8.0),
    Budget("memory", "vit-b 896 bfloat16", "refused", 0),
    Budget("memory", "vit-b 896 bfloat16", "other masks", 0),
)


def report(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: the machine, a table for each check, a verdict for each budget, what failed or was not run."""
    found = {(r["check"], r["case"]): r["figures"] for r in records if "figures" in r}
    machine: dict[str, str | None] = next((record["versions"] for record in records if "versions" in record), {})
    lines = ["; ".join(f"{name} {value}" for name, value in machine.items() if value)]
    for check in CHECKS:
        cases = {case: figures for (of, case), figures in found.items() if of == check}
        names = list(dict.fromkeys(name for figures in cases.values() for name in figures))
        if cases:
            lines += ["", f"## {check}", "", f"| | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
        for case, figures in cases.items():
            lines.append(f"| {case} | {' | '.join(f'{figures[n]:.4g}' if n in figures else '' for n in names)} |")
    lines += ["", "## Verdicts", "", "| | limit | |", "|---|---:|---|"]
    for budget in BUDGETS:
        limit = f"{'≥' if budget.at_least else '≤'} {budget.limit:g}"
        verdict = budget.verdict(found.get((budget.check, budget.case), {}))
        lines.append(f"| {budget.check}: {budget.case}: {budget.figure} | {limit} | {verdict} |")
    lines += [f"| {r['check']} | | FAILED: {r['error'].splitlines()[-1]} |" for r in records if "error" in r]
    begun = {record.get("check") for record in records}
    return "\n".join(lines + [f"| {name} | | not run |" for name in CHECKS if name not in begun]) + "\n"


def finished_records(journal: Path, resume: bool) -> list[dict[str, Any]]:
    """Those of the checks that an earlier run finished. Raises `ValueError` where they would be overwritten."""
    if not journal.exists():
        return []
    if not resume:
        raise ValueError(f"{journal} holds results: go on with --resume, or name another --output")
    records = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    finished = {record["check"] for record in records if "seconds" in record}
    return [record for record in records if record.get("check") in finished]


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(default: cuda)")
    parser.add_argument("--quick", action="store_true", help="each check once, at small sizes")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS), help="(default: all)")
    parser.add_argument("--seconds", type=float, default=420.0, help="begin no check after these (default: 420)")
    parser.add_argument("--resume", action="store_true", help="leave out what the run in OUTPUT.jsonl finished")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu-check"), help="results, without ending")
    options = parser.parse_args(arguments)
    journal, started = options.output.with_suffix(".jsonl"), time.monotonic()
    try:
        if options.device != "cpu" and not torch.cuda.is_available():
            raise ValueError(f"--device {options.device}: torch finds no GPU; --device cpu --quick tries the command")
        records = [{"versions": software_versions()}, *finished_records(journal, options.resume)]
    except ValueError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2
    scope = Scope(options.device) if options.quick else full_scope(options.device)
    finished = {record.get("check") for record in records}
    with atomic_write(journal) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    with journal.open("a", encoding="utf-8") as file:

        def write(**record: Any) -> None:
            records.append(record)
            print(json.dumps(record), file=file, flush=True)
            print(record.get("error") or record, flush=True)

        for name in options.only:
            begun = time.monotonic()
            if name in finished or begun - started > options.seconds:
                continue
            try:
                for case, figures in CHECKS[name](scope):
                    write(check=name, case=case, figures={key: float(value) for key, value in figures.items()})
                write(check=name, seconds=time.monotonic() - begun)
            except Exception:
                write(check=name, error=traceback.format_exc())
    text = report(records)
    print(text)
    with atomic_write(options.output.with_suffix(".md")) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return 1 if "MISSED" in text or "FAILED" in text else 0


if __name__ == "__main__":
    exit_on_signals()
    sys.exit(main())
