"""The batching policy under too much load, on a simulated clock: goodput, p99, bursts, recovery."""

from collections.abc import Iterable
from itertools import chain

import pytest

from tests.conftest import slow
from tests.simulation import CPU, GPU, PATIENCE_S, FixedWindow, Machine, Outcome, TopK, poisson, simulate

SECONDS = 20.0
SLOW = CPU.slower(20)
both = pytest.mark.parametrize("stated", [True, False], ids=["stated", "silent"])


def overloaded(machine: Machine, load: float, stated: bool, seconds: float = SECONDS) -> Outcome:
    return simulate(machine, TopK(machine), poisson(load * machine.capacity, seconds), stated)


def goodputs(outcome: Outcome, machine: Machine, seconds: float = SECONDS) -> list[float]:
    """As fractions of the capacity: the first quarter and the last."""
    quarter = seconds / 4
    return [outcome.goodput(start, start + quarter) / machine.capacity for start in (0.0, seconds - quarter)]


@both
@pytest.mark.parametrize(("load", "least"), [(2, 0.95), (4, 0.90), (8, 0.84)])
def test_an_excess_costs_a_cpu_only_what_refusing_costs(load: float, least: float, stated: bool) -> None:
    outcome = overloaded(CPU, load, stated)
    assert min(goodputs(outcome, CPU)) >= least
    assert outcome.late < 0.01
    assert outcome.latency(0.99) <= PATIENCE_S
    assert len(outcome.refused) / outcome.arrivals == pytest.approx(1 - 1 / load, abs=0.04)


@pytest.mark.parametrize("stated", [True, slow(False)], ids=["stated", "silent"])
@pytest.mark.parametrize("load", [2, slow(4), slow(8)])
def test_an_excess_costs_a_gpu_nothing(load: float, stated: bool) -> None:
    outcome = overloaded(GPU, load, stated, seconds=4)
    assert min(goodputs(outcome, GPU, 4)) >= 0.95
    assert outcome.late < 0.01
    assert outcome.latency(0.99) <= PATIENCE_S


@both
@pytest.mark.parametrize(("load", "least"), [(2, 0.90), (4, 0.90), (8, 0.90)])
def test_a_machine_whose_single_image_takes_half_of_the_patience(load: float, least: float, stated: bool) -> None:
    outcome = overloaded(SLOW, load, stated, seconds=80)
    assert min(goodputs(outcome, SLOW, 80)) >= least
    assert outcome.late < 0.01


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
def test_below_the_capacity_nobody_is_refused(machine: Machine) -> None:
    seconds = min(SECONDS, 20_000 / machine.capacity)
    outcome = overloaded(machine, 0.8, False, seconds)
    assert outcome.refused == []
    assert outcome.latency(0.99) < 0.3


def test_a_fixed_window_answers_nobody_in_time() -> None:
    outcome = simulate(CPU, FixedWindow(), poisson(2 * CPU.capacity, SECONDS), stated=False)
    assert goodputs(outcome, CPU)[1] == 0
    assert outcome.latency(0.99) > 10


@both
def test_a_burst_that_can_be_answered_in_time_is_answered_in_time(stated: bool) -> None:
    outcome = simulate(CPU, TopK(CPU), [10 + i / 1000 for i in range(60)], stated)
    assert (len(outcome.answers), outcome.late) == (60, 0)


def test_a_burst_of_silent_clients_is_not_refused_for_its_length() -> None:
    assert simulate(CPU, TopK(CPU), [10 + i / 2000 for i in range(200)], stated=False).refused == []


@both
@pytest.mark.parametrize("load", [2, 4, 8])
def test_a_second_after_the_excess_all_is_normal(load: float, stated: bool) -> None:
    end = 10.0
    arrivals: Iterable[float] = chain(
        poisson(load * CPU.capacity, end), poisson(0.5 * CPU.capacity, end, seed=1, start=end)
    )
    outcome = simulate(CPU, TopK(CPU), arrivals, stated)
    assert not [arrived for arrived in outcome.refused if arrived > end + 0.1]
    assert outcome.latency(0.99, end + 1.0) < 0.3


def test_costs_that_were_measured_too_low_are_learned_while_the_queue_builds_up() -> None:
    outcome = simulate(CPU, TopK(CPU, warmth=0.6), poisson(4 * CPU.capacity, SECONDS), stated=False)
    assert min(goodputs(outcome, CPU)) >= 0.85
    assert outcome.late < 0.01


def test_a_machine_that_is_half_as_fast_for_two_seconds_recovers() -> None:
    outcome = simulate(
        CPU,
        TopK(CPU),
        poisson(4 * CPU.capacity, SECONDS),
        stated=False,
        weather=lambda now: 2.0 if 8 < now < 10 else 1.0,
    )
    assert outcome.goodput(11.0, SECONDS) / CPU.capacity >= 0.90
