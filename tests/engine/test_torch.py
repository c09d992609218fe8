"""The torch engine with a real network, its weights random but always the same ones."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import torch
import torchvision
from safetensors.torch import save_file
from torchvision.transforms import functional

from app import loading
from app.classifier import Classifier
from app.engine import Row, Want
from app.engine.lane import Lane
from app.engine.torch import TorchEngine
from app.errors import ModelError
from app.models import zoo
from app.models.model import Model
from app.settings import Settings
from tests.engine.rows import forward
from tests.models.seeded import seeded

CROPS = [np.random.default_rng(seed).integers(0, 256, (224, 224, 3), np.uint8) for seed in range(5)]


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torchvision.models.resnet18().eval()


@pytest.fixture(scope="module")
def model(network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(network.state_dict(), path)
    return zoo.from_file("resnet18", None, path)


@pytest.fixture(scope="module")
def engine(model: Model) -> TorchEngine:
    engine = TorchEngine(model, "cpu", "float32")
    engine.load()
    return engine


@pytest.fixture(scope="module")
def logits(network: torch.nn.Module, model: Model) -> torch.Tensor:
    """The reference: torchvision's own normalisation and the network, nothing else."""
    with torch.inference_mode():
        return network(torch.stack([preset(crop, model) for crop in CROPS]))


Watch = Callable[[torch.Tensor], None]


