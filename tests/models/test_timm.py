"""timm's models: crops are those of timm's own transform, answers those of its own network."""

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import timm.data
import torch
from PIL import Image
from timm.models import get_pretrained_cfg

from app import images as pictures
from app.errors import ModelError
from app.imagenet import labels
from app.models import folder, resolve
from app.models import timm as ours
from app.models.split import SeveralHeads, split
from app.settings import Settings
from tests.conftest import CAT, PHOTOGRAPHS, REPOSITORY, environment, slow
from tests.models.seeded import images, seeded
from tests.models.test_families import assert_close, served_row

CLASSES = {1000, 11221, 11821, 21841, 21842, 21843}
CLASSIFIERS = [name for name in timm.list_models(pretrained=True) if get_pretrained_cfg(name).num_classes in CLASSES]
WIDER = ["volo_d4_448.sail_in1k", "volo_d5_448.sail_in1k", "volo_d5_512.sail_in1k"]  # a crop of more than there is

CROPS = [
    "resnet10t.c3_in1k",  # 176 of 201
    "cspresnet50.ra_in1k",  # bilinear, 256 of 288
    "tf_efficientnet_b1.ns_jft_in1k",  # 240 of 272
    "convnext_base.fb_in22k_ft_in1k_384",  # squashed, 384 of 384
    "dm_nfnet_f0.dm_in1k",  # squashed, 256 of 284
    "vit_base_patch16_224.augreg_in1k",
]


def transform(name: str) -> object:
    """timm's own, up to the tensor of grey levels."""
    config = timm.data.resolve_data_config(pretrained_cfg=get_pretrained_cfg(name).to_dict())
    return timm.data.create_transform(**config, normalize=False)


def assert_crops_equal(name: str, data: bytes) -> None:
    expected = transform(name)(Image.open(io.BytesIO(data)).convert("RGB"))  # type: ignore[operator]
    header, preprocessing = pictures.read_header(data, 50_000_000), ours.preprocessing(name)
    levels = expected.permute(1, 2, 0).numpy()
    assert np.array_equal(pictures.decode(header, preprocessing, fast=False), levels)
    fast = pictures.decode(header, preprocessing, fast=True).astype(np.int16)
    assert np.abs(fast - levels).mean() < 0.5


@pytest.mark.parametrize("name", CROPS)
def test_crops_are_timm_s_to_the_last_bit(name: str) -> None:
    assert_crops_equal(name, CAT.read_bytes())
    tall = io.BytesIO()
    Image.open(CAT).rotate(90, expand=True).resize((333, 777)).save(tall, "PNG")
    assert_crops_equal(name, tall.getvalue())


@pytest.mark.shared
@pytest.mark.parametrize("name", CROPS[:4])
def test_crops_of_photographs_are_timm_s_to_the_last_bit(name: str) -> None:
    for path in PHOTOGRAPHS[::20]:
        assert_crops_equal(name, path.read_bytes())


