"""The charts of the pages: curves over progress, bars by task, shares of a whole; as inline SVG or as a figure."""

import io
import itertools
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

_BLUE, _RED, _GREEN, _GREY, _SOFT, _INK = "#2f6690", "#c8553d", "#4a8c6f", "#9aa5b1", "#66727f", "#1f2933"
_PARTS = (_BLUE, "#a9c3d6", _RED, "#e6b3a7", _GREEN, "#b5d3c5", "#7d5a8c", "#cdb9d6", _INK, _GREY)
_COLOURS = (_BLUE, _INK, _GREY, _RED)  # training, held-out and baseline as in the panels; no red beside green
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in the page's own font
    "svg.hashsalt": "fast-electra",  # the same chart gives the same bytes
    "text.parse_math": False,
    "font.size": 9.0,
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e9edf0",
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}
_MAX_POINTS = 400  # per curve: more cannot be seen, and makes the page slow
_NARROW, _WIDE = 4.6, 9.4  # inches: two beside each other, or one
_DPI = 110
_LETTERS = 120  # beside each other in the wide one


@dataclass(frozen=True)
class Chart:
    """A picture and its title, drawn when it is asked for."""

    title: str
    width: float
    """In inches; height likewise."""
    height: float
    paint: Callable[[Any], None]
    """Draws on an empty matplotlib Figure."""

    @property
    def is_wide(self) -> bool:
        """Whether it takes a row of a page by itself."""
        return self.width > _NARROW

    @property
    def svg(self) -> Any:
        """Inline markup without the title, safe to put into a page; matplotlib escapes the text that it writes."""
        import matplotlib
        from markupsafe import Markup

        with matplotlib.rc_context(_STYLE):
            stream = io.StringIO()
            self._painted().savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
        text = stream.getvalue()
        # One picture with a name, not a hundred numbers, to who has it read aloud.
        return Markup('<svg role="img" aria-label="{}"{}').format(self.title, Markup(text.partition("<svg")[2]))

    def figure(self) -> Any:
        """A matplotlib Figure with the title in it."""
        import matplotlib

        with matplotlib.rc_context(_STYLE):
            figure = self._painted()
            figure.suptitle(self.title, fontsize=10, x=0.01, ha="left")
        figure.set_dpi(_DPI)
        return figure

    def _painted(self) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(self.width, self.height), layout="constrained")  # no pyplot: nothing is kept
        self.paint(figure)
        return figure


