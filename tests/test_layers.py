"""What importing the layers costs: no framework before a model is loaded, and on a CPU no torch then."""

import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from app import machine
from tests.conftest import CAT, Server, slow

FRAMEWORKS = {"torch", "torchvision", "timm", "ultralytics", "openvino", "nncf"}
MODULES = [  # the slow ones are imported by the others, or by what these import
    slow("app.main"),
    slow("app.classifier"),
    slow("app.images"),
    slow("app.batching"),
    slow("app.engine"),
    slow("app.models"),
    slow("app.models.cache"),
    slow("app.models.folder"),
    slow("app.api.routes"),
    "app.server.serving",
    "app.commands.cli",
    slow("app.commands.bench.run"),
    "app.commands.bench.report",
    slow("app.commands.evaluate.evaluation"),
    "app.commands.evaluate.report",
    "app.workers.http",
    "app.workers.supervisor",
]


@pytest.mark.parametrize("module", MODULES)
def test_importing_a_layer_leaves_frameworks_alone(module: str) -> None:
    code = f"import sys, {module}; print(sorted({FRAMEWORKS} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_command_line_loads_what_a_command_needs_when_it_needs_it() -> None:
    code = (
        "import sys, app.commands.cli; print(sorted({'torch', 'matplotlib', 'aiohttp', 'httpx2'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_what_has_no_report_to_write_draws_nothing() -> None:
    modules = "app.commands.bench.report, app.commands.evaluate.report, app.commands.evaluate.table"
    code = f"import sys, {modules}; print('matplotlib' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.slow
def test_openvino_reports_nothing_to_its_makers(tmp_path: Path) -> None:
    """It would keep its client's id there, unless in CI."""
    variables = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    code = "import app.engine.openvino, app.models.convert, app.models.quantize, nncf"
    subprocess.run([sys.executable, "-c", code], env=variables, check=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not tell what is loaded")
@pytest.mark.skipif(machine.may_have_accelerator(), reason="torch serves the accelerator")
def test_a_server_on_a_cpu_never_loads_torch(embedded_server: Server) -> None:
    assert httpx2.post(f"{embedded_server.url}/v1/predict", content=CAT.read_bytes()).status_code == 200
    loaded = Path(f"/proc/{embedded_server.process.pid}/maps").read_text()
    assert "libopenvino" in loaded
    assert "libtorch" not in loaded
