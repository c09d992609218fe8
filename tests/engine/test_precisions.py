"""The precisions that the torch engine computes natively."""

from pathlib import Path

import pytest
import torch

from app.engine import precisions
from app.models import folder
from app.models.model import Model
from tests import tiny


@pytest.fixture(scope="module")
def model() -> Model:
    return folder.load(Path(tiny.model()[1]))


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx2": True}, ("float32",)), ({"avx512_bf16": True}, ("float32", "bfloat16"))],
)
def test_a_cpu_has_bfloat16_only_if_it_computes_it(
    model: Model, monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert precisions(model, "torch", "cpu") == expected


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("native", "expected"), [(False, ("float32", "float16")), (True, ("float32", "bfloat16", "float16"))]
)
def test_a_gpu_has_bfloat16_only_if_it_computes_it(
    model: Model, monkeypatch: pytest.MonkeyPatch, native: bool, expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert precisions(model, "torch", "cuda") == expected
