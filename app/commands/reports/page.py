"""A report as one self-contained HTML page: its style, its parts, and writing it."""

import html
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path
from string import Template
from typing import Any

from app.errors import ReportError

_STYLE = Path(__file__).with_name("page.css")


def check(path: Path | None) -> None:
    """Raise ReportError if the report cannot be written. To be called before the work."""
    if path and importlib.util.find_spec("matplotlib") is None:
        raise ReportError("a report needs matplotlib, which is not installed; run: pip install matplotlib")
    if path and not path.parent.is_dir():
        raise ReportError(f"no such folder for the report: {path.parent}")


def fill(template: Path, **parts: str) -> str:
    """Fill ``template`` with HTML parts and the shared style."""
    style = _STYLE.read_text(encoding="utf-8")
    return Template(template.read_text(encoding="utf-8")).substitute(parts, style=style)


def write(page: str, path: Path) -> None:
    """Write a page. Raises ReportError."""
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ReportError(f"{path} cannot be written: {error.strerror}") from error


def text(text: str) -> str:
    """Text as HTML, without line breaks before per cent signs."""
    return html.escape(text).replace(" %", "&nbsp;%")


def headline(figures: Iterable[tuple[str, str, str]]) -> str:
    """Large figures: value, unit and description."""
    return "".join(
        f"<div><p class=value>{text(value)} <span>{text(unit)}</span></p><p>{text(what)}</p></div>"
        for value, unit, what in figures
    )


def legend(items: Iterable[tuple[str, str]]) -> str:
    """Names with their colour variables."""
    return "".join(f'<li style="--swatch: var(--{colour})">{text(name)}</li>' for name, colour in items)


def pairs(items: Iterable[tuple[str, str]]) -> str:
    """A list of names and values, or nothing if it is empty."""
    rows = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in items)
    return f"<dl>{rows}</dl>" if rows else ""


def items(texts: Iterable[str]) -> str:
    """A list of sentences."""
    return "".join(f"<li>{text(item)}</li>" for item in texts)


def machine(description: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """``machine.description`` as pairs."""
    memory = description["memory_bytes"] / 2**30
    yield "processor", f"{description['processor']}, {description['cores']} cores, {memory:.0f} GiB"
    yield "system", f"{description['system']}, Python {description['python']}"
