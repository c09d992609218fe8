"""The ``topk`` commands: one module or package each; ``reports`` is the look that their HTML reports share."""
