"""The image path under a fuzzer guided by coverage and by cost: ``python -m tests.production.fuzz CORPUS [options]``.

The options are libFuzzer's. A process of its own: a crash in a codec ends it, which is what its starter looks for.
"""

import bisect
import random
import sys
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["app.images", "PIL"]):
    import PIL.AvifImagePlugin
    import PIL.BmpImagePlugin
    import PIL.GifImagePlugin
    import PIL.JpegImagePlugin
    import PIL.PngImagePlugin
    import PIL.TiffImagePlugin
    import PIL.WebPImagePlugin  # noqa: F401

    from app import images  # noqa: F401

from tests.production import costs, mutants

# Times that a file takes as long as predicted, here where all is instrumented, and numbers that libFuzzer tells apart
_RATIOS = (1, 2, 4, 8, 12, 16, 24)
_TURNS = (1, 2, 3, 4, 8, 16, 32, 128)


def run(target: Callable[[bytes], object]) -> None:
    """Fuzz until libFuzzer's options end it. Does not return."""
    atheris.Setup(sys.argv, target, custom_mutator=_mutated)
    atheris.Fuzz()


def _mutated(data: bytes, max_size: int, seed: int) -> bytes:
    """The fuzzer's own mutations and ours in turn."""
    if seed % 2:
        return bytes(atheris.Mutate(data, max_size))
    return mutants.mutant(random.Random(seed), data)[:max_size]


def _judge(data: bytes) -> None:
    mutants.judge(bytes(data))
    cost = costs.measure("", bytes(data), fast=True, tries=1)
    if cost:
        _mark_time(_TURNS[bisect.bisect(_RATIOS, cost.time_ratio)])
        _mark_memory(_TURNS[bisect.bisect(_RATIOS, 10 * cost.memory_ratio)])


@atheris.instrument_func
def _mark_time(turns: int) -> None:
    """Turn a cost into coverage: the fuzzer keeps an input that makes a loop turn more often than those before."""
    for _ in range(turns):
        pass


@atheris.instrument_func
def _mark_memory(turns: int) -> None:
    for _ in range(turns):
        pass


if __name__ == "__main__":
    run(_judge)
