"""Memory that two processes map: here the same one twice."""

import math
import os

import numpy as np
import pytest

from app.batching import CostCurve, Outlook
from app.workers import memory
from app.workers.memory import Board, Slots


def test_what_one_writes_the_other_reads_without_a_copy() -> None:
    descriptor = memory.create(Slots.size(4, 10))
    ours, theirs = (Slots(descriptor, 4, 10) for _ in range(2))
    os.close(descriptor)
    ours.view(1, False)[:] = 7
    ours.view(2, True)[:] = 0.5
    assert theirs.view(1, False).shape == (10, 10, 3)
    assert (theirs.view(1, False) == 7).all()
    assert (theirs.view(2, True) == np.float32(0.5)).all()
    assert not theirs.view(3, True).any()
    ours.taken += 3
    assert theirs.taken == 3


@pytest.mark.parametrize("slot", [-1, 4])
def test_there_are_no_other_slots(slot: int) -> None:
    descriptor = memory.create(Slots.size(4, 10))
    slots = Slots(descriptor, 4, 10)
    os.close(descriptor)
    with pytest.raises(IndexError):
        slots.view(slot, False)


def test_the_board_tells_outlook_and_costs() -> None:
    buckets = (1, 2, 4)
    descriptor = memory.create(Board.size(buckets))
    ours, theirs = (Board(descriptor, buckets) for _ in range(2))
    os.close(descriptor)
    costs = CostCurve(buckets)
    for seconds in (0.02, 0.03, 0.03):  # an average that no single measurement gives
        costs.observe(2, seconds)
        costs.observe(4, 1.5 * seconds)
    published = Outlook(5.0, 0.25, 0.125, 9, idle=False, fastest=0.02, patience=math.inf, lateness=1.125)
    ours.write(published, costs, CostCurve((1,)))
    outlook, cost_s = theirs.read()
    assert outlook == published
    assert memory.curve(buckets, cost_s[:-1]).as_dict() == costs.as_dict()
    assert list(costs.as_dict()) == [2, 4]
    assert math.isnan(cost_s[-1])
    ours.write(published._replace(waiting=10), costs, CostCurve((1,)))
    outlook, same = theirs.read()
    assert outlook.waiting == 10
    assert same is cost_s
    costs.observe(1, 0.01)
    ours.write(published, costs, CostCurve((1,)))
    assert theirs.read()[1][0] == 0.01
