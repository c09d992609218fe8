"""What importing the layers costs: neither torch nor torchvision before a model is loaded."""

import subprocess
import sys

import pytest

MODULES = [
    "app.main",
    "app.classifier",
    "app.images",
    "app.batching",
    "app.models",
    "app.api.routes",
    "app.server",
    "app.cli",
    "app.loadtest.run",
    "app.loadtest.report",
    "app.workers.http",
    "app.workers.supervisor",
]


@pytest.mark.parametrize("module", MODULES)
def test_importing_a_layer_leaves_torch_alone(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'torchvision'}} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_command_line_loads_what_a_command_needs_when_it_needs_it() -> None:
    code = "import sys, app.cli; print(sorted({'torch', 'matplotlib', 'aiohttp', 'httpx2'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_load_test_without_a_report_draws_nothing() -> None:
    code = "import sys, app.loadtest.run, app.loadtest.report; print('matplotlib' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
