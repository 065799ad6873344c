"""The doctor's findings: one line for each check, and what to do if it fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """The result of one check; `todo` is empty if all is well."""

    check: str
    says: str
    todo: str = ""


class Trouble(Exception):
    """A check failed."""

    def __init__(self, says: str, todo: str) -> None:
        super().__init__(says)
        self.says, self.todo = says, todo


def find(check: str, work: Callable[[], str]) -> Finding:
    """The finding of a check that returns a sentence, or raises `Trouble` or `ValueError`."""
    try:
        return Finding(check, work())
    except Trouble as trouble:
        return Finding(check, trouble.says, trouble.todo)
    except ValueError as error:  # our own messages say what to do, after a semicolon
        says, _, todo = str(error).rpartition("; ")
        return Finding(check, says or todo, todo)
