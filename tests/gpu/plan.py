"""The steps in the order in which they run, each with its share of time on a GPU."""

from dataclasses import dataclass

QUICK_S = 120.0
"""The limit of a step with ``--quick``, in seconds. Most take two or three, but the machine may be busy."""


@dataclass(frozen=True, slots=True)
class Step:
    """``function`` is ``module:name`` below this package. ``seconds`` limits it on a GPU; it is then killed."""

    part: int
    name: str
    function: str
    seconds: float
    cuda: bool = False


PLAN = (
    Step(0, "versions", "machine:versions", 30),
    Step(1, "ceilings", "machine:ceilings", 20),
    Step(1, "float32", "engine:float32", 40),
    Step(1, "bfloat16", "engine:bfloat16", 40, cuda=True),
    Step(1, "variants", "variants:variants", 150),
    Step(1, "lanes", "engine:lanes", 60),
    Step(1, "staging", "engine:staging", 30),
    Step(1, "identical", "engine:identical", 80),
    Step(2, "speed", "decoding:speed", 100),
    Step(2, "corruption", "decoding:corruption", 60),
    Step(2, "kinds", "decoding:kinds", 30),
    Step(2, "agreement", "decoding:agreement", 40),
    Step(2, "beside", "decoding:beside", 70),
    Step(3, "tests", "serving:tests", 90),
    Step(3, "throughput", "serving:throughput", 270),
    Step(3, "faults", "faults:faults", 160),
    Step(4, "kernels", "kernels:kernels", 60, cuda=True),
    Step(5, "soak", "engine:soak", 540),
)

PARTS = tuple(sorted({step.part for step in PLAN} - {0}))
