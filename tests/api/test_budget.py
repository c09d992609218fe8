"""Who loses an upload when the memory for uploads is full, and that nobody does before."""

import math
from collections.abc import Callable, Iterator

import httpx2
import pytest

from app.api.budget import Budget, Hold
from tests.api.conftest import InProcess, served
from tests.api.wire import Wire
from tests.conftest import CAT, slow

PHOTO = CAT.read_bytes()
MIB = 2**20
Wait = Callable[[Callable[[], bool]], None]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def budget(clock: Clock) -> Budget:
    """1000 bytes; an upload may take a minute."""
    return Budget(1000, 60, clock)


def holding(budget: Budget, caller: str, count: int) -> Hold:
    hold = budget.open(caller)
    assert budget.reserve(hold, count)
    return hold


def test_while_there_is_room_the_slowest_upload_stays(budget: Budget, clock: Clock) -> None:
    slow = holding(budget, "mallory", 900)
    clock.now += 50
    assert budget.reserve(budget.open("alice"), 100)
    assert (slow.lost, budget.held) == (False, 1000)


def test_the_caller_that_holds_most_loses_what_lags_most(budget: Budget, clock: Clock) -> None:
    steady, stalled = budget.open("mallory"), holding(budget, "mallory", 500)
    for _ in range(20):
        clock.now += 0.5
        assert budget.reserve(steady, 20)
    small = holding(budget, "bob", 100)
    clock.now += 2
    newcomer = budget.open("alice")
    assert budget.reserve(newcomer, 100)
    assert [hold.lost for hold in (steady, stalled, small, newcomer)] == [False, True, False, False]
    assert budget.held == 600


def test_a_burst_followed_by_a_trickle_is_slower_than_a_steady_upload(budget: Budget, clock: Clock) -> None:
    """Although its average since its beginning is far higher: it is of one caller with others, as behind a proxy."""
    burst, mobile = holding(budget, "proxy", 900), budget.open("proxy")
    for _ in range(60):
        clock.now += 0.2
        assert budget.reserve(mobile, 1)
    for _ in range(10):
        assert budget.reserve(burst, 1)
    assert budget.reserve(budget.open("proxy"), 100)
    assert (burst.lost, mobile.lost) == (True, False)


def test_a_young_upload_is_not_lost(budget: Budget, clock: Clock) -> None:
    young = [holding(budget, "mallory", 500) for _ in range(2)]
    clock.now += 0.9
    assert not budget.make_room(budget.open("alice"), 1)
    clock.now += 0.2
    assert budget.make_room(budget.open("bob"), 1)
    assert [upload.lost for upload in young].count(True) == 1


def test_equal_callers_with_fast_uploads_do_not_take_them_from_each_other(budget: Budget, clock: Clock) -> None:
    uploads = [budget.open(caller) for caller in ("alice", "bob") for _ in range(5)]
    for _ in range(10):
        clock.now += 0.2
        assert all(budget.reserve(upload, 10) for upload in uploads)
    assert not budget.reserve(uploads[0], 10)
    assert not budget.make_room(budget.open("bob"), 100)
    assert not any(upload.lost for upload in uploads)
    assert budget.make_room(budget.open("carol"), 100)  # who holds nothing yet
    assert sum(upload.lost for upload in uploads) == 1


def test_a_caller_loses_only_its_stalled_uploads_to_itself(budget: Budget, clock: Clock) -> None:
    stalled, fast = holding(budget, "alice", 100), budget.open("alice")
    for _ in range(9):
        clock.now += 1
        assert budget.reserve(fast, 100)
    assert budget.make_room(budget.open("alice"), 100)
    assert (stalled.lost, fast.lost) == (True, False)
    assert not budget.make_room(budget.open("alice"), 200)
    assert not fast.lost


def test_a_complete_upload_is_never_lost(budget: Budget, clock: Clock) -> None:
    done = holding(budget, "mallory", 1000)
    budget.complete(done)
    clock.now += 50
    assert not budget.make_room(budget.open("alice"), 1)
    assert not done.lost
    budget.close(done)
    assert budget.held == 0


def test_nobody_is_lost_for_what_cannot_fit(budget: Budget, clock: Clock) -> None:
    done, stalled = holding(budget, "mallory", 600), holding(budget, "mallory", 400)
    budget.complete(done)
    clock.now += 50
    assert not budget.make_room(budget.open("alice"), 500)
    assert not stalled.lost


