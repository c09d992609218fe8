"""All attacks on a running service."""

from tests.attacks import bodies, deadlines, decoders, documents, processes, sockets, weak
from tests.attacks.service import Attack

ATTACKS: list[Attack] = [
    *documents.ATTACKS,
    *decoders.ATTACKS,
    *deadlines.ATTACKS,
    *bodies.ATTACKS,
    *sockets.ATTACKS,
    *processes.ATTACKS,
    *weak.ATTACKS,
]
