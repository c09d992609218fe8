"""OpenVINO without its telemetry, which reports each import, among other events, to Google Analytics.

OpenVINO supports that its telemetry package is not installed. No other module imports ``openvino``.
"""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # makes the import fail

import openvino as ov  # noqa: E402

__all__ = ["ov"]
