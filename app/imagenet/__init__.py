"""ImageNet-1k: its labels, and their hypernyms in WordNet."""
