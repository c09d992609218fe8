"""What a dashboard's queries answered, drawn in the dashboard's own layout: for people to look at.

Colours, units and legends are those of the dashboard; Grafana itself draws more finely.
"""

import math
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

Series = list[dict[str, Any]]
Answers = list[tuple[dict[str, Any], Series]]
Ask = Callable[[dict[str, Any]], Series]

_COLUMN, _LINE = 0.76, 0.4  # inches of the grid
_BACKGROUND, _CARD, _TEXT, _FAINT, _GRID = "#111217", "#181b1f", "#d8d9e0", "#8e9099", "#2c3035"
_COLOURS = {
    "green": "#73bf69",
    "blue": "#5794f2",
    "dark-blue": "#1f60c4",
    "super-light-blue": "#c0d8ff",
    "purple": "#b877d9",
    "orange": "#ff9830",
    "dark-orange": "#fa6400",
    "red": "#f2495c",
    "text": _TEXT,
}
_ROOM = {  # lines below and columns beside what is drawn
    "timeseries": (1.9, 1.1),
    "heatmap": (0.9, 1.1),
    "stat": (0.3, 0.2),
    "state-timeline": (0.9, 1.8),
    "table": (0.3, 0.2),
}
_CLASSIC = [
    "#73bf69",
    "#f2cc0c",
    "#8ab8ff",
    "#ff780a",
    "#5794f2",
    "#b877d9",
    "#37872d",
    "#e0b400",
    "#705da0",
    "#1f60c4",
]


def draw(dashboard: dict[str, Any], ask: Ask, path: Path) -> int:
    """Draw every panel that asks something into one picture; how many these are."""
    panels = dashboard["panels"]
    lines = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = pyplot.figure(figsize=(24 * _COLUMN, lines * _LINE), facecolor=_BACKGROUND)
    drawn = 0
    for panel in panels:
        if panel["type"] == "row":
            y = 1 - (panel["gridPos"]["y"] + 0.7) / lines
            figure.text(0.004, y, panel["title"], color=_TEXT, size=12, weight="bold")
            continue
        answers = [(target, ask(target)) for target in panel["targets"]]
        _PAINTERS[panel["type"]](_card(figure, panel, lines), panel, answers)
        drawn += 1
    figure.savefig(path, dpi=80, facecolor=_BACKGROUND)
    pyplot.close(figure)
    return drawn