class Small(torch.nn.Module):
    """Few operations. ``watch`` is called with each batch."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch
        self.body, self.fc = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 7, 4)), torch.nn.Linear(8, 1000)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.watch(images)
        scores: torch.Tensor = self.fc(self.change(self.body(images)).relu().mean((2, 3)))
        return scores

    def change(self, maps: torch.Tensor) -> torch.Tensor:
        return maps


@pytest.fixture
def sizes() -> list[int]:
    return []


@pytest.fixture
def small(model: Model, sizes: list[int]) -> Model:
    """A small network, which notes the sizes of its batches in ``sizes``."""
    return replace(model, build=lambda: seeded(lambda: Small(lambda images: sizes.append(len(images)))))


def preset(crop: np.ndarray, model: Model) -> torch.Tensor:
    image = functional.convert_image_dtype(torch.from_numpy(crop).permute(2, 0, 1), torch.float)
    return functional.normalize(image, model.preprocessing.mean, model.preprocessing.std)


def tensor_of(crop: np.ndarray, model: Model) -> np.ndarray:
    return preset(crop, model).numpy()


def assert_same(row: Row, expected: Row, tolerance: float = 1e-5) -> None:
    for name in ("class_ids", "scores", "features", "logits", "probabilities"):
        got, wanted = getattr(row, name), getattr(expected, name)
        assert (got is None) == (wanted is None)
        assert got is None or np.allclose(got, wanted, atol=tolerance), name


def test_scores_are_those_of_a_plain_torch_loop(engine: TorchEngine, logits: torch.Tensor) -> None:
    rows = forward(engine, CROPS, [Want(k=5)] * len(CROPS))
    scores, class_ids = logits.softmax(1).topk(5)
    for row, expected, ids in zip(rows, scores.numpy(), class_ids.numpy(), strict=True):
        assert row.class_ids.tolist() == ids.tolist()
        assert np.allclose(row.scores, expected, rtol=1e-4, atol=1e-5)


def test_whole_rows_are_those_of_a_plain_torch_loop(
    engine: TorchEngine, network: torch.nn.Module, logits: torch.Tensor
) -> None:
    rows = forward(engine, CROPS, [Want(features=True, logits=True, probabilities=True)] * len(CROPS))
    for row, expected in zip(rows, logits, strict=True):
        assert np.allclose(row.logits, expected, atol=1e-4)
        assert np.allclose(row.probabilities, expected.softmax(0), atol=1e-5)
        assert np.allclose(network.fc(torch.from_numpy(row.features)).detach().numpy(), expected, atol=1e-4)


def test_each_item_gets_what_it_wants_and_no_more(engine: TorchEngine) -> None:
    wants = [Want(k=3), Want(), Want(k=1, features=True), Want(k=1000, logits=True), Want(probabilities=True)]
    rows = forward(engine, CROPS, wants)
    assert [len(row.class_ids) for row in rows] == [len(row.scores) for row in rows] == [3, 1, 1, 1000, 1]
    assert [row.features is not None for row in rows] == [want.features for want in wants]
    assert [row.logits is not None for row in rows] == [want.logits for want in wants]
    assert [row.probabilities is not None for row in rows] == [want.probabilities for want in wants]


def test_rows_have_the_documented_shapes_and_types(engine: TorchEngine) -> None:
    [row] = forward(engine, CROPS[:1], [Want(k=2, features=True, logits=True, probabilities=True)])
    assert engine.dim == 512
    assert (row.features.shape, row.logits.shape, row.probabilities.shape) == ((512,), (1000,), (1000,))
    assert row.class_ids.dtype == np.int64
    assert {a.dtype for a in (row.scores, row.features, row.logits, row.probabilities)} == {np.dtype(np.float32)}
    assert row.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert row.scores.tolist() == sorted(row.probabilities.tolist(), reverse=True)[:2]


def test_the_best_class_is_always_found(engine: TorchEngine) -> None:
    rows = forward(engine, CROPS[:2], [Want(features=True), Want()])
    assert [len(row.scores) for row in rows] == [1, 1]
    assert rows[0].features is not None


def test_crops_and_tensors_share_a_batch(engine: TorchEngine, model: Model) -> None:
    want = Want(k=5, features=True, logits=True)
    alone = [forward(engine, [crop], [want])[0] for crop in CROPS]
    mixed = [tensor_of(crop, model) if i % 2 else crop for i, crop in enumerate(CROPS)]
    for row, expected in zip(forward(engine, mixed, [want] * 5), alone, strict=True):
        assert_same(row, expected)


def test_a_batch_of_tensors_is_the_same_as_their_crops(engine: TorchEngine, model: Model) -> None:
    want = Want(k=5, probabilities=True)
    tensors = [tensor_of(crop, model) for crop in CROPS]
    for row, expected in zip(forward(engine, tensors, [want] * 5), forward(engine, CROPS, [want] * 5), strict=True):
        assert_same(row, expected)


def test_inputs_are_left_as_they_were(engine: TorchEngine, model: Model) -> None:
    crop, tensor = CROPS[0].copy(), tensor_of(CROPS[1], model)
    forward(engine, [crop, tensor], [Want(k=1)] * 2)
    assert np.array_equal(crop, CROPS[0])
    assert np.array_equal(tensor, tensor_of(CROPS[1], model))


def test_a_stream_of_a_cpu_computes_on_one_core(engine: TorchEngine) -> None:
    with ThreadPoolExecutor(1) as stream:
        stream.submit(torch.set_num_threads, 2).result()
        stream.submit(engine.forward, CROPS[:1], [Want()]).result()
        assert stream.submit(torch.get_num_threads).result() == 1


def test_a_cpu_runs_batches_as_they_come(small: Model, sizes: list[int]) -> None:
    engine = TorchEngine(small, "cpu", "float32")
    engine.load()
    assert not engine.pads
    sizes.clear()
    for n in (3, 5, 1):
        forward(engine, CROPS[:n], [Want(k=5)] * n)
    assert sizes == [3, 5, 1]


def test_padding_changes_no_answer(small: Model, sizes: list[int]) -> None:
    wants = [Want(k=5, features=True, logits=True, probabilities=True)] * 3
    plain, padding = TorchEngine(small, "cpu", "float32"), TorchEngine(small, "cpu", "float32")
    padding.pads = True
    plain.load()
    padding.load()
    sizes.clear()
    rows = forward(padding, CROPS[:3], wants)
    assert sizes == [4]
    for row, alone in zip(rows, forward(plain, CROPS[:3], wants), strict=True):
        assert_same(row, alone)


def test_lower_precision_still_answers_in_float32(model: Model) -> None:
    engine = TorchEngine(model, "cpu", "bfloat16")
    engine.load()
    [row] = forward(engine, CROPS[:1], [Want(k=5, features=True, logits=True, probabilities=True)])
    assert {a.dtype for a in (row.scores, row.features, row.logits, row.probabilities)} == {np.dtype(np.float32)}
    assert row.probabilities.sum() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({}, "float32"), ({"avx2": True, "avx512_bf16": False}, "float32"), ({"avx512_bf16": True}, "bfloat16")],
)
def test_auto_is_bfloat16_only_where_the_processor_computes_it(
    model: Model, monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert TorchEngine(model, "cpu", "auto").precision == precision


def test_a_precision_that_was_asked_for_is_kept(engine: TorchEngine) -> None:
    assert (engine.name, engine.device, engine.precision) == ("torch", "cpu", "float32")


@pytest.mark.parametrize("device", ["cuda:7", "mps"])
def test_a_device_that_is_absent_is_refused(model: Model, device: str) -> None:
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ModelError, match=device):
        TorchEngine(model, device, "auto")


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is an accelerator")
def test_auto_is_the_cpu_where_there_is_nothing_else(model: Model) -> None:
    assert TorchEngine(model, "auto", "float32").device == "cpu"


def test_weights_that_do_not_fit_are_refused(network: torch.nn.Module, tmp_path: Path) -> None:
    save_file({name: t for name, t in network.state_dict().items() if name != "fc.bias"}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"fc\.bias is missing"):
        TorchEngine(zoo.from_file("resnet18", None, tmp_path / "w.safetensors"), "cpu", "float32").load()


@pytest.mark.gpu
def test_a_gpu_scores_as_a_plain_torch_loop(model: Model, logits: torch.Tensor) -> None:
    engine = TorchEngine(model, "cuda", "float32")
    engine.load()
    mixed = [CROPS[0], tensor_of(CROPS[1], model), *CROPS[2:]]
    rows = forward(engine, mixed, [Want(k=5, logits=True)] * len(mixed))
    for row, expected in zip(rows, logits, strict=True):
        assert np.allclose(row.logits, expected, atol=2e-2)  # cuDNN convolves in TF32 unless told otherwise
        assert np.allclose(row.scores, expected.softmax(0)[row.class_ids], atol=1e-3)


@pytest.mark.gpu
def test_a_gpu_reports_its_held_memory(model: Model, network: torch.nn.Module) -> None:
    engine = TorchEngine(model, "cuda", "float32")
    engine.load()
    weights = sum(parameter.nbytes for parameter in network.parameters())
    memory = engine.memory()
    assert weights <= memory["held"] < memory["total"]


# --- the fastest form of the network that computes the same ---


class Normalised(Small):
    """Has a batch normalisation, so that there is something to fold."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(watch)
        self.body.append(torch.nn.BatchNorm2d(8))


