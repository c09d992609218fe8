"""A device out of memory, for real: the address space of a child process is limited once its model is loaded."""

import subprocess
import sys

import pytest

from tests import tiny
from tests.conftest import REPOSITORY, environment, slow

SCRIPT = """
import asyncio, resource, sys
import numpy as np
from app import engine, models
from app.batching import BatchQueue, CostCurve
from app.engine import Want
from tests.batching.jobs import job
from app.settings import Settings

name, path = sys.argv[1:]
settings = Settings(_env_file=None, model=path, engine=name, device="cpu", precision="float32")
model = models.resolve(settings, converted=name == "openvino")
device = engine.create(model, name, "cpu", "float32")
device.load()
crop = np.zeros((224, 224, 3), np.uint8)
device.forward([crop] * 8, [Want(k=1)] * 8)

def run(jobs):
    try:
        rows = device.forward([crop] * len(jobs), [Want(k=1)] * len(jobs))
        return [rows.row(place, 1) for place in range(len(jobs))]
    except MemoryError:
        print("no memory for", len(jobs))
        raise

queue = BatchQueue([run], CostCurve((256,)))
queue.start(lambda size: range(8))  # its thread has the memory that threads take
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 600 * 2**20,) * 2)

async def ask(queue):
    jobs = [job(i) for i in range(256)]
    queue.put(*jobs)  # at once, so that they are one batch
    return await asyncio.gather(*(one.future for one in jobs))

print("answers", sum(one.row is not None for one in asyncio.run(ask(queue))))
queue.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux's")
@pytest.mark.parametrize(
    ("engine", "model"), [("openvino", tiny.model()[1]), slow("torch", "efficientnet_lite0")], ids=["openvino", "torch"]
)
def test_a_batch_that_does_not_fit_is_answered_in_parts(engine: str, model: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, engine, model],
        env=environment(),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert "no memory for 256" in ran.stdout, ran.stderr[-2000:]
    assert "answers 256" in ran.stdout, ran.stderr[-2000:]
