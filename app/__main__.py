"""The ``topk`` command, also ``python -m app``. Ctrl-C is no error, not even while everything is being imported."""

import sys


def main() -> None:
    """Entry point."""
    try:
        from app.commands.cli import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