class OtherwiseTraced(Normalised):
    """What is traced is not what is computed."""

    def change(self, maps: torch.Tensor) -> torch.Tensor:
        return maps * 2 if isinstance(maps, torch.fx.Proxy) else maps


class FailsTraced(Normalised):
    """What is traced raises an error once it runs."""

    def change(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.reshape(-1, 7) if isinstance(maps, torch.fx.Proxy) else maps


class NotTraced(Normalised):
    def change(self, maps: torch.Tensor) -> torch.Tensor:
        return maps if maps.sum() > 0 else maps * 1


def layers_of(model: Model, kind: type[Small]) -> tuple[TorchEngine, set[str]]:
    """A loaded engine in bfloat16, and the names of the layers that a batch calls."""
    called: set[str] = set()
    engine = TorchEngine(replace(model, build=lambda: seeded(lambda: kind(lambda _: None))), "cpu", "bfloat16")
    engine.load()
    hook = torch.nn.modules.module.register_module_forward_hook(lambda layer, *_: called.add(type(layer).__name__))
    rows = forward(engine, CROPS[:3], [Want(k=5)] * 3)
    hook.remove()
    assert [len(row.scores) for row in rows] == [5] * 3
    return engine, called


def test_batch_normalisation_is_folded_before_the_cast(model: Model) -> None:
    engine, called = layers_of(model, Normalised)
    assert "BatchNorm2d" not in called
    assert engine.compilation == "eager"


@pytest.mark.parametrize(
    ("kind", "reason"), [(OtherwiseTraced, "logits deviate"), (FailsTraced, "shape"), (NotTraced, None)]
)
def test_a_network_that_cannot_be_rewritten_runs_as_it_is(model: Model, kind: type[Small], reason: str | None) -> None:
    with structlog.testing.capture_logs() as logs:
        engine, called = layers_of(model, kind)
    assert "BatchNorm2d" in called
    warnings = [entry["reason"] for entry in logs if entry["log_level"] == "warning"]
    assert len(warnings) == (reason is not None)
    assert all(reason in warning for warning in warnings)
    plain = TorchEngine(replace(model, build=lambda: seeded(lambda: kind(lambda _: None))), "cpu", "float32")
    plain.load()
    for row, expected in zip(*(forward(one, CROPS, [Want(k=5)] * 5) for one in (engine, plain)), strict=True):
        assert np.allclose(row.scores, expected.scores, atol=1e-3)


def test_float32_on_a_cpu_is_the_network_as_it_is(model: Model) -> None:
    network = seeded(lambda: Normalised(lambda _: None))
    engine = TorchEngine(replace(model, build=lambda: network), "cpu", "float32")
    engine.load()
    norms: list[torch.nn.Module] = []
    network.body[1].register_forward_hook(lambda layer, *_: norms.append(layer))
    forward(engine, CROPS[:1], [Want(k=5)])
    assert norms == [network.body[1]]


def test_the_start_is_reported_by_phase(small: Model) -> None:
    engine = TorchEngine(small, "cpu", "bfloat16")
    with structlog.testing.capture_logs() as logs:
        engine.load()
    assert set(engine.start_s) == {"build", "copy", "fold", "capture", "check"}
    assert all(seconds >= 0 for seconds in engine.start_s.values())
    assert [entry["seconds"] for entry in logs if entry["event"] == "the network is loaded"] == [engine.start_s]


@pytest.mark.parametrize(("fitting", "buckets"), [(8, (1, 2, 4, 8)), (4, (1, 2, 4)), (1, (1,))])
def test_buckets_without_memory_are_left_out(
    small: Model, monkeypatch: pytest.MonkeyPatch, fitting: int, buckets: tuple[int, ...]
) -> None:
    monkeypatch.setattr("app.engine.torch.Lane", partial(lane_with_memory_for, fitting))
    engine = TorchEngine(small, "cpu", "float32")
    engine.pads = True
    engine.load()
    assert engine.buckets == buckets
    assert len(forward(engine, CROPS[:1], [Want(k=5)])) == 1


def test_no_memory_for_a_single_image_is_a_clear_error(small: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engine.torch.Lane", partial(lane_with_memory_for, 0))
    engine = TorchEngine(small, "cpu", "float32")
    engine.pads = True
    with pytest.raises(ModelError, match="cpu has too little memory for resnet18"):
        loading.load_model(Classifier(Settings(_env_file=None)), small, engine)


def lane_with_memory_for(fitting: int, *arguments: Any) -> Lane:
    *_, sizes, _, _, _ = arguments
    if max(sizes) > fitting:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
    return Lane(*arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_gpu_replays_the_folded_and_fused_network(model: Model, precision: str) -> None:
    engine = TorchEngine(model, "cuda", precision)
    with structlog.testing.capture_logs() as logs:
        engine.load()
    assert [entry for entry in logs if entry["log_level"] == "warning"] == []
    assert engine.compilation == "captured"
    assert engine.buckets[-1] == 256


@pytest.mark.gpu
def test_a_gpu_answers_the_same_in_batches_of_any_size(model: Model, logits: torch.Tensor) -> None:
    engine = TorchEngine(model, "cuda", "float32")
    engine.load()
    for n in (*engine.buckets, 3, 7, 100, 255):
        rows = forward(engine, [CROPS[i % 5] for i in range(n)], [Want(k=5, logits=True)] * n)
        for i, row in enumerate(rows):
            assert np.allclose(row.logits, logits[i % 5], atol=2e-2)
