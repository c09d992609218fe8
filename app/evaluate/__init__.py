"""``topk evaluate``: how good the answers are on labelled images."""
