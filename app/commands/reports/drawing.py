"""Charts as SVG. Text stays text, and colours are CSS variables of the page, for light and dark mode."""

import io
import itertools
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter

# Placeholder colours, replaced by the CSS variables of these names.
_VARIABLES = ("ink", "quiet", "line", "edge", "faint", "accent", "middle", "bar", "danger", "surface")
COLOURS = {variable: f"#0102{number:02x}" for number, variable in enumerate(_VARIABLES, 3)}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "topk",  # for the same ids in every run
    "font.size": 9,
    "text.color": COLOURS["quiet"],
    "axes.labelcolor": COLOURS["quiet"],
    "axes.edgecolor": COLOURS["line"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["quiet"],
    "ytick.labelcolor": COLOURS["quiet"],
    "ytick.major.size": 0,
    "xtick.major.size": 3,
}


PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.0f}")
"""Formats an axis of fractions as per cent."""


def style() -> Any:
    """The context in which to create and draw figures."""
    return mpl.rc_context(_STYLE)


def figure(
    width: float, height: float, heights: Sequence[float] = (1,), apart: float = 0.02
) -> tuple[Figure, list[Axes]]:
    """A transparent figure, sized in inches, with axes in a column with these height ratios. They share the x axis.

    ``apart`` is the space between them, as a share of the height.
    """
    drawn = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(hspace=apart))
    drawn.patch.set_alpha(0)
    axes = drawn.subplots(len(heights), squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for one in axes:
        one.patch.set_alpha(0)
    return drawn, list(axes)


def svg(drawn: Figure, name: str) -> str:
    """The figure as an SVG element that uses the page's colours and fonts."""
    file = io.StringIO()
    drawn.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    found = file.getvalue()
    found = found[found.index("<svg") :]
    for variable, colour in COLOURS.items():
        found = found.replace(colour, f"var(--{variable})")
    found = re.sub(r"<metadata>.*?</metadata>", "", found, flags=re.DOTALL)
    ids = itertools.count()
    prefix = re.sub(r"\W", "", name)
    for old in re.findall(r'id="([^"]+)"', found):  # ids must be unique among the charts of a page
        found = re.sub(rf'(id="|#){re.escape(old)}(?=["\)])', rf"\g<1>{prefix}{next(ids)}", found)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{name}"', found, count=1)
