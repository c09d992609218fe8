"""OpenVINO without its telemetry, which reports each import, among other events, to Google Analytics.

OpenVINO supports that its telemetry package is not installed. No other module imports ``openvino``.
"""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # makes the import fail

import openvino as ov  # noqa: E402

__all__ = ["auto_precision", "ov"]


def auto_precision() -> str:
    """The precision that ``auto`` selects on this CPU: bfloat16 if it is computed natively, else float32."""
    return "bfloat16" if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "float32"
