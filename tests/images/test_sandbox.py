"""Pictures decoded in child processes: same crops, limits that hold, and children that are replaced."""

import functools
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import psutil
import pytest
from PIL import Image

from app import images
from app.errors import DeadlineExceeded, TooManyPixels, TopkError, UndecodableImage
from app.images import Header, Preprocessing
from app.images.sandbox import Sandbox, Task
from tests import hostile
from tests.conftest import REPOSITORY
from tests.hostile import encode, picture

PRESET = Preprocessing(256, 224, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
MAX_PIXELS = 50_000_000


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox()
    yield sandbox
    sandbox.close()


def task(data: bytes, seconds: float = 60, processor_s: float = 30, **changes: object) -> Task:
    header = images.read_header(data, MAX_PIXELS)
    memory = images.decode_bytes(header, PRESET, True)
    made = Task(header, PRESET, True, time.monotonic() + seconds, processor_s, memory)
    return replace(made, **changes)  # type: ignore[arg-type]


@functools.cache
def slow() -> bytes:
    """A lossless WebP of 49 million pixels, which takes seconds."""
    rows, picture = Image.effect_noise((7000, 350), 90).convert("RGB"), Image.new("RGB", (7000, 7000))
    for top in range(0, 7000, 350):
        picture.paste(rows, (0, top))
    return encode(picture, "WEBP", lossless=True, quality=0, method=0)


formats = ["JPEG", "PNG", "GIF", "BMP", "TIFF", "AVIF", "WEBP"] + (["HEIF"] if images.heif_installed() else [])


@pytest.mark.parametrize("format", formats)
def test_crop_is_the_same_as_here(sandbox: Sandbox, format: str) -> None:
    made = task(picture(format, (300, 200)))
    crop, size, seconds = sandbox.decode(made)
    assert np.array_equal(crop, images.decode(made.header, PRESET, True))
    assert size == (300, 200)
    assert 0 < seconds < 60


@pytest.mark.slow
def test_errors_come_back_as_they_are(sandbox: Sandbox) -> None:
    with pytest.raises(UndecodableImage, match="truncated or corrupt"):
        sandbox.decode(task(picture("WEBP", (300, 200))[:1000]))
    with pytest.raises(TooManyPixels):
        sandbox.decode(task(slow(), header=Header(hostile.png(60_000, 60_000), "PNG", 60_000, 60_000)))


def test_picture_that_takes_more_memory_than_accounted_for_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(UndecodableImage, match="memory"):
        sandbox.decode(task(encode(Image.new("RGB", (6000, 6000)), "TIFF"), memory=20 * 2**20))
    assert sandbox.decode(task(picture("TIFF")))[0].shape == (224, 224, 3)


def test_picture_that_takes_more_processor_time_than_it_may_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(UndecodableImage, match="processor time"):
        sandbox.decode(task(slow(), processor_s=0.2))
    assert sandbox.decode(task(picture("TIFF")))[0].shape == (224, 224, 3)


def test_picture_past_its_deadline_is_ended(sandbox: Sandbox) -> None:
    with pytest.raises(DeadlineExceeded):
        sandbox.decode(task(slow(), seconds=0.2))
    assert sandbox.decode(task(picture("TIFF")))[0].shape == (224, 224, 3)


def test_limits_are_those_of_each_picture(sandbox: Sandbox) -> None:
    for _ in range(20):  # 20 times 0.05 s is more than a limit of 0.5 s that was not renewed
        made = task(encode(Image.new("RGB", (3000, 3000)), "TIFF"), processor_s=0.5)
        assert sandbox.decode(made)[0].shape == (224, 224, 3)


def error_of(sandbox: Sandbox, task: Task) -> TopkError:
    with pytest.raises(TopkError) as caught:
        sandbox.decode(task)
    return caught.value


def children(sandbox: Sandbox) -> list[psutil.Process]:
    assert sandbox.pid
    return psutil.Process(sandbox.pid).children()


def test_child_that_crashes_costs_one_picture_and_is_replaced() -> None:
    sandbox = Sandbox()
    sandbox.decode(task(picture("TIFF")))
    [child] = children(sandbox)
    working = threading.Thread(target=lambda: failed.append(error_of(sandbox, task(slow()))))
    failed: list[TopkError] = []
    before = child.cpu_times().user
    working.start()
    while child.cpu_times().user < before + 0.05:
        pass
    child.send_signal(signal.SIGSEGV)
    working.join(60)
    assert (type(failed[0]), failed[0].detail) == (UndecodableImage, "the image is corrupt: its decoder crashed")
    assert sandbox.decode(task(picture("TIFF")))[0].shape == (224, 224, 3)
    assert children(sandbox) != [child]
    sandbox.close()


def test_child_that_ends_while_idle_costs_nothing() -> None:
    sandbox = Sandbox()
    sandbox.decode(task(picture("TIFF")))
    [child] = children(sandbox)
    child.kill()
    assert sandbox.decode(task(picture("TIFF")))[0].shape == (224, 224, 3)
    sandbox.close()


@pytest.mark.slow
@pytest.mark.parametrize("limit", [resource.RLIMIT_AS, resource.RLIMIT_CPU])
def test_limits_of_the_systems_operator_are_kept(limit: int) -> None:
    program = (
        "import resource, time; from app import images; from app.images.sandbox import Sandbox, Task;"
        "from tests.images.test_sandbox import PRESET, task; from tests.hostile import picture;"
        f"resource.setrlimit({limit}, (8 * 2**30, 8 * 2**30));"
        "box = Sandbox(); print(box.decode(task(picture('TIFF')))[0].shape); box.close()"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
    assert run.stdout == "(224, 224, 3)\n", run.stderr


def test_process_that_forks_is_started_again() -> None:
    sandbox = Sandbox()
    sandbox.decode(task(picture("TIFF")))
    assert sandbox.pid
    os.kill(sandbox.pid, signal.SIGKILL)
    assert sandbox.decode(task(picture("TIFF")))[0].shape == (224, 224, 3)
    sandbox.close()


def test_child_is_replaced_after_many_pictures() -> None:
    sandbox = Sandbox()
    made = task(picture("TIFF"))
    sandbox.decode(made)
    first = children(sandbox)
    for _ in range(150):
        sandbox.decode(made)
    assert children(sandbox) != first
    sandbox.close()


def test_signals_that_end_a_service_leave_its_sandbox_alone() -> None:
    sandbox = Sandbox()
    sandbox.decode(task(picture("TIFF")))
    assert sandbox.pid
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.killpg(sandbox.pid, sig)
    before = [sandbox.pid, *children(sandbox)]
    assert sandbox.decode(task(picture("TIFF")))[0].shape == (224, 224, 3)
    assert [sandbox.pid, *children(sandbox)] == before
    sandbox.close()


def test_closing_ends_all_processes() -> None:
    sandbox = Sandbox()
    sandbox.decode(task(picture("TIFF")))
    assert sandbox.pid
    processes = [psutil.Process(sandbox.pid), *children(sandbox)]
    sandbox.close()
    assert psutil.wait_procs(processes, 30)[1] == []


def test_tile_that_is_larger_than_accounted_for_is_refused(sandbox: Sandbox) -> None:
    side = 7000
    tile = zlib.compress(bytes(side * side), 1)
    tags = {
        256: 8,
        257: 8,
        258: 8,
        259: 8,
        262: 1,
        277: 1,
        322: side,
        323: side,
        324: 8 + 2 + 10 * 12 + 4,
        325: len(tile),
    }
    data = hostile.tiff(*((tag, 4, 1, value) for tag, value in tags.items()), rest=tile)
    made = task(data)
    assert made.memory > side * side
    assert sandbox.decode(made)[0].shape == (224, 224, 3)
    with pytest.raises(UndecodableImage):
        sandbox.decode(replace(made, memory=side * side // 2))
