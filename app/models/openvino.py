"""OpenVINO without its telemetry, which reports each import, among other events, to Google Analytics.

OpenVINO supports that its telemetry package is not installed. No other module imports ``openvino``.
"""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # makes the import fail

import openvino as ov  # noqa: E402

__all__ = ["auto_precision", "native_precisions", "ov"]

_CAPABILITIES = {"BF16": "bfloat16", "FP16": "float16"}


def auto_precision() -> str:
    """The precision that ``auto`` selects on this CPU: bfloat16 if it is computed natively, else float32."""
    return "bfloat16" if "bfloat16" in native_precisions() else "float32"


def native_precisions() -> tuple[str, ...]:
    """float32, and the others that this CPU computes natively."""
    found = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("float32", *(precision for name, precision in _CAPABILITIES.items() if name in found))
