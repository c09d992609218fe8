"""The table of attacks, as text."""

import math
from collections.abc import Iterable

from tests.attacks.service import Measured
from tests.attacks.starts import Outcome, Start

_HEADS = ("row", "attack", "responses", "livez worst", "p99", "base", "peak MiB", "CPU/JPEG", "goodput", "process")


def measured(one: Measured) -> tuple[str, ...]:
    statuses = ", ".join(f"{status} x {count}" if count > 1 else status for status, count in one.statuses.items())
    failed = f" ({one.livez_failed} failed)" if one.livez_failed else ""
    return (
        str(one.row),
        one.name,
        statuses or "none",
        _seconds(one.livez_worst) + failed,
        _seconds(one.livez_p99),
        f"{one.base_mib:.0f}",
        f"{one.peak_mib:.0f}",
        f"{one.cpu_jpegs:.1f}",
        "-" if one.goodput is None else f"{one.goodput:.2f}",
        one.process,
    )


def started(start: Start, outcome: Outcome) -> tuple[str, ...]:
    return str(start.row), start.name, outcome.said, "-", "-", "-", f"{outcome.peak_mib:.0f}", "-", "-", "-"


def text(rows: Iterable[tuple[str, ...]]) -> str:
    """Columns as wide as their widest cell."""
    table = [_HEADS, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(_HEADS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _seconds(seconds: float) -> str:
    return "none" if math.isinf(seconds) else f"{seconds:.3f} s"
