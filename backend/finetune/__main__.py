"""`python -m backend.finetune --project N --job FILE` (or `--adapt`), or `--catch-up`: work that the server starts as a
separate process, see `run_job.py`, `adaptation.py` and `catching_up.py`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from backend.finetune.adaptation import adapt_project
from backend.finetune.catching_up import catch_up
from backend.finetune.run_job import limit_resources, run
from backend.settings import Settings

BAD_USE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 if the job succeeded, 1 if it failed, 2 for wrong settings or a wrong file."""
    parser = argparse.ArgumentParser(prog="python -m backend.finetune", description=__doc__)
    parser.add_argument("--project", type=int, help="number of the project in Label Studio")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--job", type=Path, metavar="FILE", help="a training: the job, as the server wrote it")
    what.add_argument("--adapt", action="store_true", help="an immediate adaptation to the latest accepted masks")
    what.add_argument(
        "--catch-up", action="store_true", help="apply large events, and read again what a damaged database contained"
    )
    options = parser.parse_args(arguments)
    if options.project is None and not options.catch_up:
        parser.error("name a --project")
    try:
        settings = Settings.from_environment(os.environ)
        limit_resources(settings)
        if options.job is not None and not options.job.is_file():
            raise ValueError(f"there is no job {options.job}: let the server start it (Start Training in Label Studio)")
    except ValueError as error:
        print(error, file=sys.stderr)
        return BAD_USE
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(message)s")
    try:
        if options.catch_up:
            catch_up(settings)
        elif options.adapt:
            adapt_project(settings, options.project)
        else:
            run(settings, options.project, options.job)
    except ValueError as error:
        print(error, file=sys.stderr)  # one sentence, as in the job's file; other errors keep their traceback
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
