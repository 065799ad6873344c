"""`python -m backend models list|show|promote|rollback|export|prune`: the fine-tuned versions of projects.

Works on the folders under MODEL_DIR; a running server uses the change from its next request on, without a restart.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from backend.finetune.versions import BASE, Versions
from backend.settings import Settings
from skipclick.checkpoint import load_checkpoint, save_checkpoint

BAD_USE = 2


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0 for success, 2 for wrong settings, options or versions, with one line on stderr."""
    options = _parser().parse_args(arguments)
    try:
        settings = Settings.from_environment(os.environ)
        for line in _lines(options, settings, Versions(settings.model_dir)):
            print(line)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return BAD_USE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m backend models", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="all versions, the one in service marked by *")
    listing.add_argument("--project", type=int, help="id in Label Studio; by default all projects")
    for command, what in (
        ("show", "what a version was trained on and what was measured"),
        ("promote", f"put a version in service, or `{BASE}`"),
        ("rollback", "put the previous version back in service"),
        ("export", "write a version as a complete checkpoint, for CHECKPOINT or Python"),
        ("prune", "delete old versions; the newest and the one in service stay"),
    ):
        command_parser = commands.add_parser(command, help=what)
        command_parser.add_argument("project", type=int, help="id in Label Studio")
        if command in ("show", "promote", "export"):
            command_parser.add_argument("version", help=f"v3 or 3{f', or {BASE}' * (command == 'promote')}")
        if command == "export":
            command_parser.add_argument("file", type=Path, help="a new .safetensors")
        if command == "prune":
            command_parser.add_argument(
                "--keep", type=int, default=3, help="number of the newest versions to keep (default 3)"
            )
    return parser


def _lines(options: argparse.Namespace, settings: Settings, versions: Versions) -> Iterator[str]:
    """Carries out the command and yields its output."""
    project = options.project
    match options.command:
        case "list":
            yield from _listing(versions, versions.projects() if project is None else [project])
        case "show":
            version = versions.version(project, _number(options.version))
            yield json.dumps({"name": version.name, "folder": str(version.folder), **version.about}, indent=2)
            yield json.dumps(version.report, indent=2)
        case "promote":
            number = None if options.version == BASE else _number(options.version)
            versions.promote(project, number)
            yield f"project {project} is served by {_name(versions, project, number)}"
        case "rollback":
            yield f"project {project} is served by {_name(versions, project, versions.rollback(project))} again"
        case "export":
            version = versions.version(project, _number(options.version))
            model = version.model(load_checkpoint(settings.checkpoint))
            about = {"fine-tuned": dict(version.about), "report": dict(version.report)}
            save_checkpoint(model, options.file, version=version.name, provenance=about)
            yield f"{options.file} holds {version.name}; start a server with CHECKPOINT={options.file} to try it"
        case "prune":
            gone = versions.prune(project, options.keep)
            yield f"deleted {', '.join(f'v{number}' for number in gone) or 'nothing'}"


def _listing(versions: Versions, projects: Sequence[int]) -> Iterator[str]:
    for project in projects:
        current = versions.current(project)
        yield f"{'*' if current is None else ' '} project {project}: {BASE}"
        for number in versions.numbers(project):
            version = versions.version(project, number)
            facts = f"{version.about['created_at']}, {version.about.get('objects', '?')} objects"
            facts += ", adapted" * bool(version.about.get("adapted"))
            yield f"{'*' if current == number else ' '} {version.name}  {facts}"
    if not projects:
        yield "no project has a fine-tuned version yet"


def _number(text: str) -> int:
    if not re.fullmatch(r"v?[1-9]\d*", text):
        raise ValueError(f"{text} is not a version of a project; name one such as v3")
    return int(text.removeprefix("v"))


def _name(versions: Versions, project: int, number: int | None) -> str:
    return "the base model" if number is None else versions.version(project, number).name