def curves(
    rows: Sequence[Row],
    num_steps: int,
    title: str,
    names: Mapping[str, str],
    *,
    limits: tuple[float, float] | None = None,
    level: float | None = None,
) -> Chart | None:
    """Lines over progress; None where no row has any of them."""
    lines = {name: _points(rows, name, num_steps) for name in names}
    if not any(lines.values()):
        return None

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        colours = itertools.cycle(_COLOURS)
        for name, label in names.items():
            if lines[name]:
                _draw_line(axes, lines[name], label, next(colours))
        if level is not None:
            axes.axhline(level, color=_GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        if limits is not None:
            axes.set_ylim(*limits)
        axes.set(xlabel="progress", xlim=(0, 1))
        if sum(map(bool, lines.values())) > 1:
            axes.legend(loc="best")

    return Chart(title, _NARROW, 2.5, paint)


def panels(rows: Sequence[Row], num_steps: int, names: Mapping[str, Mapping[str, str]]) -> Chart | None:
    """Panels under each other on one axis of progress, by the name of their own axis: what happens together is seen
    together. A panel that no row has anything for is left out, of the title, too; None where that is all of them."""
    lines = {axis: {name: _points(rows, name, num_steps) for name in of_axis} for axis, of_axis in names.items()}
    shown = [axis for axis, of_axis in lines.items() if any(of_axis.values())]
    if not shown:
        return None

    def paint(figure: Any) -> None:
        below = figure.subplots(len(shown), sharex=True, squeeze=False, height_ratios=[1.6] + [1] * (len(shown) - 1))
        for colour, axis, (axes,) in zip(itertools.cycle((_BLUE, _RED, _GREEN)), shown, below, strict=False):
            drawn = [name for name in names[axis] if lines[axis][name]]
            for each, name in zip((colour, _INK, _GREY), drawn, strict=False):
                _draw_line(axes, lines[axis][name], names[axis][name], each)
            axes.set(ylabel=axis, xlim=(0, 1))
            if len(drawn) > 1:
                axes.legend(loc="upper right", ncols=len(drawn))
        figure.align_ylabels()
        below[-1][0].set_xlabel("progress")

    title = " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
    return Chart(title.capitalize(), _WIDE, 1.0 + 1.15 * (len(shown) + 0.6), paint)


def bars(summary: Sequence[Row], others: Mapping[str, Mapping[str, Row]]) -> Chart:
    """Bars of a task beside each other (rows of scores.summarise), with the 95 % intervals of means over seeds.

    others: name of another encoder -> task -> its statistics (scores.statistics_of), drawn beside the pre-trained one.
    """
    found: dict[str, tuple[str, list[Any]]] = {
        "pre-trained": (_BLUE, [row.get("pretrained") for row in summary]),
        **{name: (_RED, [of_tasks.get(row["task"]) for row in summary]) for name, of_tasks in others.items()},
        "untrained": ("#a9c3d6", [row.get("untrained") for row in summary]),
        "majority class": ("#d5dade", [{"mean": row["majority"]} for row in summary]),
    }
    columns = {name: column for name, column in found.items() if any(column[1])}

    def paint(figure: Any) -> None:
        axes, step = figure.subplots(), 0.82 / len(columns)
        for offset, (label, (colour, values)) in enumerate(columns.items()):
            places = [index + step * (offset - (len(columns) - 1) / 2) for index in range(len(values))]
            known = [(place, value) for place, value in zip(places, values, strict=True) if value]
            means = [value["mean"] for _, value in known]
            axes.bar([place for place, _ in known], means, 0.92 * step, color=colour, label=label)
            for place, value in known:
                if value.get("low") is not None:
                    axes.plot([place, place], [value["low"], value["high"]], color=_INK, linewidth=1.0)
        axes.axhline(0, color=_SOFT, linewidth=0.8)
        # No score is above 1; of two seeds an interval may be, and would press the bars flat.
        lowest = min(value["mean"] for column in columns.values() for value in column[1] if value)
        axes.set_ylim(min(lowest, 0) - 0.03, 1.03)
        axes.set_xticks(range(len(summary)), [_under_bars(row, len(summary)) for row in summary])
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(-0.6, max(len(summary), 2) - 0.4)
        figure.legend(loc="outside lower right", ncols=len(columns))

    return Chart("Scores by task (bars: mean over seeds; lines: its 95 % interval)", _WIDE, 2.9, paint)


def shares(wholes: Mapping[str, Mapping[str, float]], title: str) -> Chart | None:
    """One bar per whole, split into its parts, each with its share; what is 0 is left out. None where all is."""
    rows = {name: {part: value for part, value in parts.items() if value > 0} for name, parts in wholes.items()}
    rows = {name: parts for name, parts in rows.items() if parts}
    if not rows:
        return None

    def paint(figure: Any) -> None:
        below = figure.subplots(len(rows), squeeze=False)
        for (axes,), (name, parts) in zip(below, rows.items(), strict=True):
            total, done = sum(parts.values()), 0.0
            for colour, (part, value) in zip(itertools.cycle(_PARTS), parts.items(), strict=False):
                words = f"{part} {100 * value / total:.{0 if value >= 0.01 * total else 1}f} %"
                axes.barh([0], [value / total], left=done, color=colour, label=words, edgecolor="white")
                done += value / total
            axes.set(xlim=(0, 1), xticks=[], yticks=[])
            axes.set_title(name, loc="left", fontsize=9, color=_SOFT)
            axes.spines[:].set_visible(False)
            axes.grid(visible=False)
            axes.legend(loc="upper left", bbox_to_anchor=(0, 0), ncols=4, borderaxespad=0.2, handlelength=1)

    return Chart(title, _WIDE, 0.2 + sum(0.75 + 0.2 * math.ceil(len(parts) / 4) for parts in rows.values()), paint)


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]], title: str, *, x: str, y: str, at: Sequence[float] = ()
) -> Chart | None:
    """One line per name through its (x, y) points, with a gap where y is NaN; None where there are none. at: the ticks
    of x, which is logarithmic then, if all are above 0."""
    if not any(math.isfinite(value) for points in series.values() for _, value in points):
        return None

    def paint(figure: Any) -> None:
        from matplotlib import colormaps

        axes = figure.subplots()
        colours = [*colormaps["tab10"].colors, *colormaps["Set2"].colors]  # type: ignore[attr-defined]
        for colour, (name, points) in zip(itertools.cycle(colours), series.items(), strict=False):
            if any(math.isfinite(value) for _, value in points):
                _draw_line(axes, list(points), f" {name}", colour)  # a legend leaves out what begins with _
        if at:
            axes.set_xscale("log" if min(at) > 0 else "linear")
            axes.minorticks_off()
            axes.set_xticks(at, [f"{each:g}" for each in at])
        if x == "progress":
            axes.set_xlim(0, 1)
        axes.set(xlabel=x, ylabel=y)
        figure.legend(loc="outside right upper")

    return Chart(title, _WIDE, 3.2, paint)


def intervals(rows: Sequence[tuple[str, float, float | None, float | None]], title: str) -> Chart | None:
    """A dot with its interval per (name, value, low, high), beside zero; None where there are none."""
    if not rows:
        return None

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for place, (_, value, low, high) in enumerate(reversed(rows)):
            if low is not None and high is not None:
                axes.plot([low, high], [place, place], color=_BLUE, linewidth=2.0, alpha=0.5)
            axes.plot([value], [place], "o", color=_BLUE, markersize=5)
        axes.axvline(0, color=_SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(rows)), [name for name, *_ in reversed(rows)])
        axes.grid(visible=False)
        axes.set_ylim(-0.6, len(rows) - 0.4)

    return Chart(title, _WIDE, 0.8 + 0.32 * len(rows), paint)


def _under_bars(row: Row, number: int) -> str:
    """Task and metric, in as many lines as keep it off its neighbours', of which there are so many."""
    words = (str(row["task"]), str(row["metric"]).replace("_correlation", ""))
    width = max(8, _LETTERS // number)
    return "\n".join(textwrap.fill(each, width, max_lines=3, placeholder="…") for each in words)


def _draw_line(axes: Any, points: list[tuple[float, float]], label: str, colour: str) -> None:
    style = {"marker": "o" if len(points) < 25 else None, "markersize": 3, "linewidth": 1.6, "clip_on": False}
    axes.plot([x for x, _ in points], [y for _, y in points], color=colour, label=label, **style)


def _points(rows: Sequence[Row], name: str, num_steps: int) -> list[tuple[float, float]]:
    """(progress, value) of the finite values, thinned to _MAX_POINTS; the last is always kept."""
    values = {int(row["step"]): float(row[name]) for row in rows if row.get(name) is not None}
    found = [(step / num_steps, values[step]) for step in sorted(values) if math.isfinite(values[step])]
    stride = math.ceil(len(found) / _MAX_POINTS) or 1
    return found[(len(found) - 1) % stride :: stride] if found else []