def test_every_byte_is_given_back_once(budget: Budget, clock: Clock) -> None:
    holds = [holding(budget, caller, 250) for caller in ("alice", "alice", "bob", "bob")]
    budget.complete(holds[0])
    clock.now += 5
    newcomer = budget.open("carol")
    assert budget.reserve(newcomer, 250)
    for hold in (*holds, newcomer):
        budget.close(hold)
    assert budget.held == 0
    assert budget.make_room(budget.open("dave"), 1000)


def test_nobody_loses_an_upload_for_an_announcement(budget: Budget, clock: Clock) -> None:
    slow, asking = holding(budget, "a", 900), budget.open("b")
    clock.now += 30
    assert budget.may_fit(asking, 500)
    assert not slow.lost
    assert not budget.may_fit(asking, 1001)
    assert budget.reserve(asking, 500)
    assert slow.lost


def test_searching_in_vain_is_not_repeated_for_every_chunk(budget: Budget, clock: Clock) -> None:
    class Counting(Hold):
        asked = 0

        def lag_s(self, now: float) -> float:
            Counting.asked += 1
            return 0.0

    hold = holding(budget, "alice", 1000)
    hold.__class__ = Counting
    clock.now += 2
    newcomer = budget.open("alice")
    assert not any(budget.make_room(newcomer, 1) for _ in range(100))
    assert Counting.asked <= 3


def test_the_lag_of_a_constant_pace_is_the_uploads_age(clock: Clock) -> None:
    hold = Hold("alice", clock.now)
    for _ in range(300):
        clock.now += 0.1
        hold.add(1000, clock.now)
    assert math.isclose(hold.lag_s(clock.now), 30, rel_tol=0.1)


@pytest.fixture(scope="module")
def keyed() -> Iterator[InProcess]:
    """Room for 3 MB of uploads, which may take long."""
    with served(api_keys="mallory,alice", max_upload_bytes=MIB, max_inflight_bytes=3 * MIB) as server:
        yield server


@pytest.mark.parametrize("key", ["alice", slow("mallory")], ids=["another caller", "the same caller"])
def test_uploads_that_fill_the_memory_and_stall_make_room(keyed: InProcess, wait_until: Wait, key: str) -> None:
    """No wait of fixed length: it is asked again until the stalled ones are old enough to tell."""
    uploads = keyed.app.state.service.uploads
    wires = [Wire(keyed.port) for _ in range(3)]
    try:
        for wire in wires:
            wire.head("/v1/predict", f"Content-Length: {MIB}", "Content-Type: image/jpeg", "X-API-Key: mallory")
            wire.send(bytes(MIB - 1000))
        wait_until(lambda: uploads.inflight == 3 * (MIB - 1000))

        def served_now() -> bool:
            answer = httpx2.post(f"{keyed.url}/v1/predict", content=PHOTO, headers={"X-API-Key": key}, timeout=60)
            assert answer.status_code in (200, 503)
            return answer.status_code == 200

        wait_until(served_now)
        lost = [wire for wire in wires if wire.answered(0)]
        assert len(lost) == 1
        assert lost[0].status() == 408
        assert b"again with fewer or smaller uploads at once" in lost[0].read_all()
        assert uploads.inflight == 2 * (MIB - 1000)
    finally:
        for wire in wires:
            wire.socket.close()
        wait_until(lambda: uploads.inflight == 0)


def test_who_has_no_key_makes_nobody_lose_an_upload(keyed: InProcess, wait_until: Wait) -> None:
    uploads = keyed.app.state.service.uploads
    wires = [Wire(keyed.port) for _ in range(3)]
    for wire in wires:
        wire.head("/v1/predict", f"Content-Length: {MIB}", "Content-Type: image/jpeg", "X-API-Key: mallory")
        wire.send(bytes(MIB - 1000))
    wait_until(lambda: uploads.inflight == 3 * (MIB - 1000))
    for _ in range(3):
        assert httpx2.post(f"{keyed.url}/v1/predict", content=bytes(MIB)).status_code == 401
    assert uploads.inflight == 3 * (MIB - 1000)
    for wire in wires:
        wire.socket.close()
    wait_until(lambda: uploads.inflight == 0)
