"""`python promoting_process.py MODEL_DIR PROJECT`: for each line that it reads, a process that writes, promotes, rolls
back and prunes versions until it is killed. Says its id, then waits for its end and says that too."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

from backend.finetune.versions import Versions
from tests.support.tuned_models import base_model, tuned_model

CANDIDATES = [tuned_model(seed) for seed in range(3)]


def work(versions: Versions, project: int) -> None:
    """Versions without end."""
    for number in itertools.count():
        version = versions.write(project, CANDIDATES[number % 3], base_model(), about={}, report={"number": number})
        versions.promote(project, version.number)
        if number % 3 == 2:
            versions.rollback(project)
            versions.prune(project, keep=2)


if __name__ == "__main__":
    for _ in sys.stdin:
        child = os.fork()  # a start of its own would take seconds, most of them before anything is written
        if child == 0:
            work(Versions(Path(sys.argv[1])), int(sys.argv[2]))
        print(child, flush=True)
        os.waitpid(child, 0)
        print("ended", flush=True)
