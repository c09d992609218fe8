"""Pictures that cost much more than predicted, and clients with short deadlines after them (row 6)."""

from collections.abc import Iterator

from tests.attacks import jpegs
from tests.attacks.clients import PREPARED, Target, Wire, at_once, photograph, post
from tests.attacks.decoders import JUDGED
from tests.attacks.service import Attack

_CLIENTS = 12


def lock_out(target: Target) -> Iterator[str]:
    """Two expensive pictures, one after another; then clients that state 1000 ms, one at a time. All statuses."""
    pictures = [jpegs.arithmetic(4500, 4500)] * 2
    requests = [post("/v1/predict", picture, "application/octet-stream") for picture in pictures]
    request = post("/v1/predict", photograph(), "image/jpeg", X_Request_Timeout_Ms="1000")
    yield PREPARED
    for expensive in requests:
        yield from (f"picture {status}" for status in at_once([expensive], target, 1))
    wire = Wire(target.port)
    for _ in range(_CLIENTS):
        yield wire.ask(request)
    wire.close()


ATTACKS = [
    Attack(
        6,
        "12 clients that state 1000 ms, after two costly pictures",
        lock_out,
        frozenset({"200", *(f"picture {status}" for status in JUDGED)}),
        alone=True,
        seconds=15,
    )
]
