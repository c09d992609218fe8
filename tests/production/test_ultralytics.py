"""Ultralytics' classification checkpoints: served, they answer as the package itself does."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests.conftest import REPOSITORY, Server, environment

pytestmark = pytest.mark.slow

FLOAT32 = ("--trust-checkpoint", "--precision", "float32", "--no-fast-decode")

# Its own answer for its own photograph. The batch norms know the picture and the last layer is louder than it begins,
# or the classes would hardly differ.
MAKE = """
import json, sys
import torch
from PIL import Image
from ultralytics import YOLO
from ultralytics.data.augment import classify_transforms
from ultralytics.utils import ASSETS
torch.manual_seed(0)
yolo = YOLO("yolo11n-cls.yaml")
bus = classify_transforms(224)(Image.open(ASSETS / "bus.jpg").convert("RGB"))
for module in yolo.model.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
        module.momentum = None
with torch.no_grad():
    yolo.model.train()(torch.stack([bus, bus.flip(1), bus.flip(2)]))
    yolo.model.model[-1].linear.weight *= 60
yolo.model.eval().names = {i: f"class {i}" for i in range(1000)}
yolo.ckpt = {"train_args": {"imgsz": 224}}
yolo.save(sys.argv[1])
[result] = YOLO(sys.argv[1])(ASSETS / "bus.jpg", verbose=False)
probs = result.probs
top5 = [[result.names[i], score] for i, score in zip(probs.top5, probs.top5conf.tolist())]
assert (result.names[probs.top1], float(probs.top1conf)) == tuple(top5[0])
YOLO("yolo11n.yaml").save(sys.argv[2])
print(json.dumps([str(ASSETS / "bus.jpg"), top5]))
"""


@dataclass(frozen=True)
class Made:
    """A checkpoint, another of a network that detects, a photograph, and the package's own answer."""

    path: Path
    detector: Path
    photograph: Path
    top5: list[tuple[str, float]]


def python(code: str, *arguments: object, cwd: Path = REPOSITORY, **env: str) -> subprocess.CompletedProcess[str]:
    variables = environment() | {"COLUMNS": "300", "PYTHONPATH": str(REPOSITORY)} | env
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("checkpoints")
    path, detector = folder / "yolo11n-cls.pt", folder / "yolo11n.pt"
    ran = python(MAKE, path, detector, YOLO_OFFLINE="true", YOLO_CONFIG_DIR=str(folder))
    assert ran.returncode == 0, ran.stderr
    photograph, top5 = json.loads(ran.stdout.splitlines()[-1])
    return Made(path, detector, Path(photograph), [(name, score) for name, score in top5])


TOPK = "from app.commands.cli import main; main()"


def predict(made: Made, *options: object, start: str = TOPK) -> list[dict[str, object]]:
    ran = python(start, "predict", made.photograph, "--json", *options)
    assert ran.returncode == 0, ran.stderr
    predictions: list[dict[str, object]] = json.loads(ran.stdout)["predictions"]
    return predictions


def assert_own_answer(predictions: list[dict[str, object]], made: Made) -> None:
    """The five names in order; scores to 1e-4, since batch norms are folded into convolutions."""
    assert made.top5[0][1] > 2 * made.top5[4][1]
    assert [p["label"] for p in predictions] == [name for name, _ in made.top5]
    assert [p["score"] for p in predictions] == pytest.approx([score for _, score in made.top5], abs=1e-4)
    assert {p["wnid"] for p in predictions} == {None}


def test_it_is_served_and_answers_as_the_package_does(made: Made) -> None:
    server = Server("--model", str(made.path), *FLOAT32)
    try:
        content = made.photograph.read_bytes()
        answer = httpx2.post(f"{server.url}/v1/predict", content=content).json()
        assert (answer["model"], answer["weights"]) == ("yolo11n-cls", "yolo11n-cls")
        assert_own_answer(answer["predictions"], made)
        assert httpx2.post(f"{server.url}/v1/embed", content=content).json()["dim"] == 1280
        info = httpx2.get(f"{server.url}/v1/info").json()
        assert (info["architecture"], info["engine"]) == ("ultralytics:yolo11n-cls", "openvino")
        assert (info["preprocessing"]["resize"], info["preprocessing"]["crop"]) == (224, 224)
        assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()
    finally:
        assert server.stop() == 0