def _card(figure: Figure, panel: dict[str, Any], lines: int) -> Axes:
    """The panel's frame and title; the axes within are what its painter fills."""
    at, gap = panel["gridPos"], 0.06
    left, bottom = (at["x"] + gap) / 24, 1 - (at["y"] + at["h"] - gap) / lines
    width, height = (at["w"] - 2 * gap) / 24, (at["h"] - 2 * gap) / lines
    figure.add_artist(
        Rectangle((left, bottom), width, height, facecolor=_CARD, edgecolor=_GRID, linewidth=0.8, zorder=-1)
    )
    figure.text(left + 0.004, bottom + height - 0.62 / lines, panel["title"], color=_TEXT, size=10)
    below, beside = _ROOM[panel["type"]]
    axes = figure.add_axes(
        (left + beside / 24, bottom + below / lines, width - (beside + 0.2) / 24, height - (below + 1.1) / lines),
        facecolor=_CARD,
    )
    axes.tick_params(colors=_FAINT, labelsize=7.5, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def _timeseries(axes: Axes, panel: dict[str, Any], answers: Answers) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    lines = [(_name(target, one), one) for target, series in answers for one in sorted(series, key=_order)]
    times, rows = _grid([one for _, one in lines])
    stacked = "stacking" in defaults["custom"]
    tops = np.cumsum(np.nan_to_num(rows), axis=0) if stacked else rows
    bottoms = np.vstack([np.zeros(len(times)), tops[:-1]]) if stacked else np.zeros_like(tops)
    colours = _colours(panel, [name for name, _ in lines])
    say = _formatter(defaults["unit"], defaults.get("decimals"))
    for bottom, top, colour, (name, one) in zip(bottoms, tops, colours, lines, strict=True):
        label, alpha = f"{name}  {say(_told(panel, one))}", defaults["custom"]["fillOpacity"] / 100
        if any(prop["id"] == "custom.hideFrom" for prop in _overrides(panel, name)):  # told, not drawn
            axes.plot([], [], color=colour, label=label)
            continue
        if alpha:
            axes.fill_between(
                times, bottom, top, color=colour, alpha=alpha, linewidth=0, label=label if stacked else None
            )
        if not stacked:
            axes.plot(times, top, color=colour, linewidth=1.5, label=label)
    if len(times) > 1:  # infinite values draw nothing
        axes.set_xlim(times[0], times[-1])
    if "scaleDistribution" in defaults["custom"]:
        axes.set_yscale("log", base=2)
    else:
        axes.set_ylim(0, max(defaults["custom"].get("axisSoftMax", 0), axes.get_ylim()[1], 1e-6))
    _clothe(axes, defaults["unit"])
    if not lines:
        nothing = defaults.get("noValue", "no data")
        axes.axis("off")
        axes.text(0.5, 0.5, nothing, color=_FAINT, size=11, ha="center", transform=axes.transAxes)
        return
    columns = max(1, int(axes.get_position().width * 24 / 1.9))
    legend = axes.legend(loc="upper left", bbox_to_anchor=(-0.08, -0.09), ncol=columns, fontsize=7.5, frameon=False)
    for text in legend.get_texts():
        text.set_color(_FAINT)


def _heatmap(axes: Axes, panel: dict[str, Any], answers: Answers) -> None:
    [(_, series)] = answers
    series = sorted(series, key=lambda one: float(one["metric"]["le"]))
    times, rows = _grid(series)
    counts = np.diff(np.nan_to_num(rows), axis=0, prepend=0).clip(0)
    shown = np.ma.masked_less(counts, 0.01)
    axes.pcolormesh(times, np.arange(len(series)), shown, cmap="Blues_r", norm=LogNorm(), shading="nearest")
    say = _formatter(panel["options"]["yAxis"]["unit"])
    names = [say(float(one["metric"]["le"])) for one in series]
    axes.set_yticks(range(len(names)), [f"≤ {name}" for name in names])
    _clothe(axes, None)
    axes.tick_params(axis="y", labelsize=6.5)
    axes.grid(False)


def _stat(axes: Axes, panel: dict[str, Any], answers: Answers) -> None:
    axes.axis("off")
    defaults = panel["fieldConfig"]["defaults"]
    say = _formatter(defaults["unit"], defaults.get("decimals"))
    for n, (target, series) in enumerate(answers):
        times, rows = _grid(series)
        known = rows[0][np.isfinite(rows[0])]
        last = known[-1] if len(known) else math.nan
        colour = _COLOURS[
            [s["color"] for s in defaults["thresholds"]["steps"] if s["value"] is None or last >= s["value"]][-1]
        ]
        x = (n + 0.5) / len(answers)
        axes.text(
            x, 0.6, say(last), color=colour, size=24, ha="center", va="center", transform=axes.transAxes, zorder=3
        )
        if len(answers) > 1:
            axes.text(x, 0, target["legendFormat"], color=_FAINT, size=9, ha="center", transform=axes.transAxes)
        if panel["options"]["graphMode"] == "area":
            graph = axes.inset_axes((0, 0, 1, 0.4))
            graph.axis("off")
            graph.fill_between(times, rows[0], color=colour, alpha=0.2, linewidth=0)
            graph.plot(times, rows[0], color=colour, linewidth=1, alpha=0.6)


def _state_timeline(axes: Axes, panel: dict[str, Any], answers: Answers) -> None:
    [(target, series)] = answers
    times, rows = _grid(series)
    for n, row in enumerate(rows):
        for time, value in zip(times, row, strict=True):
            if math.isfinite(value):
                colour = _COLOURS["green" if value == 1 else "orange"]
                axes.broken_barh([(time, times[1] - times[0])], (n - 0.3, 0.6), color=colour, alpha=0.7, linewidth=0)
    axes.set_yticks(range(len(series)), [_name(target, one) for one in series])
    _clothe(axes, None)


def _table(axes: Axes, panel: dict[str, Any], answers: Answers) -> None:
    axes.axis("off")
    [(_, series)] = answers
    organised = panel["transformations"][0]["options"]
    columns = sorted(organised["indexByName"], key=organised["indexByName"].get)
    names = [organised["renameByName"].get(column, column) for column in columns]
    cells = [
        [(one["metric"] | {"Value": f"{float(one['value'][1]):.0f} s"})[c][:24] for c in columns] for one in series
    ]
    table = axes.table(cells, colLabels=names, loc="upper left", cellLoc="left", edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.auto_set_column_width(range(len(columns)))
    table.scale(1, 1.9)
    for (row, _), cell in table.get_celld().items():
        cell.set_edgecolor(_GRID)
        cell.get_text().set_color(_TEXT if row else _FAINT)


_PAINTERS = {
    "timeseries": _timeseries,
    "heatmap": _heatmap,
    "stat": _stat,
    "state-timeline": _state_timeline,
    "table": _table,
}


def _grid(series: Series) -> tuple[Any, Any]:
    """The times that any of the series has a value at, in seconds from the first, and a row of values each."""
    points = [dict(one["values"]) for one in series]
    times = sorted(set().union(*points))
    rows = np.array([[float(p.get(time, "nan")) for time in times] for p in points]).reshape(len(points), len(times))
    return np.array(times) - (times[0] if times else 0), np.where(np.isfinite(rows), rows, np.nan)


def _name(target: dict[str, Any], series: dict[str, Any]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: series["metric"].get(match[1], ""), target["legendFormat"])


def _told(panel: dict[str, Any], series: dict[str, Any]) -> float:
    """The first number of the panel's legend: the least value, or the mean of the finite ones."""
    values = np.array([float(value) for _, value in series["values"]])
    if panel["options"]["legend"]["calcs"][0] == "min":
        return float(np.nanmin(values))
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _order(series: dict[str, Any]) -> tuple[float, list[str]]:
    """By name, so that a replica has one colour in all panels; buckets by their size."""
    return float(series["metric"].get("bucket", 0)), sorted(series["metric"].values())


def _overrides(panel: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The properties that the dashboard gives to the series of this name."""
    found = []
    for override in panel["fieldConfig"]["overrides"]:
        by, which = override["matcher"]["id"], override["matcher"]["options"]
        if name == which if by == "byName" else re.fullmatch(which, name):
            found += override["properties"]
    return found


def _colours(panel: dict[str, Any], names: list[str]) -> list[Any]:
    if panel["fieldConfig"]["defaults"]["color"]["mode"] == "continuous-blues":
        return list(pyplot.get_cmap("Blues")(np.linspace(0.3, 0.9, max(1, len(names)))))
    classic, shade = count(), count()
    colours: list[Any] = []
    for name in names:
        given = [prop["value"] for prop in _overrides(panel, name) if prop["id"] == "color"]
        if not given:
            colours.append(_CLASSIC[next(classic) % len(_CLASSIC)])
        elif given[-1]["mode"] == "shades":
            colours.append(
                pyplot.get_cmap("Purples" if given[-1]["fixedColor"] == "purple" else "Reds")(
                    0.4 + next(shade) % 5 / 10
                )
            )
        else:
            colours.append(_COLOURS[given[-1]["fixedColor"]])
    return colours


def _clothe(axes: Axes, unit: str | None) -> None:
    axes.grid(True, color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:.0f} s"))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if unit:
        if axes.get_yscale() == "linear":
            axes.yaxis.set_major_locator(MaxNLocator(4))
        say = _formatter(unit)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: say(value)))


def _formatter(unit: str, decimals: int | None = None) -> Callable[[float], str]:
    """How Grafana writes a number of this unit."""

    def plain(value: float) -> str:
        if value >= 1000:
            return f"{value:,.0f}"
        return f"{value:.{decimals}f}" if decimals is not None else f"{value:.3g}"

    def say(value: float) -> str:
        if math.isnan(value):
            return "-"
        if math.isinf(value):
            return "∞"
        match unit:
            case "s":
                return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
            case "percentunit":
                return f"{value * 100:.{1 if decimals is None else decimals}f} %"
            case "bytes":
                power = min(3, int(math.log(max(value, 1), 1024)))
                return f"{value / 1024**power:.3g} {['B', 'KiB', 'MiB', 'GiB'][power]}"
            case "reqps":
                return f"{plain(value)} req/s"
            case "none":
                return plain(value)
        return f"{plain(value)}{unit.removeprefix('suffix:')}"

    return say
