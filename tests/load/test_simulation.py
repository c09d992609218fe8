"""The batching policy under too much load, on a simulated clock: goodput, silence, closed loops, start, recovery."""

import dataclasses
import math
from itertools import chain

import pytest

from tests.batching.jobs import Numbered
from tests.conftest import slow
from tests.simulation import (
    AVX2,
    AVX512,
    CLIENTS,
    GPU,
    LATE_S,
    MACHINES,
    PATIENCE,
    SILENT_S,
    START,
    FixedWindow,
    Loop,
    Machine,
    Outcome,
    TopK,
    poisson,
    seconds_of,
    simulate,
    uniform,
)

SECONDS = 20.0
UNIFORM = ["0.3 s", "0.5 s", "1 s", "3 s", "unlimited"]
INT8 = dataclasses.replace(AVX512, name="int8", seconds={1: 0.0124, 2: 0.0222, 4: 0.0417, 8: 0.0829, 16: 0.1667})
"""In int8 on AVX-512, where batches gain a fifth."""

machines = pytest.mark.parametrize("machine", [AVX2, slow(AVX512), slow(GPU)], ids=["avx2", "avx512", "gpu"])


def overload(machine: Machine, patience: str, load: float, stated_s: float | None = None) -> list[Outcome]:
    """Runs with different clients; one run of a GPU, which has very many."""
    return [
        simulate(
            machine,
            TopK(machine),
            poisson(load * machine.capacity, seconds_of(machine), PATIENCE[patience], seed),
            stated_s,
            seed,
        )
        for seed in range(1 if machine is GPU else 5)
    ]


def goodput(machine: Machine, outcomes: list[Outcome], patience: float = 0.0) -> float:
    """The mean over the whole time as a fraction of the capacity, of clients of at least this patience."""
    goodputs = [outcome.goodput(0, seconds_of(machine), patience) for outcome in outcomes]
    return sum(goodputs) / len(goodputs) / machine.capacity


@machines
@pytest.mark.parametrize("patience", UNIFORM)
@pytest.mark.parametrize(("load", "least"), [slow(1, 0.85), (2, 0.95), slow(4, 0.90)])
def test_clients_of_any_patience_are_served_at_nearly_the_capacity(
    machine: Machine, patience: str, load: float, least: float
) -> None:
    if machine is AVX2 and patience == "0.3 s":
        least -= 0.05  # an image takes more than a third of it
    assert goodput(machine, overload(machine, patience, load)) >= least


@machines
@pytest.mark.parametrize(("patience", "least"), [("0.3, 1, 3 or 9 s", 0.90), ("exponential, mean 1 s", 0.85)])
@pytest.mark.parametrize("load", [2, slow(4)])
def test_so_are_clients_of_different_patience(machine: Machine, patience: str, least: float, load: float) -> None:
    assert goodput(machine, overload(machine, patience, load)) >= least


@machines
@pytest.mark.parametrize("load", [slow(1), 2, slow(4)])
def test_many_who_leave_at_once_do_not_make_the_others_refused(machine: Machine, load: float) -> None:
    outcomes = overload(machine, "80 % leave at 0.1 s, the rest at 5 s", load)
    assert goodput(machine, outcomes, LATE_S) >= 0.9 * min(1.0, 0.2 * load)


@machines
@pytest.mark.parametrize("patience", ["0.3 s", "0.5 s", "1 s"])
def test_hardly_anybody_leaves_without_an_answer_once_the_patience_is_known(machine: Machine, patience: str) -> None:
    seconds = seconds_of(machine)
    outcomes = overload(machine, patience, 2)
    late = [client for outcome in outcomes for client in outcome.left if client.at - START > 2 / 3 * seconds]
    assert len(late) < 0.05 * sum(outcome.arrivals for outcome in outcomes) / 3


