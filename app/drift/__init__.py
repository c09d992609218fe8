"""What changes in the images that are sent: metrics of each answer, and samples of the least certain images.

observer.py  called once for each classified image
groups.py    the coarse WordNet group of each class
samples.py   stores images with their answers, if the operator wants it
"""

from app.drift.observer import Observer

__all__ = ["Observer"]
