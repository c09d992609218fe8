"""Lanes with plain calls on a CPU. Those marked gpu capture CUDA graphs."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from app.engine import Jpeg, Pixels, Row, Rows, Want
from app.engine.jpeg import JpegDecoder
from app.engine.lane import Lane
from app.images import Preprocessing
from tests.models.seeded import seeded

CROP, DIM, CLASSES = 8, 6, 14
SIZES = (1, 2, 4, 8)
PREPROCESSING = Preprocessing(CROP, CROP, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
CROPS = [np.random.default_rng(seed).integers(0, 256, (CROP, CROP, 3), np.uint8) for seed in range(9)]
ALL = Want(k=5, features=True, logits=True, probabilities=True)


class Network(nn.Module):
    """Features and logits of few operations. Records the batch sizes it gets, and fails once on request."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, DIM, 3), nn.Linear(DIM, classes)
        self.sizes: list[int] = []
        self.failing = False

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.sizes.append(len(images))
        if self.failing:
            raise RuntimeError("planted")
        features = self.convolution(images).relu().mean((2, 3)).float()
        return features, self.head(features)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return seeded(Network)


def lane_of(network: nn.Module, sizes: tuple[int, ...] = SIZES, classes: int = CLASSES) -> Lane:
    return Lane(network, classes, PREPROCESSING, torch.device("cpu"), torch.float32, sizes)


@pytest.fixture
def lane(network: Network) -> Lane:
    return lane_of(network)


def tensor_of(crop: Pixels) -> Pixels:
    return ((crop / 255 - PREPROCESSING.mean) / PREPROCESSING.std).transpose(2, 0, 1).astype(np.float32)


@torch.inference_mode()
def expected(network: nn.Module, crops: list[Pixels]) -> Rows:
    """The reference: a plain loop that runs each image by itself."""
    passes = [network(torch.from_numpy(tensor_of(crop))[None]) for crop in crops]
    features, logits = (torch.cat(parts) for parts in zip(*passes, strict=True))
    probabilities = logits.softmax(1)
    scores, class_ids = probabilities.topk(probabilities.shape[1], 1)
    whole = [dict(enumerate(values.numpy())) for values in (features, logits, probabilities)]
    return Rows(
        class_ids.numpy(),
        scores.numpy(),
        np.ones(len(crops), bool),
        (logits.logsumexp(1) - logits.mean(1)).numpy(),
        *whole,
    )


def assert_same(found: Row, wanted: Row) -> None:
    for name in ("class_ids", "scores", "features", "logits", "probabilities"):
        values, others = getattr(found, name), getattr(wanted, name)
        assert np.allclose(values, others, rtol=1e-4, atol=1e-5), name


def assert_right(rows: Rows, network: nn.Module, crops: list[Pixels]) -> None:
    reference = expected(network, crops)
    assert len(rows) == len(crops)
    assert rows.finite.tolist() == [True] * len(crops)
    for place in range(len(crops)):
        assert_same(rows.row(place, 5), reference.row(place, 5))


@pytest.mark.parametrize("sizes", [SIZES, ()])
@pytest.mark.parametrize("n", range(1, 10))
def test_rows_are_those_of_a_plain_loop(network: Network, n: int, sizes: tuple[int, ...]) -> None:
    assert_right(lane_of(network, sizes).run(CROPS[:n], [ALL] * n), network, CROPS[:n])


@pytest.mark.parametrize(("n", "padded"), [(1, 1), (3, 4), (5, 8), (8, 8), (9, 9)])
def test_batches_are_padded_to_the_next_size(network: Network, n: int, padded: int) -> None:
    lane = lane_of(network)
    network.sizes.clear()
    lane.run(CROPS[:n], [ALL] * n)
    assert network.sizes == [padded]


def test_without_sizes_batches_run_as_they_come(network: Network) -> None:
    lane = lane_of(network, ())
    network.sizes.clear()
    for n in (3, 5, 2):
        lane.run(CROPS[:n], [ALL] * n)
    assert network.sizes == [3, 5, 2]