def test_every_classifier_is_fed_as_timm_feeds_it_or_refused() -> None:
    refused = []
    for name in CLASSIFIERS:
        try:
            found = ours.preprocessing(name)
        except ModelError:
            refused.append(name)
            continue
        resize, crop, *_, normalise = timm.data.create_transform(
            **timm.data.resolve_data_config(pretrained_cfg=get_pretrained_cfg(name).to_dict())
        ).transforms
        edges = [found.resize, found.resize] if found.squash else found.resize
        assert (list(resize.size) if found.squash else resize.size) == edges, name
        assert list(crop.size) == [found.crop] * 2
        assert resize.interpolation.value == found.interpolation
        assert torch.equal(normalise.mean, torch.tensor(found.mean))
        assert torch.equal(normalise.std, torch.tensor(found.std))
    assert refused == WIDER
    assert len(CLASSIFIERS) > 1000


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (WIDER[0], "its crop of 448 is larger than its resized image of 389"),
        ("vit_base_patch16_siglip_224.webli", "the labels of its 0 classes are unknown"),
        ("vit_base_patch16_clip_224.openai", "the labels of its 512 classes are unknown"),
        ("resnet10t.mine", "timm has no weights 'mine' for resnet10t"),
        ("resnet51", "timm has no model 'resnet51'"),
        ("timm/resnet10t", "timm has no model 'timm/resnet10t'"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_downloaded(name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        resolve(Settings(model=f"timm:{name}", _env_file=None))


def test_a_thousand_classes_are_imagenet_s() -> None:
    assert ours.labels("resnet10t") == labels.imagenet1k()
    assert [label.wnid for label in labels.imagenet1k()] == timm.data.ImageNetInfo().label_names()


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("convnext_nano.in12k", 11821),
        ("convnext_tiny.fb_in22k", 21841),
        ("focalnet_large_fl3.ms_in22k", 21842),
        ("vit_tiny_patch16_224.augreg_in21k", 21843),
        ("mobilenetv3_large_100.miil_in21k", 11221),
    ],
)
def test_larger_parts_of_imagenet_have_labels_and_wnids(name: str, classes: int) -> None:
    found = ours.labels(name)
    assert len({label.label for label in found}) == len({label.wnid for label in found}) == len(found) == classes
    assert ("goldfish", "n01443537") in [(label.label, label.wnid) for label in found]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("deit_tiny_distilled_patch16_224", 224),  # two heads
        ("levit_128s", 224),
        ("crossvit_9_240", 240),
        ("efficientvim_m1", 224),
        ("repvit_m0_9", 224),
        ("dla46x_c", 224),  # a convolution
        ("resnetv2_50x1_bit", 224),
        ("cpubone_b0_bfrobust", 224),
        ("vit_tiny_patch16_224", 224),
    ],
)
@torch.inference_mode()
def test_cutting_changes_no_logit(name: str, size: int) -> None:
    network = seeded(lambda: timm.create_model(name))
    expected = network(images(size, 1))
    module = split(network)
    features, logits = module(images(size, 1))
    assert torch.allclose(logits, expected, rtol=0, atol=1e-5 * float(expected.max() - expected.min()))
    assert features.shape == (1, module.dim)


@torch.inference_mode()
def test_features_of_several_heads_are_what_timm_calls_so() -> None:
    network = seeded(lambda: timm.create_model("deit_tiny_distilled_patch16_224"))
    expected = network.forward_head(network.forward_features(images()), pre_logits=True)
    module = split(network)
    assert isinstance(module, SeveralHeads)
    assert torch.equal(module(images())[0], expected)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random ones of timm's smallest ResNet, for crops of 160."""
    path = tmp_path_factory.mktemp("weights") / "mine.safetensors"
    safetensors.torch.save_file(seeded(lambda: timm.create_model("test_resnet")).state_dict(), path)
    return path


@pytest.mark.parametrize("engine", ["torch", slow("openvino")])
def test_answers_are_those_of_timm_s_own_loop(weights: Path, engine: str) -> None:
    model = resolve(Settings(model="timm:test_resnet.r160_in1k", weights=weights, _env_file=None))
    assert (model.name, model.weights) == ("test_resnet.r160_in1k", "mine")
    network = timm.create_model("test_resnet", checkpoint_path=str(weights)).eval()
    config = timm.data.resolve_model_data_config(network)
    with torch.inference_mode():
        seen = timm.data.create_transform(**config)(Image.open(CAT).convert("RGB"))[None]
        features = network.forward_head(network.forward_features(seen), pre_logits=True)[0].numpy()
        logits = network(seen)[0].numpy()
    row = served_row(model, engine, CAT.read_bytes())
    assert row.class_ids.tolist() == np.argsort(-logits)[:5].tolist()
    assert_close(row.logits, logits)
    assert_close(row.features, features)


@pytest.mark.slow
def test_it_goes_into_a_folder_and_comes_back(weights: Path, tmp_path: Path) -> None:
    model = resolve(Settings(model="timm:test_resnet", weights=weights, _env_file=None))
    folder.write(model, tmp_path / "mine")
    found = folder.load(tmp_path / "mine")
    assert found.architecture == "timm:test_resnet.r160_in1k"
    assert (found.preprocessing, found.labels) == (model.preprocessing, model.labels)
    with torch.inference_mode():
        assert torch.equal(found.build().eval()(images(160)), model.build().eval()(images(160)))


