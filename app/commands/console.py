"""Printing: results go to stdout, everything else to stderr."""

from typing import Any

import orjson
from rich.console import Console

out, err = Console(), Console(stderr=True)


def print_line(console: Console, line: str, style: str | None = None) -> None:
    """Print one line without wrapping, markup or highlighting."""
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one JSON value on a line of stdout."""
    out.file.write(orjson.dumps(value).decode() + "\n")


def warn(text: str) -> None:
    """Print a warning to stderr."""
    print_line(err, f"warning: {text}", "yellow")


def note(text: str) -> None:
    """Print a remark to stderr, as it is."""
    print_line(err, text, "yellow")
