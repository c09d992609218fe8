"""Printing: results go to stdout, everything else to stderr."""

from typing import Any

import orjson
from rich.console import Console

from app.commands.filenames import UNSAFE, printable

out, err = Console(markup=False, emoji=False), Console(stderr=True, markup=False, emoji=False)


def print_line(console: Console, line: str, style: str | None = None) -> None:
    """Print a line, or several, without wrapping, markup, highlighting or control characters."""
    text = "\n".join(map(printable, line.split("\n")))
    console.print(text, style=style, markup=False, emoji=False, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one JSON value on a line of stdout. What would control a terminal is escaped."""
    text = orjson.dumps(value).decode()
    out.file.write(UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


def warn(text: str) -> None:
    """Print a warning to stderr."""
    print_line(err, f"warning: {text}", "yellow")


def note(text: str) -> None:
    """Print a remark to stderr, as it is."""
    print_line(err, text, "yellow")
