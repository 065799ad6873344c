"""The settings as a page of documentation: `python -m backend settings > docs/settings.md`."""

from __future__ import annotations

from typing import Any

from backend.settings import Settings, allowed, secret_names, size_text, variable_names

_HEAD = """\
# Settings

All settings are environment variables; this page is made by `python -m backend settings > docs/settings.md`.

A variable that is empty counts as not set. A bad value, and a name that is nearly one of these, ends the start with one
line each, all at once. Secrets can come from files, as Docker and Kubernetes hand them out: `NAME_FILE` holds the path
of such a file. `python -m backend doctor` says what else is wrong.

| name | default | must be | meaning |
|---|---|---|---|
"""


def settings_page() -> str:
    """The page in Markdown."""
    return _HEAD + "".join(_row(name) for name in Settings.model_fields)


def _row(name: str) -> str:
    field = Settings.model_fields[name]
    preferred, *older = variable_names(name)
    others = [f"`{preferred}_FILE`"] if preferred in secret_names() else []
    others += [f"`{other}`" for other in older]
    also = f" (also {', '.join(others)})" if others else ""
    words = allowed(name).replace("|", "\\|")
    return f"| `{preferred}` | {_default(field.default, words)} | {words} | {field.description}{also} |\n"


def _default(value: Any, words: str) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"`{value:g}`"
    if isinstance(value, tuple):
        return f"`{','.join(value)}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{size_text(value) if words.startswith('a size') else value}`"
