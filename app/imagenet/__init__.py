"""ImageNet-1k: its labels, and the part of WordNet above them."""
