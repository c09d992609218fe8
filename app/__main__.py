"""The ``topk`` command, also ``python -m app``. Ctrl-C exits without a traceback, even during imports."""

import sys


def main() -> None:
    """Run the command."""
    try:
        from app.commands.cli import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
