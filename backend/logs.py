"""Log lines as text or JSON, without credentials."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Literal

_SECRETS = (
    (re.compile(r"(://|//)[^/\s@\"']*@"), r"\1...@"),  # user:password@ in an address
    (re.compile(r"\?[^\s\"'<>)\]}]*=[^\s\"'<>)\]}]*"), "?..."),  # the query of an address: presigned ones are keys
    (re.compile(r"(?i)\b(Bearer|Basic|Token)\s+[\w.~+/=-]{8,}"), r"\1 ..."),  # Authorization headers
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"), "..."),  # JSON web tokens
    (re.compile(r"\bdata:([\w/+.-]*)[;,][^\s\"']{64,}"), r"data:\1,..."),  # images inside addresses
)

_COMMANDS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, other line separators, and marks that change the direction of text."""


def redacted(text: str) -> str:
    """The text without credentials, queries of addresses, and images.

    Our own messages have none; this is for exceptions and debug lines of libraries, such as the presigned addresses
    that urllib3 logs.
    """
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def printable(text: str) -> str:
    """The text with everything escaped that would start a new line or control a terminal, such as `\\n` and `\\x1b`."""
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class TextFormatter(logging.Formatter):
    """`time level logger message`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The redacted line; a traceback follows with a bar in front of each line, so that no text can forge a log
        line."""
        return redacted(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        """As in the base class, on one line."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        """As in the base class."""
        return "\n".join(f"  | {printable(line)}" for line in super().formatException(ei).split("\n"))


class JsonFormatter(logging.Formatter):
    """One JSON object per line; the entries of `extra={"facts": {...}}`, if given, replace the message."""

    def format(self, record: logging.LogRecord) -> str:
        """The redacted object. Its own keys take precedence over facts of the same name."""
        own: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": printable(record.name),
        }
        facts: dict[str, object] = getattr(record, "facts", {}) or {"message": record.getMessage()}
        if record.exc_info:
            own["traceback"] = "\n".join(map(printable, redacted(self.formatException(record.exc_info)).split("\n")))
        shown = {name: printable(redacted(fact)) if isinstance(fact, str) else fact for name, fact in facts.items()}
        return json.dumps(
            own | {name: fact for name, fact in shown.items() if name not in own}, ensure_ascii=False, default=str
        )


def configure_logging(level: str, form: Literal["text", "json"]) -> None:
    """Send all log lines to standard error in this format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
