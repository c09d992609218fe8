"""The ``topk`` command, also ``python -m app``."""

import sys


def main() -> None:
    """Entry point. Ctrl-C exits quietly, also while modules are still being imported."""
    try:
        from app.commands.cli import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
