"""OpenVINO without its telemetry, which would report each import, and more, to Google Analytics.

OpenVINO takes it for not installed then, a case it provides for. Nothing else here imports ``openvino``.
"""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # Python's way to say: not to be had

import openvino as ov  # noqa: E402

__all__ = ["ov"]
