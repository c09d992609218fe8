"""Attack a service and print what it did, row by row: ``python -m tests.attacks --help``."""

import argparse
import contextlib
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.attacks import table
from tests.attacks.catalogue import ATTACKS
from tests.attacks.service import Attack, Measured, Service, measure, started
from tests.attacks.starts import STARTS, Start
from tests.conftest import REPOSITORY

_GROWN_MIB = 400  # a server that holds more than this for an attack is not attacked again


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.attacks", description=__doc__)
    parser.add_argument("--rows", default="", help="rows of the table, comma-separated; all by default")
    parser.add_argument("--only", default="", help="only attacks whose name holds this")
    parser.add_argument("--app", type=Path, default=REPOSITORY, help="the checkout to attack, this one by default")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--all", action="store_true", help="also the variants of attacks")
    given = parser.parse_args()
    rows = {int(row) for row in given.rows.split(",") if row}

    def wanted(attack: Attack | Start) -> bool:
        return (not rows or attack.row in rows) and given.only in attack.name and (given.all or not attack.variant)

    with tempfile.TemporaryDirectory(prefix="topk-attacks-") as cache:
        os.environ.setdefault("TOPK_CACHE_DIR", cache)
        attacks = sorted((attack for attack in ATTACKS if wanted(attack)), key=lambda attack: attack.row)
        figures, lines = _attack(attacks, given.app.resolve())
        for start in filter(wanted, STARTS):
            outcome = start.run(given.app.resolve())
            lines.append(_say(table.started(start, outcome)))
            figures.append({"row": start.row, "name": start.name, "said": outcome.said, "peak_mib": outcome.peak_mib})
    print(table.text(lines))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


def _attack(attacks: list[Attack], app: Path) -> tuple[list[dict[str, Any]], list[tuple[str, ...]]]:
    """One attack after another, on one server as long as it stays well."""
    figures, lines = [], []
    stack, service, setup = contextlib.ExitStack(), None, None
    with stack:
        for attack in attacks:
            if service is None or setup != attack.setup:
                stack.close()
                service, setup = stack.enter_context(started(attack, app)), attack.setup
            measured = measure(service, attack)
            figures.append({name: _finite(value) for name, value in measured.as_json().items()})
            lines.append(_say(table.measured(measured)))
            if not _well(service, measured):
                service = None
    return figures, lines


def _well(service: Service, measured: Measured) -> bool:
    """Whether the next attack finds it as this one did."""
    grown = measured.peak_mib - measured.base_mib
    return measured.process == "ready" and grown < _GROWN_MIB and "unanswered" not in measured.statuses


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and math.isinf(value) else value


def _say(line: tuple[str, ...]) -> tuple[str, ...]:
    """Print a line while the table grows."""
    print(f"{time.strftime('%H:%M:%S')}  " + " | ".join(line), file=sys.stderr, flush=True)
    return line


if __name__ == "__main__":
    main()