@pytest.mark.parametrize("tensors", [{0}, {1, 3}, {4}, {0, 1, 2, 3, 4}])
def test_crops_and_tensors_share_a_batch(lane: Lane, network: Network, tensors: set[int]) -> None:
    mixed = [tensor_of(crop) if place in tensors else crop for place, crop in enumerate(CROPS[:5])]
    copies = [image.copy() for image in mixed]
    assert_right(lane.run(mixed, [ALL] * 5), network, CROPS[:5])
    assert all(np.array_equal(image, copy) for image, copy in zip(mixed, copies, strict=True))
    assert_right(lane.run(CROPS[5:], [ALL] * 4), network, CROPS[5:])


def test_each_image_gets_what_it_wants_and_no_more(lane: Lane) -> None:
    wants = [Want(k=3), Want(), Want(k=1, features=True), Want(k=2, logits=True), Want(probabilities=True)]
    rows = lane.run(CROPS[:5], wants)
    assert rows.class_ids.shape == rows.scores.shape == (5, 3)
    assert (set(rows.features), set(rows.logits), set(rows.probabilities)) == ({2}, {3}, {4})


@pytest.mark.parametrize("k", [10, 11, CLASSES, CLASSES + 1])
def test_any_number_of_classes_can_be_wanted(lane: Lane, network: Network, k: int) -> None:
    rows = lane.run(CROPS[:3], [Want(k=1), Want(k=k), Want()])
    reference = expected(network, CROPS[:3])
    for place in range(3):
        found, wanted = rows.row(place, k), reference.row(place, k)
        assert len(found.scores) == min(k, CLASSES)
        assert found.class_ids.tolist() == wanted.class_ids.tolist()
        assert np.allclose(found.scores, wanted.scores, atol=1e-5)


def test_a_network_may_have_fewer_classes_than_a_batch_copies() -> None:
    network = seeded(lambda: Network(classes=4))
    rows = lane_of(network, classes=4).run(CROPS[:3], [Want(k=5, logits=True)] * 3)
    assert rows.class_ids.shape == (3, 4)
    assert rows.class_ids.tolist() == expected(network, CROPS[:3]).class_ids.tolist()


def test_rows_belong_to_the_caller(lane: Lane, network: Network) -> None:
    first = lane.run(CROPS[:4], [ALL] * 4)
    lane.run(CROPS[4:8], [ALL] * 4)
    poison(lane)
    assert_right(first, network, CROPS[:4])
    first.scores[:] = first.class_ids[:] = 0
    first.logits[0][:] = 0
    assert_right(lane.run(CROPS[:4], [ALL] * 4), network, CROPS[:4])


@torch.inference_mode()
def poison(lane: Lane) -> None:
    """Fill the buffers with values that no batch leaves behind."""
    lane._staging.fill_(255)
    lane._pixels.fill_(255)
    lane._scores.fill_(torch.nan)
    lane._class_ids.fill_(-1)
    lane._finite.fill_(False)


@pytest.mark.parametrize("n", [1, 3, 5])
def test_nothing_of_the_batch_before_is_left(lane: Lane, network: Network, n: int) -> None:
    lane.run(CROPS[:8], [ALL] * 8)
    assert_right(lane.run(CROPS[-n:], [ALL] * n), network, CROPS[-n:])
    poison(lane)
    assert_right(lane.run(CROPS[:n], [ALL] * n), network, CROPS[:n])


def test_a_lane_is_reused_after_a_failed_batch(lane: Lane, network: Network) -> None:
    lane.run(CROPS[:2], [ALL] * 2)
    network.failing = True
    with pytest.raises(RuntimeError, match="planted"):
        lane.run([tensor_of(CROPS[5]), *CROPS[6:9]], [ALL] * 4)
    network.failing = False
    assert_right(lane.run(CROPS[2:5], [ALL] * 3), network, CROPS[2:5])


def test_an_image_of_another_size_fails_without_an_answer(lane: Lane, network: Network) -> None:
    with pytest.raises(ValueError, match="broadcast"):
        lane.run([CROPS[0], np.zeros((CROP, CROP + 1, 3), np.uint8)], [ALL] * 2)
    assert_right(lane.run(CROPS[:2], [ALL] * 2), network, CROPS[:2])


