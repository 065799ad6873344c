"""Stands in for the process that trains: `python job_process.py DEED --project N --job FILE`, or `--adapt`.

DEED: "finish" marks the job as done, "wait" says that it learns and waits to be killed, "die" ends in an error. With
`--catch-up` it says only that.
Without any import of the project, which would take seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    if "--catch-up" in sys.argv:
        sys.exit("catches up")
    if "--adapt" in sys.argv:
        sys.exit(f"adapts {sys.argv[3]}")
    deed, file = sys.argv[1], Path(sys.argv[5])
    if deed == "die":
        sys.exit("out of luck")
    job = json.loads(file.read_text())
    job |= {"state": "done"} if deed == "finish" else {"stage": "learning", "step": 7, "pid": os.getpid()}
    temporary = file.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(job))
    temporary.replace(file)
    if deed == "wait":
        time.sleep(600)
