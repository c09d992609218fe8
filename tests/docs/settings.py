"""Writes docs/settings.md from the settings in the code: ``python -m tests.docs.settings``."""

from pathlib import Path
from typing import Any

from app.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"

_HEAD = """\
# Settings

Each setting is an environment variable, a line in the file `.env` in the working directory, and an option of
`topk serve`. The option has no prefix: `TOPK_MAX_PIXELS` is `--max-pixels`. An option wins over the environment, and
the environment wins over `.env`. An empty variable counts as unset, except for API keys. Unknown `TOPK_` variables are
logged as a warning. One that resembles a security setting, such as `TOPK_API_KEY`, stops the start.

`python -m tests.docs.settings` generates this page from `app/settings`.

| setting | default | meaning |
|---|---|---|
"""


def default(value: Any) -> str:
    """A default as the page shows it; empty if there is none."""
    if value is None or value == () or value == "":
        return ""
    if isinstance(value, tuple):
        return f"`{','.join(map(str, value))}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def page() -> str:
    """The whole page."""
    rows = (
        f"| `TOPK_{name.upper()}` | {default(field.default)} | {field.description} |\n"
        for name, field in Settings.model_fields.items()
    )
    return _HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page())
