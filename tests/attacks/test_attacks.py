"""Attacks leave a running service alive, ready and within its memory, and are refused for what they are.

CPU time is bounded in ordinary JPEGs, which are measured in the same test. Wall-clock times are reported by
``python -m tests.attacks``, and not asserted.
"""

import contextlib
import functools
from collections.abc import Iterator

import pytest

from tests.attacks.catalogue import ATTACKS
from tests.attacks.clients import PREPARED, sent
from tests.attacks.decoders import ATTACKED, JUDGED, UNSUPPORTED, upload
from tests.attacks.jpegs import REFUSED
from tests.attacks.pictures import PICTURES
from tests.attacks.service import MIB, Attack, Memory, Service, cpu_seconds, jpeg_seconds, started
from tests.attacks.starts import STARTS, Start
from tests.conftest import REPOSITORY
from tests.workers.conftest import wait_until

_AT_ONCE = 3
_DECODED_MIB = 1600  # three pictures of at most 50 million pixels each, as accounted
_DECODED_JPEGS = 300

BY_SETUP: list[Attack] = sorted(ATTACKS, key=lambda attack: str(attack.setup))  # neighbours share a server

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("priority")]


class Running:
    """The one server that runs. Another one replaces it where an attack needs another setup, or hurt the last one."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._setup: object = None
        self._service: Service | None = None

    def server(self, attack: Attack) -> Service:
        """A ready server as this attack needs it."""
        if self._service is None or self._setup != attack.setup or self._service.answers("/readyz") != "200":
            self.close()
            self._service = self._stack.enter_context(started(attack))
            self._setup = attack.setup
        return self._service

    def close(self) -> None:
        self._service = None
        self._stack.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    running = Running()
    yield running
    running.close()


def picture(name: str) -> Attack:
    """Three uploads of a hostile picture at once."""
    refused = name in REFUSED
    return Attack(
        0,
        name,
        functools.partial(sent, functools.partial(upload, name), _AT_ONCE, _AT_ONCE),
        UNSUPPORTED if refused else JUDGED,
        jpegs=20 if refused else _DECODED_JPEGS,
        memory_mib=600 if refused else _DECODED_MIB,
    )


def check(service: Service, attack: Attack) -> None:
    """Attack it, and assert all that holds of a harmless attack."""
    pid = service.process.pid
    jpeg_s = jpeg_seconds(service)
    attacking = attack.run(service.target)
    assert next(attacking) == PREPARED
    memory, cpu = Memory(pid), cpu_seconds(pid)
    statuses = list(attacking)
    cpu = cpu_seconds(pid) - cpu
    memory.close()
    wait_until(lambda: service.process.poll() is not None or service.answers("/readyz") == "200")
    assert service.process.poll() is None, f"the process ended; {statuses}"
    answered = {status for status in statuses if not status.startswith("after ")}
    assert answered <= attack.answers, statuses
    assert answered >= attack.needed, statuses
    grown = (memory.peak - memory.base) / MIB
    assert grown < attack.memory_mib, f"{grown:.0f} MiB more"
    if attack.jpegs is not None:
        spent = cpu / len(statuses) / jpeg_s
        assert spent < attack.jpegs, f"{spent:.1f} ordinary JPEGs each"


@pytest.mark.parametrize("attack", BY_SETUP, ids=lambda attack: attack.name)
def test_attack_is_harmless(running: Running, attack: Attack) -> None:
    check(running.server(attack), attack)


@pytest.mark.parametrize("name", [name for name in PICTURES if name not in ATTACKED])
def test_picture_is_harmless(running: Running, name: str) -> None:
    attack = picture(name)
    check(running.server(attack), attack)


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start.name)
def test_service_starts_only_with_what_it_can_trust(start: Start) -> None:
    outcome = start.run(REPOSITORY)
    assert outcome.said in start.answers
    assert outcome.peak_mib < start.memory_mib


def test_names_of_attacks_are_unique() -> None:
    names = [attack.name for attack in ATTACKS]
    assert len(names) == len(set(names))