@machines
@pytest.mark.parametrize("stated_s", [0.5, 1.0])
@pytest.mark.parametrize(("load", "least"), [slow(1, 0.85), (2, 0.95), slow(4, 0.90), slow(8, 0.85)])
def test_a_stated_deadline_needs_no_patience(machine: Machine, stated_s: float, load: float, least: float) -> None:
    outcomes = overload(machine, "unlimited", load, stated_s)
    assert goodput(machine, outcomes) >= least
    assert sum(outcome.unanswered for outcome in outcomes) / len(outcomes) < 0.05


@pytest.mark.parametrize(
    ("machine", "clients"),
    [
        pytest.param(
            machine, clients, marks=() if machine is AVX2 else pytest.mark.slow, id=f"{machine.name}-{clients}"
        )
        for machine in MACHINES
        for clients in CLIENTS
        if clients / machine.capacity < 0.9 * SILENT_S  # else not all of them can be answered before their deadline
    ],
)
def test_no_patient_client_of_a_closed_loop_is_refused(machine: Machine, clients: int) -> None:
    outcome = simulate(machine, TopK(machine), Loop(clients, seconds_of(machine)))
    assert (outcome.refused, outcome.left) == ([], [])


@machines
@pytest.mark.parametrize("polite", [True, False], ids=["polite", "hasty"])
@pytest.mark.parametrize("stated_s", [None, 1.0], ids=["silent", "stated"])
def test_many_clients_that_come_back_take_nothing_from_each_other(
    machine: Machine, polite: bool, stated_s: float | None
) -> None:
    seconds = seconds_of(machine)
    few = simulate(machine, TopK(machine), Loop(16, seconds))
    many = simulate(machine, TopK(machine), Loop(256, seconds, polite), stated_s)
    assert many.goodput(0, seconds) >= 0.9 * few.goodput(0, seconds)
    assert len(many.left) < 0.05 * many.arrivals


@machines
def test_below_the_capacity_nobody_who_waits_is_refused(machine: Machine) -> None:
    seconds = seconds_of(machine)
    outcome = simulate(machine, TopK(machine), poisson(0.8 * machine.capacity, seconds, uniform(5.0)))
    assert (outcome.refused, outcome.left) == ([], [])


def test_a_fixed_window_answers_nobody_in_time() -> None:
    outcome = simulate(AVX512, FixedWindow(), poisson(2 * AVX512.capacity, SECONDS, uniform(1.0)))
    assert outcome.goodput(SECONDS / 2, SECONDS) == 0


