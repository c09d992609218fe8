"""The options of ``topk bench``."""

from pathlib import Path
from typing import Annotated

import typer

from app.commands.console import err, out, print_json, warn
from app.commands.options import ApiKey, Json, Report

SLO_MS = 1000.0


def bench(
    url: Annotated[
        str, typer.Argument(help="The server's root, whose /v1/predict is used, or the full URL that takes images.")
    ],
    *,
    clients: Annotated[
        str | None,
        typer.Option(
            help="Closed loop: number of concurrent clients. 1,4,16 measures three points. [default: 16]",
            show_default=False,
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            help="Open loop: Poisson arrivals, requests per second. 20,40 measures two points.", show_default=False
        ),
    ] = None,
    find_capacity: Annotated[
        bool, typer.Option("--find-capacity", help="Search for the highest rate that is answered within the SLO.")
    ] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="Duration of each point.")] = 10.0,
    warmup: Annotated[float, typer.Option(min=0, help="Seconds before each point that are not counted.")] = 2.0,
    slo_ms: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Goodput counts responses within this time. In an open loop, clients give up after it, and say so in"
            f" X-Request-Timeout-Ms if this option is given. [default: {SLO_MS:g}]",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="Folder of images to send. [default: generated]", show_default=False
        ),
    ] = None,
    multipart: Annotated[bool, typer.Option("--multipart", help="Send multipart forms instead of raw bytes.")] = False,
    header: Annotated[
        list[str] | None, typer.Option(help="Header to send, 'Name: value'. Repeatable.", show_default=False)
    ] = None,
    api_key: ApiKey = None,
    json: Json = False,
    report: Report = None,
) -> None:
    """Measure a server's throughput and latency under load.

    Ctrl-C ends the run and prints the results so far.
    """
    from app.commands.bench import plan, table
    from app.commands.bench.progress import LoadProgress
    from app.commands.bench.report import write
    from app.commands.bench.run import run
    from app.commands.bench.target import Target
    from app.commands.reports import page

    mode, counts, rates = plan.load(clients, rate, find_capacity)
    load_plan = plan.LoadPlan(
        mode,
        counts,
        rates,
        seconds,
        warmup,
        SLO_MS if slo_ms is None else slo_ms,
        send_timeout=slo_ms is not None,
        headers=plan.headers(header or [], api_key),
        images=images,
        multipart=multipart,
    )
    page.check(report)
    target = Target(url)
    with LoadProgress(err) as progress:
        result = run(target, load_plan, progress)
    for warning in result.warnings:
        warn(warning)
    if json:
        print_json(result.as_dict())
    else:
        table.print_result(result, out)
    if report:
        write(result, report)
    raise typer.Exit(130 if result.interrupted else 0)
