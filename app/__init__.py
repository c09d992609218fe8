"""topk: POST an image, get the top-k ImageNet classes."""

__version__ = "0.1.0"
