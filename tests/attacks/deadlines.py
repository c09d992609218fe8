"""Pictures that cost much more than predicted, and clients with short deadlines after them (row 6)."""

from collections.abc import Iterator

from tests.attacks import jpegs
from tests.attacks.clients import PREPARED, Target, Wire, at_once, photograph, post
from tests.attacks.decoders import JUDGED
from tests.attacks.service import Attack

_COSTLY = 4
_CLIENTS = 12


def lock_out(target: Target) -> Iterator[str]:
    """Expensive pictures, two at once; then clients that state 1000 ms, one at a time. Yields all statuses."""
    costly = post("/v1/predict", jpegs.arithmetic(5600, 5600), "application/octet-stream")
    request = post("/v1/predict", photograph(), "image/jpeg", X_Request_Timeout_Ms="1000")
    yield PREPARED
    yield from (f"picture {status}" for status in at_once([costly] * _COSTLY, target, 2))
    wire = Wire(target.port)
    for _ in range(_CLIENTS):
        yield wire.ask(request)
    wire.close()


ATTACKS = [
    Attack(
        6,
        "12 clients that state 1000 ms, after four costly pictures",
        lock_out,
        frozenset({"200", *(f"picture {status}" for status in JUDGED)}),
        alone=True,
        seconds=25,
    )
]
