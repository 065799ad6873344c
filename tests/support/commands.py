"""Commands as a shell would start them, in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def exit_status(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """What the shell sees, whether the command returns or its option parser exits."""
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
