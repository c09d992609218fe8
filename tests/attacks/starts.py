"""Services that should not start, or not serve what they were given (row 13). Each check starts one of its own."""

import contextlib
import json
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2

from tests.attacks.clients import Wire, photograph, post
from tests.attacks.service import MIB, MODEL, Memory, Service
from tests.conftest import environment

REFUSES = "refuses to start"
_BEFORE_S = 60.0
_LOOK_S = 0.5
_UNPACKED = 300 * MIB
_ESCAPES = (b"\x1b]0;topk\x07", b"\x9b31mtopk", "\x9b31mtopk".encode())  # set a title; set a colour, in two encodings


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a service, and by how many MiB its memory grew at most."""

    said: str
    peak_mib: float


@dataclass(frozen=True, slots=True)
class Start:
    """A check. ``run`` is given the checkout to start; ``answers`` are the acceptable outcomes."""

    name: str
    run: Callable[[Path], Outcome]
    answers: frozenset[str]
    memory_mib: int = 1500
    row: int = 13
    variant: bool = False


def empty_keys(app: Path) -> Outcome:
    return _outcome(app, env={"TOPK_API_KEYS": ""})


def separators_for_keys(app: Path) -> Outcome:
    return _outcome(app, env={"TOPK_API_KEYS": " , "})


def empty_keys_file(app: Path) -> Outcome:
    with tempfile.NamedTemporaryFile(suffix=".keys") as file:
        return _outcome(app, env={"TOPK_API_KEYS_FILE": file.name})


def ten_labels(app: Path) -> Outcome:
    """A model folder with 10 labels for a network of 1000 logits."""
    with _folder(app) as folder:
        description = json.loads((folder / "model.json").read_text())
        description["labels"] = description["labels"][:10]
        (folder / "model.json").write_text(json.dumps(description))
        return _outcome(app, model=str(folder))


def forged_digest(app: Path) -> Outcome:
    """The cache's entry of the served model names another digest of the weights."""
    with tempfile.TemporaryDirectory() as cache, _folder(app) as folder:
        copy = Path(cache) / _entry(app).name
        shutil.copytree(folder, copy)
        description = json.loads((copy / "model.json").read_text())
        true = description["digest"]
        forged = "".join("1" if character == "0" else "0" for character in true)
        (copy / "model.json").write_text(json.dumps(description | {"digest": forged}))
        service = Service(env={"TOPK_CACHE_DIR": cache}, app=app)
        try:
            if not _ready(service):
                return Outcome(REFUSES, 0)
            digest = httpx2.get(f"{service.url}/v1/info", timeout=20).text
            return Outcome("serves the forged digest" if forged in digest else "serves the true digest", 0)
        finally:
            service.kill()


def zip_bomb(app: Path) -> Outcome:
    """A checkpoint of one tensor of zeros: 300 KB that unpack to 300 MiB."""
    import torch

    with tempfile.TemporaryDirectory() as place:
        plain, packed = Path(place) / "plain.pt", Path(place) / "bomb.pt"
        torch.save({"fc.weight": torch.zeros(_UNPACKED // 4)}, plain)
        with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
            for name in source.namelist():
                with source.open(name) as content, target.open(name, "w") as copy:
                    shutil.copyfileobj(content, copy, MIB)
        plain.unlink()
        return _outcome(app, "--weights", str(packed), model="resnet18")


def escapes_in_log(app: Path) -> Outcome:
    """Escape sequences in ``X-Forwarded-For`` from a trusted proxy, and a log in text."""
    env = {"TOPK_TRUSTED_PROXIES": "127.0.0.1", "TOPK_LOG_LEVEL": "debug"}
    service = Service("--log-format", "text", env=env, app=app)
    try:
        found = service.logged(r"http://127\.0\.0\.1:(\d+)", _BEFORE_S)
        if not found:
            return Outcome(REFUSES, 0)
        port = int(found[1])
        for escape in _ESCAPES:
            request = post("/v1/predict?top_k=0", photograph(), "image/jpeg", X_Forwarded_For="ESCAPE")
            wire = Wire(port)
            wire.ask(request.replace(b"ESCAPE", escape), timeout=5)
            wire.close()
        service.stop()  # once it has ended, all of its log is there
        logged = service.text()
        reached = [escape for escape in _ESCAPES if escape.decode("latin-1") in logged or _decoded(escape) in logged]
        return Outcome(f"{len(reached)} of {len(_ESCAPES)} reach the log" if reached else "none reaches the log", 0)
    finally:
        service.kill()


def _decoded(escape: bytes) -> str:
    return escape.decode("utf-8", "surrogateescape")


def _outcome(app: Path, *options: str, env: dict[str, str] | None = None, model: str = MODEL) -> Outcome:
    """Start it, and ask it once without a key if it becomes ready."""
    service = Service(*options, env=env, app=app, model=model)
    memory = Memory(service.process.pid)
    try:
        if not _ready(service):
            memory.close()
            return Outcome(REFUSES, memory.peak / MIB)
        wire = Wire(service.port)
        status = wire.ask(post("/v1/predict", photograph(), "image/jpeg"), timeout=10)
        wire.close()
        memory.close()
        return Outcome(f"ready, {status}", memory.peak / MIB)
    finally:
        service.kill()


def _ready(service: Service) -> bool:
    """Whether it becomes ready, rather than ending. The log tells of no end, so the process is polled."""
    end = time.monotonic() + _BEFORE_S
    while True:
        try:
            service.wait_for("ready", _LOOK_S)
        except AssertionError:
            if service.process.poll() is not None:
                return False
            if time.monotonic() > end:
                raise
        else:
            return True


@contextlib.contextmanager
def _folder(app: Path) -> Iterator[Path]:
    """A copy of the converted EfficientNet-Lite0."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "folder"
        shutil.copytree(_entry(app), folder)
        yield folder


def _entry(app: Path) -> Path:
    """The cache's entry of the served model, which is converted first where it is not there."""
    cache = Path(environment()["TOPK_CACHE_DIR"])
    found = [path for path in cache.glob("efficientnet-lite0-*") if (path / "model.json").is_file()]
    if not found:
        service = Service(app=app)
        try:
            service.wait_for("ready")
        finally:
            service.kill()
        found = [path for path in cache.glob("efficientnet-lite0-*") if (path / "model.json").is_file()]
    return found[0]


STARTS = [
    Start("TOPK_API_KEYS set but empty", empty_keys, frozenset({REFUSES})),
    Start("TOPK_API_KEYS of separators alone", separators_for_keys, frozenset({REFUSES}), variant=True),
    Start("TOPK_API_KEYS_FILE of an empty file", empty_keys_file, frozenset({REFUSES})),
    Start("model folder with 10 labels for 1000 logits", ten_labels, frozenset({REFUSES})),
    Start("cache with a forged digest", forged_digest, frozenset({REFUSES, "serves the true digest"})),
    Start("checkpoint of 300 KB that unpacks to 300 MiB", zip_bomb, frozenset({REFUSES}), memory_mib=800),
    Start("escape sequences in X-Forwarded-For, text log", escapes_in_log, frozenset({"none reaches the log"})),
]
