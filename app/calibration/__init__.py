"""What a model's answers are worth: measured on labelled photographs, then promised for each request.

    conformal.py    calibration scores to prediction sets and p-values
    calibration.py  what was measured in one precision, and what it supports
    stored.py       the file calibration.json of a model folder
    promise.py      what a request wants of a calibration
    fit.py          labelled photographs to a calibration, and its cross-fitted figures

Serving needs all but the last one, and imports only numpy and pydantic for them.
"""

from app.calibration.calibration import Calibration
from app.calibration.promise import Promise, missing, promise

__all__ = ["Calibration", "Promise", "missing", "promise"]
