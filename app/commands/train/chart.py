"""The charts of a training report."""

from typing import Any

from matplotlib.ticker import MaxNLocator

from app.commands.reports.drawing import COLOURS, PERCENT, figure, style, svg
from app.commands.train.finetune import Tuning
from app.commands.train.head import Head

_LINE: Any = {"color": COLOURS["accent"], "linewidth": 2, "markersize": 4.5, "clip_on": False}


def regularisation(head: Head) -> str:
    """Cross-validated log loss by C, with the chosen C."""
    with style():
        drawn, [axes] = figure(4.2, 2.3)
        axes.plot(list(head.losses), list(head.losses.values()), "o-", **_LINE)
        axes.plot(head.c, head.loss, "o", markersize=9, color=COLOURS["accent"], clip_on=False)
        axes.set(xscale="log", ylim=(0, None), xlabel="C (larger is weaker regularisation)", ylabel="log loss")
        axes.xaxis.minorticks_off()
        axes.yaxis.set_major_locator(MaxNLocator(4))
        return svg(drawn, "Log loss by C")


def epochs(tuning: Tuning) -> str:
    """Accuracy and log loss of the held-out images by epoch. Epoch 0 is the linear head."""
    with style():
        drawn, [top, below] = figure(8.6, 3.6, (3, 2), apart=0.12)
        there = range(len(tuning.scores))
        for axes, values in ((top, [s.top1 for s in tuning.scores]), (below, [s.loss for s in tuning.scores])):
            axes.plot(there, values, "o-", **_LINE)
            axes.plot(tuning.best, values[tuning.best], "o", markersize=9, color=COLOURS["accent"], clip_on=False)
            axes.axvline(tuning.best, color=COLOURS["ink"], linewidth=0.9, dashes=(4, 3), zorder=0)
        low = min(score.top1 for score in tuning.scores)
        top.set(ylim=(max(0, low - max(0.05, 0.15 * (1 - low))), 1), ylabel="accuracy, %")
        top.yaxis.set_major_formatter(PERCENT)
        top.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        top.tick_params(axis="x", length=0)
        below.set(ylim=(0, None), ylabel="log loss", xlabel="epoch; 0 is the linear head")
        below.yaxis.set_major_locator(MaxNLocator(3))
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        drawn.align_ylabels()
        return svg(drawn, "Accuracy and log loss by epoch")
