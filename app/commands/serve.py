"""``topk serve``: the HTTP service."""

import typer

from app.commands.options import with_settings
from app.settings import Settings


@with_settings()
def serve(*, settings: Settings) -> None:
    """Serve a model over HTTP.

    Every option is also an environment variable: --max-pixels is TOPK_MAX_PIXELS.
    """
    if settings.workers:
        from app.workers.supervisor import serve as run
    else:
        from app.server.serving import serve as run

    raise typer.Exit(run(settings))
