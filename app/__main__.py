"""``python -m app``: the same as the ``topk`` command."""

from app.cli import main

main()
