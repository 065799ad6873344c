"""The server's command line: `python -m backend [serve|doctor|warm|models|export|settings]`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from backend.settings import Settings

USAGE = """\
usage: python -m backend [COMMAND] [OPTION ...]

commands:
  serve     start the server (default)
  doctor    find out what is wrong between this server and Label Studio, and how to fix it
  warm      prepare the images of a project before anyone opens them
  models    list, promote, roll back, export and prune the fine-tuned versions of projects
  export    write a project's accepted masks as COCO, YOLO or PNG
  settings  print the page of all settings, in Markdown

Settings are environment variables, see `python -m backend settings`.
`python -m backend COMMAND --help` says more about doctor, warm, models and export.
"""

COMMANDS = {
    "doctor": "backend.commands.doctor",
    "warm": "backend.commands.warm",
    "models": "backend.commands.versions",
    "export": "backend.commands.export",
}
"""The module of each command that has options; its `main` gets them."""

BAD_USE = 2


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0 for success, 1 if the command found something wrong, 2 for wrong settings or options."""
    command, *options = arguments or ["serve"]
    if command in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if command in COMMANDS:  # imported on demand, since they import the model
        status: int = import_module(COMMANDS[command]).main(options)
        return status
    if command == "settings" and not options:
        from backend.commands.settings import settings_page

        print(settings_page(), end="")
        return 0
    if command == "serve" and not options:
        return serve()
    print(f"unknown command: {' '.join(arguments)}; `python -m backend --help` lists all commands", file=sys.stderr)
    return BAD_USE


def serve() -> int:
    """Check the settings and turn into gunicorn; returns only if they are wrong."""
    from backend.commands.serve import listening_trouble

    try:
        trouble = listening_trouble(Settings.from_environment(os.environ))
    except ValueError as error:
        trouble = str(error)
    if trouble is not None:
        for complaint in trouble.splitlines():
            print(f"cannot start: {complaint}", file=sys.stderr)
        return BAD_USE
    config = Path(__file__).with_name("gunicorn.conf.py")
    return os.execv(sys.executable, [sys.executable, "-m", "gunicorn", "--config", str(config), "backend.wsgi:app"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
