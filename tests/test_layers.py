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
    "app.workers.http",
    "app.workers.supervisor",
]


@pytest.mark.parametrize("module", MODULES)
def test_importing_a_layer_leaves_torch_alone(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'torchvision'}} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