def test_another_architecture_s_file_is_a_clear_error(weights: Path) -> None:
    model = resolve(Settings(model="timm:test_vit", weights=weights, _env_file=None))
    with pytest.raises(
        ModelError, match=r"mine\.safetensors does not fit timm:test_vit: Error.*; Missing key"
    ) as raised:
        model.build()
    assert len(raised.value.detail) < 400


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as its client asks for before and while it downloads a file."""

    files: dict[str, bytes]
    asked: list[str]
    patience: threading.Event

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        if content := self.answer():
            self.wfile.write(content)

    def answer(self) -> bytes | None:
        self.asked.append(self.path)
        if "hangs" in self.path:
            self.patience.wait(60)
        content = self.files.get(self.path)
        self.send_response(200 if content else 404)
        self.send_header("X-Repo-Commit", "0" * 40)
        if content:
            self.send_header("ETag", f'"{len(content):064x}"')
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        return content

    def log_message(self, format: str, *arguments: object) -> None:
        pass


RESNET18 = "/timm/resnet18.a1_in1k/resolve/main/model.safetensors"


@pytest.fixture
def hub(weights: Path, resnet18_weights: Path) -> Iterator[ThreadingHTTPServer]:
    Hub.files = {
        "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors": weights.read_bytes(),
        RESNET18: resnet18_weights.read_bytes(),  # torchvision's tensors have the names of timm's
    }
    Hub.asked, Hub.patience = [], threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        Hub.patience.set()
        server.shutdown()
        thread.join()


def hub_client(hub: ThreadingHTTPServer, home: Path) -> dict[str, str]:
    address = f"http://127.0.0.1:{hub.server_port}"
    return environment() | {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}


FETCH = """
import json, sys
from functools import partial
from app.errors import ModelError
from app.models import download, timm
download.GIVE_UP_S = 1.0
def built(name):
    model = timm.official(name)
    model.build()
    return [model.name, model.weights, model.digest]
def said(fetch):
    try:
        return fetch()
    except ModelError as error:
        return error.detail
fetches = [partial(built, name) for name in sys.argv[1:]]
fetches.append(lambda: timm._fetch_from_hub("timm/hangs", ("model.safetensors",)))
print(json.dumps([said(fetch) for fetch in fetches]))
"""


@pytest.mark.slow
def test_official_weights_come_from_the_hub_once(hub: ThreadingHTTPServer, weights: Path, tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{hub.server_port}"
    names = ["test_resnet.r160_in1k", "test_resnet.r160_in1k", "test_vit.r160_in1k"]
    ran = subprocess.run(
        [sys.executable, "-c", FETCH, *names],
        cwd=REPOSITORY,
        env=hub_client(hub, tmp_path),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ran.returncode == 0, ran.stderr
    first, second, missing, hanging = json.loads(ran.stdout)
    assert first == second == ["test_resnet.r160_in1k", "r160_in1k", ours.download.sha256(weights)]
    assert len([path for path in Hub.asked if "test_resnet" in path]) == 3, Hub.asked
    assert missing.startswith("timm/test_vit.r160_in1k has none of the weights files that timm looks for")
    assert f"the weights at {address}/timm/hangs/resolve/main/model.safetensors cannot be downloaded" in hanging


DOCUMENT = (REPOSITORY / "docs" / "models.md").read_text()


@pytest.mark.slow
def test_the_document_s_commands_work_and_print_what_it_shows(
    hub: ThreadingHTTPServer, resnet18_weights: Path, tmp_path: Path
) -> None:
    """In torch, which need not convert."""
    commands = [line for line in DOCUMENT.splitlines() if line.startswith("topk") and "timm" in line]
    (tmp_path / "docs").mkdir()
    shutil.copy(CAT, tmp_path / "docs" / "cat.jpg")
    shutil.copy(resnet18_weights, tmp_path / "WEIGHTS.safetensors")
    env = hub_client(hub, tmp_path) | {"PYTHONPATH": str(REPOSITORY), "TOPK_ENGINE": "torch", "COLUMNS": "100"}
    said = []
    for command in commands:
        words = [sys.executable, "-m", "app", *shlex.split(command)[1:]]
        ran = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100)
        assert ran.returncode == 0, ran.stderr
        said.append(ran.stdout)
    listed, downloaded, own = said
    shown = re.findall(r"^```\w*\n( model .*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)[0]
    assert [line.strip() for line in listed.splitlines() if line.strip()] == [x.strip() for x in shown.splitlines()]
    assert RESNET18 in Hub.asked
    assert downloaded == own
    assert own.startswith("docs/cat.jpg")
