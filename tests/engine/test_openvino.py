"""The OpenVINO engine beside torch in float32: a real network, its weights random but always the same ones."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest

from app import engine as engines
from app.engine import Row, Want, choose, create
from app.engine.openvino import OpenVinoEngine
from app.engine.torch import TorchEngine
from app.errors import ModelError
from app.models import folder
from app.models.model import Model
from tests.conftest import REPOSITORY
from tests.engine.rows import forward

CROPS = [np.random.default_rng(seed).integers(0, 256, (224, 224, 3), np.uint8) for seed in range(5)]
ALL = Want(k=5, features=True, logits=True, probabilities=True)
CAPABILITIES = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
BFLOAT16 = "BF16" in CAPABILITIES


@pytest.fixture(scope="module")
def model(squeezenet_folder: Path) -> Model:
    return folder.load(squeezenet_folder)


@pytest.fixture(scope="module")
def engine(model: Model) -> OpenVinoEngine:
    engine = OpenVinoEngine(model, "float32")
    engine.load()
    return engine


@pytest.fixture(scope="module")
def expected(model: Model) -> list[Row]:
    engine = TorchEngine(model, "cpu", "float32")
    engine.load()
    return forward(engine, CROPS, [ALL] * len(CROPS))


def tensor_of(crop: np.ndarray, model: Model) -> np.ndarray:
    preprocessing = model.preprocessing
    return ((crop / 255 - preprocessing.mean) / preprocessing.std).transpose(2, 0, 1).astype(np.float32)


def assert_same(rows: list[Row], expected: list[Row]) -> None:
    for row, other in zip(rows, expected, strict=True):
        assert row.class_ids.tolist() == other.class_ids.tolist()
        for name in ("scores", "features", "logits", "probabilities"):
            assert np.allclose(getattr(row, name), getattr(other, name), atol=1e-4), name


def test_rows_are_those_of_the_torch_engine(engine: OpenVinoEngine, expected: list[Row]) -> None:
    assert_same(forward(engine, CROPS, [ALL] * len(CROPS)), expected)


def test_an_image_that_is_alone_gets_the_same_row(engine: OpenVinoEngine, expected: list[Row]) -> None:
    for crop, row in zip(CROPS, expected, strict=True):
        assert_same(forward(engine, [crop], [ALL], alone=True), [row])


def test_crops_and_tensors_share_a_batch(engine: OpenVinoEngine, model: Model, expected: list[Row]) -> None:
    mixed = [tensor_of(crop, model) if i % 2 else crop for i, crop in enumerate(CROPS)]
    assert_same(forward(engine, mixed, [ALL] * len(CROPS)), expected)


def test_a_batch_may_hold_nothing_but_tensors(engine: OpenVinoEngine, model: Model, expected: list[Row]) -> None:
    tensors = [tensor_of(crop, model) for crop in CROPS]
    assert_same(forward(engine, tensors, [ALL] * len(CROPS)), expected)


def test_inputs_are_left_as_they_were(engine: OpenVinoEngine, model: Model) -> None:
    crop, tensor = CROPS[0].copy(), tensor_of(CROPS[1], model)
    forward(engine, [crop, tensor], [Want(k=1)] * 2)
    assert np.array_equal(crop, CROPS[0])
    assert np.array_equal(tensor, tensor_of(CROPS[1], model))


def test_each_item_gets_what_it_wants_and_no_more(engine: OpenVinoEngine) -> None:
    wants = [Want(k=3), Want(), Want(k=1, features=True), Want(k=1000, logits=True), Want(probabilities=True)]
    rows = forward(engine, CROPS, wants)
    assert [len(row.class_ids) for row in rows] == [len(row.scores) for row in rows] == [3, 1, 1, 1000, 1]
    assert [row.features is not None for row in rows] == [want.features for want in wants]
    assert [row.logits is not None for row in rows] == [want.logits for want in wants]
    assert [row.probabilities is not None for row in rows] == [want.probabilities for want in wants]


def test_the_best_class_is_always_found(engine: OpenVinoEngine, expected: list[Row]) -> None:
    rows = forward(engine, CROPS[:2], [Want(features=True)] * 2)
    assert [len(row.scores) for row in rows] == [1, 1]
    assert np.allclose(rows[1].features, expected[1].features, atol=1e-4)


def test_rows_have_the_documented_shapes_and_types(engine: OpenVinoEngine) -> None:
    [row] = forward(engine, CROPS[:1], [ALL])
    assert engine.dim == 512
    assert (row.features.shape, row.logits.shape, row.probabilities.shape) == ((512,), (1000,), (1000,))
    assert row.class_ids.dtype == np.int64
    assert {a.dtype for a in (row.scores, row.features, row.logits, row.probabilities)} == {np.dtype(np.float32)}
    assert row.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert row.scores.tolist() == sorted(row.probabilities.tolist(), reverse=True)[:5]


def test_a_row_outlives_the_next_batch_of_its_thread(engine: OpenVinoEngine, expected: list[Row]) -> None:
    first = forward(engine, CROPS[:1], [ALL])
    forward(engine, CROPS[1:2], [ALL])
    assert_same(first, expected[:1])


def test_threads_do_not_mix_up_their_rows(engine: OpenVinoEngine, expected: list[Row]) -> None:
    def run(i: int) -> list[Row]:
        return forward(engine, [CROPS[i % 5]], [ALL], alone=i % 3 == 0)

    with ThreadPoolExecutor(4) as pool:
        for i, rows in enumerate(pool.map(run, range(40))):
            assert_same(rows, [expected[i % 5]])


@pytest.mark.skipif(not BFLOAT16, reason="this CPU does not compute bfloat16 natively")
def test_auto_is_bfloat16_where_the_processor_computes_it(model: Model, expected: list[Row]) -> None:
    engine = OpenVinoEngine(model, "auto")
    engine.load()
    assert engine.precision == "bfloat16"
    rows = forward(engine, CROPS, [ALL] * len(CROPS))
    for row, other in zip(rows, expected, strict=True):
        assert row.class_ids[0] == other.class_ids[0]
        assert np.allclose(row.scores, other.scores, atol=0.01)
        assert row.logits.dtype == np.float32


def test_auto_is_float32_where_the_processor_computes_no_bfloat16(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "BF16")
    assert OpenVinoEngine(model, "auto").precision == "float32"


@pytest.mark.parametrize(("precision", "capability"), [("bfloat16", "BF16"), ("float16", "FP16")])
def test_a_precision_that_the_processor_would_emulate_is_refused(
    model: Model, monkeypatch: pytest.MonkeyPatch, precision: str, capability: str
) -> None:
    without(monkeypatch, capability)
    with pytest.raises(ModelError, match=f"this CPU does not support {precision} natively; use `--engine torch`"):
        OpenVinoEngine(model, precision)


def without(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    """A processor that lacks it."""
    real = openvino.Core.get_property

    def answer(core: Any, device: str, name: str) -> Any:
        found = real(core, device, name)
        return [one for one in found if one != capability] if name == "OPTIMIZATION_CAPABILITIES" else found

    monkeypatch.setattr(openvino.Core, "get_property", answer)


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_an_int8_model_is_served_in_nothing_else(model: Model, asked: str) -> None:
    with pytest.raises(ModelError, match=f"is exported in int8; it cannot be served in {asked}"):
        OpenVinoEngine(replace(model, precision="int8"), asked)


@pytest.mark.parametrize("exported", ["auto", "float32"])
def test_the_error_for_int8_explains_how_to_export_an_int8_model(model: Model, exported: str) -> None:
    with pytest.raises(
        ModelError, match=r"squeezenet1_1 is not an int8 model; .*`topk export .*--precision int8 --calibrate DIR`"
    ):
        OpenVinoEngine(replace(model, precision=exported), "int8")


@pytest.mark.parametrize(
    ("exported", "asked", "precision"),
    [
        ("float32", "auto", "float32"),
        ("auto", "float32", "float32"),
        ("int8", "auto", "int8"),
        ("int8", "int8", "int8"),
    ],
)
def test_the_exported_precision_is_what_auto_means(model: Model, exported: str, asked: str, precision: str) -> None:
    assert OpenVinoEngine(replace(model, precision=exported), asked).precision == precision


def test_a_file_that_is_no_network_is_a_clear_error(model: Model, tmp_path: Path) -> None:
    (tmp_path / "openvino.xml").write_text("no network")
    broken = OpenVinoEngine(replace(model, openvino=tmp_path / "openvino.xml"), "float32")
    with pytest.raises(ModelError, match="OpenVINO cannot run squeezenet1_1 on this machine"):
        broken.load()


@pytest.mark.slow
def test_a_model_that_is_not_converted_is_converted_at_load(model: Model, expected: list[Row]) -> None:
    engine = OpenVinoEngine(replace(model, openvino=None), "float32")
    engine.load()
    assert_same(forward(engine, CROPS, [ALL] * len(CROPS)), expected)


@pytest.mark.parametrize(
    ("asked", "device", "accelerator", "chosen"),
    [
        ("auto", "auto", False, "openvino"),
        ("auto", "auto", True, "torch"),
        ("auto", "cpu", True, "openvino"),
        ("auto", "cuda", False, "torch"),
        ("auto", "cuda:1", False, "torch"),
        ("auto", "mps", False, "torch"),
        ("torch", "auto", False, "torch"),
        ("torch", "cpu", False, "torch"),
        ("openvino", "auto", True, "openvino"),
        ("openvino", "cpu", True, "openvino"),
    ],
)
def test_the_engine_follows_the_device(
    monkeypatch: pytest.MonkeyPatch, asked: str, device: str, accelerator: bool, chosen: str
) -> None:
    monkeypatch.setattr(engines, "_accelerator", lambda: accelerator)
    assert choose(asked, device) == chosen


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_openvino_on_an_accelerator_is_refused(device: str) -> None:
    with pytest.raises(
        ModelError, match=f"the engine openvino runs on CPUs only; for {device} choose the engine torch"
    ):
        choose("openvino", device)


@pytest.mark.parametrize(("name", "kind"), [("openvino", OpenVinoEngine), ("torch", TorchEngine)])
def test_the_engine_that_was_chosen_is_made(model: Model, name: str, kind: type) -> None:
    engine = create(model, name, "cpu", "float32")
    assert isinstance(engine, kind)
    assert (engine.name, engine.device, engine.precision) == (name, "cpu", "float32")


SERVE = """
import sys
from pathlib import Path
import numpy as np
from app.engine import Want, create
from app.models import folder
engine = create(folder.load(Path(sys.argv[1])), "openvino", "cpu", "float32")
engine.load()
row = engine.forward([np.zeros((224, 224, 3), np.uint8)], [Want(k=1)]).row(0, 1)
print(len(row.scores), sorted({"torch", "torchvision", "timm"} & sys.modules.keys()))
"""


def test_a_model_folder_is_served_without_torch(squeezenet_folder: Path) -> None:
    command = [sys.executable, "-c", SERVE, str(squeezenet_folder)]
    printed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert printed.split("\n")[0] == "1 []"


def test_int8_is_refused_by_torch_in_plain_words(model: Model) -> None:
    words = "squeezenet1_1 is an int8 model, which torch cannot run; use `--engine openvino`"
    with pytest.raises(ModelError, match=words):
        TorchEngine(replace(model, precision="int8"), "cpu", "auto")