def test_only_the_image_itself_is_not_finite(lane: Lane, network: Network) -> None:
    rows = lane.run([CROPS[0], np.full((3, CROP, CROP), np.nan, np.float32), CROPS[2]], [ALL] * 3)
    assert rows.finite.tolist() == [True, False, True]
    for place in (0, 2):
        assert_same(rows.row(place, 5), expected(network, CROPS).row(place, 5))


# --- CUDA graphs ---


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16])
def cuda_lane(request: pytest.FixtureRequest) -> Callable[[], tuple[Lane, Lane]]:
    """A lane with graphs, and one with plain calls of the same network."""

    def create() -> tuple[Lane, Lane]:
        device, dtype = torch.device("cuda:0"), request.param
        network = seeded(Network).to(device)
        network.convolution.to(dtype).to(memory_format=torch.channels_last)
        torch.cuda.synchronize()
        options = (network, CLASSES, PREPROCESSING, device, dtype, SIZES)
        return Lane(*options, graphs=True), Lane(*options)

    return create


@pytest.mark.gpu
@pytest.mark.parametrize("n", range(1, 9))
def test_a_graph_computes_what_plain_calls_do(cuda_lane: Callable[[], tuple[Lane, Lane]], n: int) -> None:
    captured, plain = cuda_lane()
    for images in (CROPS[:n], [tensor_of(CROPS[0]), *CROPS[1:n]], CROPS[-n:]):
        found, wanted = (lane.run(images, [ALL] * n) for lane in (captured, plain))
        for place in range(n):
            assert_same(found.row(place, 5), wanted.row(place, 5))


@pytest.mark.gpu
def test_a_graph_leaves_nothing_of_the_batch_before(cuda_lane: Callable[[], tuple[Lane, Lane]]) -> None:
    captured, plain = cuda_lane()
    for n in (8, 3, 1, 5, 2, 8):
        poison(captured)
        found, wanted = (lane.run(CROPS[-n:], [ALL] * n) for lane in (captured, plain))
        for place in range(n):
            assert_same(found.row(place, 5), wanted.row(place, 5))


@pytest.mark.gpu
def test_a_batch_larger_than_the_graphs_is_refused(cuda_lane: Callable[[], tuple[Lane, Lane]]) -> None:
    captured, _ = cuda_lane()
    with pytest.raises(MemoryError, match="9 images"):
        captured.run(CROPS, [ALL] * 9)


@pytest.mark.gpu
def test_two_lanes_run_at_the_same_time(cuda_lane: Callable[[], tuple[Lane, Lane]]) -> None:
    lanes = [cuda_lane()[0] for _ in range(2)]
    wanted = [lanes[0].run([crop], [ALL]) for crop in CROPS]

    def run(lane: Lane) -> None:
        for i in range(200):
            place = i % len(CROPS)
            assert_same(lane.run([CROPS[place]], [ALL]).row(0, 5), wanted[place].row(0, 5))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, lanes))


def test_files_and_crops_share_a_batch(network: Network) -> None:
    class CropsByNumber(JpegDecoder):
        def __init__(self) -> None:
            """Needs nothing."""

        def decode(self, files: Sequence[Jpeg], places: Sequence[int], crops: Tensor) -> list[int]:
            for file, place in zip(files, places, strict=True):
                if file.data:
                    crops[place] = torch.from_numpy(CROPS[file.orientation])
            return [place for file, place in zip(files, places, strict=True) if not file.data]

    lane = Lane(network, CLASSES, PREPROCESSING, torch.device("cpu"), torch.float32, SIZES, jpegs=CropsByNumber())
    images = [CROPS[0], Jpeg(b"a file", 8, 8, 1), tensor_of(CROPS[2]), Jpeg(b"", 8, 8, 0), Jpeg(b"a file", 8, 8, 3)]
    rows = lane.run(images, [ALL] * len(images))
    assert rows.undecodable == [3]
    reference = expected(network, CROPS[:5])
    for place, crop in ((0, 0), (1, 1), (2, 2), (4, 3)):
        assert_same(rows.row(place, 5), reference.row(crop, 5))
