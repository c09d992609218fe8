"""An evaluation as one self-contained HTML page."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from app import machine
from app.commands.evaluate import gallery, table
from app.commands.evaluate.evaluation import Evaluation
from app.commands.evaluate.metrics import AccuracyMetrics
from app.commands.evaluate.table import count, interval, percent
from app.commands.filenames import printable
from app.commands.reports import page as html
from app.images.heatmap import COLOUR

PICTURES = 24
"""Mistakes in the gallery, at most."""

_PAGE = Path(__file__).with_name("report.html")
_ROWS = 12
_MAP_LEGEND = (
    f'<ul class="legend"><li style="--swatch: rgb{COLOUR}">what supports the predicted class: its class'
    " activation map</li></ul>"
)
_MATRIX = 20  # classes; a larger matrix is unreadable


def write(evaluation: Evaluation, path: Path, max_pixels: int) -> None:
    """Write the page. Raises ReportError."""
    html.write(page(evaluation, max_pixels), path)


def page(evaluation: Evaluation, max_pixels: int, command: str = "topk evaluate", before: str = "") -> str:
    """The page as HTML, with inline plots and thumbnails. Images of more than ``max_pixels`` get no thumbnail.

    ``before`` is HTML to insert before the results.
    """
    metrics, facts = evaluation.metrics, evaluation.facts
    return html.fill(
        _PAGE,
        title=html.text(f"{facts['model']} on {printable(Path(evaluation.source.resolve().name))}"),
        command=command,
        when=f"{evaluation.started:%d %B %Y, %H:%M} UTC",
        how=html.text(", ".join(table.model_description(facts))),
        remarks="".join(_remark(note) for note in evaluation.notes),
        headline=html.headline(_headline(evaluation)),
        before=before,
        levels=_levels(metrics),
        plots=_plots(metrics),
        comparison=_comparison(evaluation),
        gallery=_gallery(evaluation, max_pixels),
        confused=_confused(metrics),
        worst=_worst(metrics),
        classes=_classes(metrics),
        unreadable=_unreadable(evaluation),
        model=html.pairs(_model(evaluation)),
        run=html.pairs(_run(evaluation)),
        notes=html.items(_definitions(metrics)),
    )


def _remark(note: str) -> str:
    return f"<p{' class=warning' * note.startswith('warning')}>{html.text(note)}</p>"


def _headline(evaluation: Evaluation) -> Iterator[tuple[str, str, str]]:
    """Figure, unit and description of each headline."""
    metrics, found = evaluation.metrics, evaluation.comparison
    yield f"{100 * metrics.top1:.1f}", "%", f"top-1 accuracy ({interval(metrics.top1_interval)})"
    yield f"{100 * metrics.top5:.1f}", "%", f"top-{metrics.k} accuracy ({interval(metrics.top5_interval)})"
    if found:
        yield f"{100 * found.agreement:.1f}", "%", f"agreement with the {found.facts['precision']} reference"
    yield f"{100 * metrics.ece:.1f}", "%", f"calibration error; mean score {percent(metrics.confidence)}"
    failed = len(evaluation.answers.unreadable)
    aside = f"; {failed:,} could not be read" if failed else ""
    yield f"{metrics.n:,}", "", f"image{'s' * (metrics.n != 1)} of {count(metrics.classes, 'class', 'classes')}{aside}"


def _levels(metrics: AccuracyMetrics) -> str:
    rows = [
        (
            f'<div style="padding-left: {level.indent}em">{html.text(level.label)}</div>',
            f"{level.n:,}",
            _bar(level.accuracy, level.exact),
            percent(level.exact),
            f"<b>{percent(level.accuracy)}</b>",
        )
        for level in metrics.levels
        if level.indent is not None
    ]
    if not rows:
        return ""
    legend = html.legend((("the true class", "accent"), ("another class at this level", "bar")))
    return _section(
        "Accuracy by WordNet level",
        f'<ul class="legend">{legend}</ul>{_table(("", "images", "", "top-1", "right at level"), rows, "levels")}',
    )


def _plots(metrics: AccuracyMetrics) -> str:
    """Calibration and accuracy by depth; with few classes, also the confusion matrix."""
    from app.commands.evaluate import chart  # here, because importing matplotlib takes half a second

    legend = f'<ul class="legend">{html.legend(chart.RELIABILITY)}</ul>'
    plots = [("Calibration", "accuracy by score", legend + chart.reliability(metrics))]
    if metrics.depths:
        about = "<p class=about>A prediction is right at a depth if it shares a node of that depth with the truth.</p>"
        plots.append(("Accuracy by depth", "in WordNet", about + chart.depths(metrics)))
    if matrix := _matrix(metrics):
        plots.append(("Confusion matrix", "rows are the truth; per cent of the row", matrix))
    return '<div class="plots">' + "".join(_section(title, body, aside) for title, aside, body in plots) + "</div>"


def _comparison(evaluation: Evaluation) -> str:
    found = evaluation.comparison
    if not found:
        return ""
    reference = ", ".join(table.model_description(found.facts))
    rows = [
        (html.text(name), percent(mine), percent(other), f"{100 * (mine - other):+.1f}")
        for name, (mine, other) in (("top-1", found.top1), (f"top-{evaluation.metrics.k}", found.top5))
    ]
    differ = [
        (
            html.text(evaluation.truth(i)),
            f"{html.text(ours.label)} <small>{percent(ours.score, 0)}</small>",
            f"{html.text(theirs.label)} <small>{percent(theirs.score, 0)}</small>",
            f"<small>{html.text(evaluation.name(i))}</small>",
        )
        for i in found.differ[: 2 * _ROWS]
        for ours, theirs in [(evaluation.guess(i), evaluation.guess(i, found.answers))]
    ]
    more = len(found.differ) - len(differ)
    body = (
        f"<p class=about>{percent(found.agreement)} ({interval(found.interval)}) of {count(found.n, 'image')} have the"
        f" same best class from {html.text(reference)}.</p>"
        + _table(("", "evaluated", "reference", "points"), rows)
        + (_table(("truth", "evaluated", "reference", ""), differ, "words") if differ else "")
        + (f"<p class=about>And {more:,} more; --json lists them all.</p>" if more else "")
    )
    return _section("Comparison with the reference", body)


def _gallery(evaluation: Evaluation, max_pixels: int) -> str:
    mistakes = evaluation.mistakes()
    pictures = [_picture(evaluation, i, max_pixels) for i in mistakes[:PICTURES]]
    if not pictures:
        return ""
    aside = f"{len(pictures)} of {count(len(mistakes), 'mistake')}, highest score first"
    kind, legend = ("gallery mapped", _MAP_LEGEND) if evaluation.maps else ("gallery", "")
    return _section("Confident mistakes", f'{legend}<div class="{kind}">{"".join(pictures)}</div>', aside)


def _picture(evaluation: Evaluation, i: int, max_pixels: int) -> str:
    guess, truth = evaluation.guess(i), evaluation.truth(i)
    place = (evaluation.answers.class_ids[i] == evaluation.samples.truth[i]).nonzero()[0].tolist()
    score = f"{percent(evaluation.guess(i, place=place[0]).score, 0)}" if place else ""
    return (
        f'<figure title="{html.text(evaluation.name(i))}">{_views(evaluation, i, max_pixels)}<figcaption>'
        f"<b>{html.text(guess.label)}</b> <small>{percent(guess.score, 0)}</small>"
        f"<span>is {html.text(truth)} <small>{score}</small></span></figcaption></figure>"
    )


def _views(evaluation: Evaluation, i: int, max_pixels: int) -> str:
    """The thumbnail, and beside it the same with the map; a gap if the file is gone."""
    file, preprocessing = evaluation.samples.files[i], evaluation.facts["preprocessing"]
    found = gallery.thumbnails(file, preprocessing, max_pixels, evaluation.maps.get(i))
    if not found:
        return '<p class="views"><i></i></p>'
    views = [(found.plain, evaluation.truth(i))]
    if found.mapped:
        views.append((found.mapped, f"the same with what supports {evaluation.guess(i).label}"))
    shown = (f'<img src="{source}" alt="{html.text(alt)}" width="88" height="88">' for source, alt in views)
    return f'<p class="views">{"".join(shown)}</p>'


def _matrix(metrics: AccuracyMetrics) -> str:
    """The confusion matrix, if there are few classes."""
    labels = sorted({row.label for row in metrics.per_class} | {pair.answer for pair in metrics.confused})
    if not 2 <= len(labels) <= _MATRIX:
        return ""
    shares = {(pair.truth, pair.answer): pair.share for pair in metrics.confused}
    shares |= {(row.label, row.label): row.accuracy for row in metrics.per_class}
    counts = {row.label: row.n for row in metrics.per_class}
    head = "".join(f"<th><span>{html.text(label)}</span></th>" for label in labels)
    rows = "".join(
        f"<tr><th>{html.text(truth)} <small>{counts[truth]:,}</small></th>"
        + "".join(_cell(shares.get((truth, answer), 0.0), truth == answer) for answer in labels)
        + "</tr>"
        for truth in labels
        if truth in counts
    )
    body = f'<table class="matrix"><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="scroll">{body}</div>'


def _cell(share: float, right: bool) -> str:
    colour = "accent" if right else "danger"
    style = f"background: color-mix(in srgb, var(--{colour}) {85 * share:.0f}%, var(--track))"
    loud = " class=loud" * (share > 0.55)
    return f'<td{loud} style="{style}">{f"{100 * share:.0f}" if share else ""}</td>'


def _confused(metrics: AccuracyMetrics) -> str:
    rows = [
        (html.text(pair.truth), html.text(pair.answer), f"{pair.n:,}", percent(pair.share, 0))
        for pair in metrics.confused[:_ROWS]
    ]
    body = (
        _table(("truth", "predicted", "images", "of class"), rows, "confused") if rows else "<p class=about>None.</p>"
    )
    return f"<div><h2>Most confused</h2>{body}</div>"


def _worst(metrics: AccuracyMetrics) -> str:
    rows = [row for row in metrics.per_class[:_ROWS] if row.accuracy < 1]
    cells = [(html.text(row.label), f"{row.n:,}", percent(row.accuracy, 0), percent(row.top5, 0)) for row in rows]
    head = ("class", "images", "top-1", f"top-{metrics.k}")
    body = _table(head, cells) if rows else "<p class=about>Every image is right.</p>"
    return f"<div><h2>Worst classes</h2>{body}</div>"


def _classes(metrics: AccuracyMetrics) -> str:
    if len(metrics.per_class) <= _ROWS:
        return ""
    cells = (
        (html.text(row.label), f"{row.n:,}", f"{row.answered:,}", percent(row.accuracy, 0), percent(row.top5, 0))
        for row in metrics.per_class
    )
    body = _table(("class", "images", "predicted", "top-1", f"top-{metrics.k}"), cells)
    return f"<details><summary>All {len(metrics.per_class):,} classes, worst first</summary>{body}</details>"


def _unreadable(evaluation: Evaluation) -> str:
    failed = evaluation.answers.unreadable
    if not failed:
        return ""
    rows = (
        (html.text(evaluation.name(i)), html.text(failed[i].detail), html.text(failed[i].code)) for i in sorted(failed)
    )
    summary = f"{count(len(failed), 'file')} could not be read and are not counted"
    return f"<details open><summary>{summary}</summary>{_table(('file', 'reason', 'code'), rows, 'words')}</details>"


def _model(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    facts = evaluation.facts
    for name in ("url", "model", "weights", "engine", "precision", "device"):
        if name in facts:
            yield name, str(facts[name])
    crop = facts["preprocessing"]
    yield "crop", f"{crop['crop']} of {crop['resize']} pixels, {crop['interpolation']}"
    yield "decoding", "large JPEGs at a reduced scale" if facts["fast_decode"] else "every pixel"
    if found := facts.get("calibration"):
        yield "calibration", f"on {count(found['images'], 'image')}; logits divided by {found['temperature']:.3g}"
    yield "digest", str(facts["digest"]).removeprefix("sha256:")[:16]


def _run(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    answers = evaluation.answers
    yield "images", printable(evaluation.source)
    if answers.classified:
        rate = answers.classified / answers.seconds
        yield "this run", f"{count(answers.classified, 'image')} in {answers.seconds:.1f} s, {rate:.1f} img/s"
    if before := len(evaluation.samples.files) - answers.classified:
        yield "earlier runs", count(before, "image")
    if "url" not in evaluation.facts:
        yield from html.machine(machine.description())


def _definitions(metrics: AccuracyMetrics) -> Iterator[str]:
    yield f"Top-{metrics.k}: the truth is among the {metrics.k} best classes. Intervals are Wilson's, at 95 %."
    yield (
        "Calibration error: the distance between mean score and accuracy in 15 bins of equal width, averaged over the"
        " images (Guo et al. 2017)."
    )
    if metrics.levels:
        yield (
            "Right at level: of the images that show any dog, the share that is classified as any dog. The table has"
            " the WordNet nodes with the most images; of nearly equal nodes, the one with the shortest name."
        )


def _section(title: str, body: str, aside: str = "") -> str:
    small = f" <small>{html.text(aside)}</small>" if aside else ""
    return f"<section><h2>{html.text(title)}{small}</h2>{body}</section>"


def _bar(long: float, short: float) -> str:
    return f'<div class="bar"><i style="width: {100 * long:.1f}%"></i><b style="width: {100 * short:.1f}%"></b></div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are HTML."""
    titles = "".join(f"<th>{html.text(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    classes = f' class="{kind}"' if kind else ""
    return f'<div class="scroll"><table{classes}><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'