def test_torch_answers_as_the_package_does(made: Made) -> None:
    assert_own_answer(predict(made, "--model", made.path, "--engine", "torch", *FLOAT32), made)


def test_the_document_s_commands_work_and_export_what_needs_no_package(made: Made, tmp_path: Path) -> None:
    document = (REPOSITORY / "docs" / "models.md").read_text().partition("## Ultralytics")[2]
    commands = [line for line in document.splitlines() if line.startswith("topk")]
    assert [command.split()[1] for command in commands] == ["predict", "export", "predict"]
    shutil.copy(made.path, tmp_path)
    (tmp_path / "docs").mkdir()
    shutil.copy(made.photograph, tmp_path / "docs" / "cat.jpg")
    said = [python(TOPK, *command.split()[1:], cwd=tmp_path) for command in commands]
    assert [ran.returncode for ran in said] == [0, 0, 0], said
    assert said[0].stdout == said[2].stdout
    assert made.top5[0][0] in said[0].stdout
    assert sorted(path.name for path in (tmp_path / "my-yolo").iterdir()) == [
        "model.json",
        "openvino.bin",
        "openvino.xml",
    ]
    without = "import sys; sys.modules |= dict.fromkeys(('ultralytics', 'torch', 'cv2')); " + TOPK
    options = ("--model", tmp_path / "my-yolo", "--precision", "float32", "--no-fast-decode")
    assert_own_answer(predict(made, *options, start=without), made)


# What loading one leaves behind in the process that does it, and whom it asks for meanwhile.
LEFT = """
import json, os, socket, sys
import torch
from PIL import Image
asked = []
sys.addaudithook(lambda event, _: asked.append(event) if event in ("socket.getaddrinfo", "socket.connect") else None)
from pathlib import Path
from app.models import ultralytics
assert "ultralytics" not in sys.modules
before = Image.open, torch.save, dict(os.environ)
model = ultralytics.from_checkpoint(Path(sys.argv[1]))
model.build()
from ultralytics.utils import AUTOINSTALL, ONLINE
same = before == (Image.open, torch.save, dict(os.environ))
names = list(ultralytics._imagenet().values())
class Network:
    def __init__(self, names):
        self.names = dict(enumerate(names))
        self.model = [type("Head", (), {"linear": type("Linear", (), {"out_features": len(names)})})]
def wnids(names):
    return [label.wnid for label in ultralytics._labels(Network(names), Path("x.pt"))]
from app.imagenet.labels import imagenet1k
true = [label.wnid for label in imagenet1k()]
spaced = [name.replace("_", " ") for name in names]
print(json.dumps([same, asked, AUTOINSTALL, ONLINE, [wnids(n) == true for n in (names, spaced, true)],
                  wnids(["n02123045", "n02124075"]), wnids(names[:2])]))
"""


def test_loading_one_leaves_no_trace_and_asks_nobody(made: Made, tmp_path: Path) -> None:
    ran = python(LEFT, made.path, HOME=str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    same, asked, installs, online, imagenet, own, others = json.loads(ran.stdout)
    assert same
    assert (asked, installs, online) == ([], False, False)
    assert list(tmp_path.rglob("*")) == []
    assert imagenet == [True, True, True]
    assert own == ["n02123045", "n02124075"]
    assert others == [None, None]


REFUSED = """
import json, sys
from app.errors import ModelError
from app.models import resolve
from app.settings import Settings
said = []
for path in sys.argv[1:]:
    try:
        resolve(Settings(model=path, trust_checkpoint=True))
    except ModelError as error:
        said.append(error.detail)
print(json.dumps(said))
"""


def test_what_does_not_classify_or_is_no_checkpoint_is_refused(made: Made, tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"no pickle")
    ran = python(REFUSED, made.detector, tmp_path / "broken.pt", tmp_path / "missing.pt")
    assert ran.returncode == 0, ran.stderr
    detector, broken, missing = json.loads(ran.stdout)
    assert detector.endswith("yolo11n.pt is not a classification model: its task is detect")
    assert "broken.pt is not a checkpoint that Ultralytics can load" in broken
    assert "missing.pt does not exist" in missing