class Predicting(TopK):
    """Compares the predicted wait of each image with its wait."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine, warmth=None)
        self._predicted: dict[int, float] = {}
        self.waits: list[tuple[float, float]] = []  # predicted, and actual

    def put(self, job: Numbered, now: float) -> None:
        self._predicted[id(job)] = self.backlog.predicted_wait(now)
        super().put(job, now)

    def take(self, now: float, stream: int) -> list[Numbered]:
        batch = super().take(now, stream)
        self.waits += [(self._predicted[id(job)], now - job.received_at) for job in batch]
        return batch


@pytest.mark.parametrize("machine", [AVX2, slow(AVX512), INT8, slow(GPU)], ids=["avx2", "avx512", "int8", "gpu"])
@pytest.mark.parametrize("load", [1, 2])
def test_the_first_seconds_need_only_the_cost_of_one_image(machine: Machine, load: float) -> None:
    seconds = min(10.0, seconds_of(machine))
    policy = Predicting(machine)
    outcome = simulate(machine, policy, poisson(load * machine.capacity, seconds, uniform(math.inf)))
    assert outcome.goodput(0, seconds) / machine.capacity >= 0.85
    good = [abs(predicted - wait) < 0.1 * wait + 2 * machine.seconds[1] for predicted, wait in policy.waits]
    assert sum(good) >= 0.9 * len(good)


@pytest.mark.slow
@pytest.mark.parametrize(("machine", "least"), [(INT8, 4), (GPU, 32)], ids=["int8", "gpu"])
def test_the_ceiling_rises_under_load_where_larger_batches_gain(machine: Machine, least: int) -> None:
    policy = TopK(machine, warmth=None)
    simulate(machine, policy, poisson(2 * machine.capacity, 1.0, uniform(3.0)))
    assert policy.costs.ceiling >= least


@pytest.mark.parametrize("seed", range(3))
def test_batches_stay_small_where_larger_ones_gain_nothing(seed: int) -> None:
    sizes: list[int] = []

    class Recorded(TopK):
        def finished(self, stream: int, n: int, seconds: float) -> None:
            sizes.append(n)
            super().finished(stream, n, seconds)

    simulate(AVX2, Recorded(AVX2), poisson(2 * AVX2.capacity, SECONDS, uniform(1.0), seed), seed=seed)
    assert sum(n <= 2 for n in sizes) >= 0.9 * len(sizes)


def test_patience_is_forgotten_half_a_minute_after_the_last_impatient_client() -> None:
    clients = [
        *poisson(2 * AVX2.capacity, 10.0, uniform(0.5)),
        *poisson(2 * AVX2.capacity, 40.0, uniform(60.0), start=10.0),
    ]
    outcome = simulate(AVX2, TopK(AVX2), clients)
    assert outcome.latency(0.9, 0.0, 10.0) < 0.5
    assert outcome.latency(0.5, 40.0, 50.0) > 0.5 * SILENT_S


@pytest.mark.parametrize("machine", [AVX2, slow(AVX512)], ids=["avx2", "avx512"])
def test_trying_longer_waits_costs_little(machine: Machine) -> None:
    outcome = simulate(machine, TopK(machine), poisson(2 * machine.capacity, 120.0, uniform(0.5)))
    assert outcome.goodput(20.0, 120.0) / machine.capacity >= 0.95
    assert len([client for client in outcome.left if client.at - START > 20]) < 0.03 * outcome.arrivals


@pytest.mark.parametrize("stated_s", [SILENT_S, None], ids=["stated", "silent"])
def test_a_burst_that_can_be_answered_is_answered(stated_s: float | None) -> None:
    burst = list(poisson(2000.0, 0.2, uniform(math.inf)))
    outcome = simulate(AVX512, TopK(AVX512), burst, stated_s)
    assert len(outcome.answers) == len(burst)


@pytest.mark.slow
@pytest.mark.parametrize("stated_s", [1.0, None], ids=["stated", "silent"])
@pytest.mark.parametrize("load", [2, 4, 8])
def test_two_seconds_after_the_excess_all_is_normal(load: float, stated_s: float | None) -> None:
    end, machine = 10.0, AVX512
    arrivals = chain(
        poisson(load * machine.capacity, end, uniform(1.0)),
        poisson(0.5 * machine.capacity, end, uniform(1.0), seed=1, start=end),
    )
    outcome = simulate(machine, TopK(machine), arrivals, stated_s)
    assert not [client for client in outcome.refused if client.at - START > end + 0.2]
    assert outcome.latency(0.99, end + 2.0) < 0.3


def test_costs_that_were_measured_too_low_are_learned_while_the_queue_builds_up() -> None:
    outcome = simulate(AVX512, TopK(AVX512, warmth=0.6), poisson(4 * AVX512.capacity, SECONDS, uniform(1.0)))
    assert outcome.goodput(0, SECONDS) / AVX512.capacity >= 0.85
    assert outcome.goodput(SECONDS / 2, SECONDS) / AVX512.capacity >= 0.90


def test_a_machine_that_is_half_as_fast_for_two_seconds_recovers() -> None:
    outcome = simulate(
        AVX512,
        TopK(AVX512),
        poisson(4 * AVX512.capacity, SECONDS, uniform(1.0)),
        weather=lambda now: 2.0 if 8 < now < 10 else 1.0,
    )
    assert outcome.goodput(12.0, SECONDS) / AVX512.capacity >= 0.90


@pytest.mark.parametrize("load", [2, 4])
def test_a_machine_whose_single_image_takes_a_quarter_of_the_patience(load: float) -> None:
    machine = AVX2.slower(2.2)
    outcome = simulate(machine, TopK(machine), poisson(load * machine.capacity, 80.0, uniform(1.0)))
    assert outcome.goodput(20.0, 80.0) / machine.capacity >= 0.90
