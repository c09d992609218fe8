"""Runs batches on a device. Torch and OpenVINO are imported only when an engine is created."""

import importlib.util

from app import machine, models
from app.engine.base import Engine, Facts, Floats, Jpeg, Pixels, Row, Rows, Want, check_outputs, device_errors
from app.errors import ModelError
from app.models.model import Model

__all__ = [
    "Engine",
    "Facts",
    "Floats",
    "Jpeg",
    "Pixels",
    "Row",
    "Rows",
    "Want",
    "check_outputs",
    "choose",
    "create",
    "device_errors",
    "precisions",
]


def choose(engine: str, device: str) -> str:
    """Choose ``openvino`` or ``torch`` for the settings ``engine`` and ``device``. Raises ModelError.

    Torch is imported only if the machine may have an accelerator.
    """
    if engine == "openvino" and device not in ("auto", "cpu"):
        raise ModelError(f"the engine openvino runs on CPUs only; for {device} choose the engine torch")
    if engine != "auto":
        return engine
    if device == "auto":
        return "torch" if _accelerator() else "openvino"
    return "openvino" if device == "cpu" else "torch"


def _accelerator() -> bool:
    if not machine.may_have_accelerator() or importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def precisions(model: Model, engine: str, device: str) -> tuple[str, ...]:
    """The precisions in which the engine that ``choose`` returned computes a model natively, without emulation."""
    if model.precision == "int8":
        return ("int8",)
    if engine == "openvino":
        from app.models.openvino import native_precisions

        return native_precisions()
    models.require_torch("the engine torch")
    from app.engine.torch import device_of, native_precision

    found = device_of(device)
    half = set() if found.type == "cpu" else {"float16"}
    return ("float32", *sorted((half | {native_precision(found)}) - {"float32"}))


def create(model: Model, engine: str, device: str, precision: str, gpu_decode: bool = False) -> Engine:
    """Create the engine that ``choose`` returned, for the settings ``device`` and ``precision``. Raises ModelError.

    ``gpu_decode``: it decodes JPEGs if the device can.
    """
    if engine == "openvino":
        from app.engine.openvino import OpenVinoEngine

        return OpenVinoEngine(model, precision)
    models.require_torch("the engine torch")
    from app.engine import jpeg
    from app.engine.torch import TorchEngine

    return TorchEngine(model, device, precision, jpeg.create if gpu_decode else None)
