"""The charts of the report's pages: curves over progress and bars by task, as inline SVG."""

import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]

_BLUE, _RED, _GREEN, _GREY, _SOFT = "#2f6690", "#c8553d", "#4a8c6f", "#9aa5b1", "#66727f"
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


class Chart(NamedTuple):
    """A picture under its title; svg is markup that is safe to inline."""

    title: str
    svg: Any


def curves(
    rows: Sequence[Row],
    num_steps: int,
    title: str,
    names: Mapping[str, str],
    *,
    right: Mapping[str, str] | None = None,
    limits: tuple[float, float] | None = None,
    level: float | None = None,
) -> Chart | None:
    """Lines over progress, those of `right` on a second axis; None where no row has any of them."""
    lines = {name: _points(rows, name, num_steps) for name in (*names, *(right or {}))}
    if not any(lines.values()):
        return None

    def paint(axes: Any) -> None:
        colours = itertools.cycle((_BLUE, _RED, _GREEN, _GREY))
        for name, label in names.items():
            if lines[name]:
                _draw_line(axes, lines[name], label, next(colours))
        if right:
            axes.set_ylabel(", ".join(names.values()))
            other = axes.twinx()
            other.spines["right"].set_visible(True)
            other.set_ylabel(", ".join(right.values()))
            other.grid(visible=False)
            for name, label in right.items():
                _draw_line(other, lines[name], label, next(colours), dashes=(4, 2))
        if level is not None:
            axes.axhline(level, color=_GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        if limits is not None:
            axes.set_ylim(*limits)
        axes.set(xlabel="progress", xlim=(0, 1))
        handles = [line for side in axes.figure.axes for line in side.get_lines()]
        handles = [line for line in handles if not str(line.get_label()).startswith("_")]
        if len(handles) > 1:
            axes.legend(handles=handles, loc="best")

    return Chart(title, _svg(4.6, 2.5, paint))


def bars(summary: Sequence[Row]) -> Chart:
    """Bars of a task beside each other (rows of scores.summarise), with whiskers where there are several seeds."""
    columns: list[tuple[str, str, Callable[[Row], Any]]] = [
        ("pre-trained", _BLUE, lambda row: row.get("pretrained")),
        ("untrained", "#a9c3d6", lambda row: row.get("untrained")),
        ("majority class", "#d5dade", lambda row: {"mean": row["majority"]}),
    ]
    columns = [column for column in columns if any(column[2](row) for row in summary)]

    def paint(axes: Any) -> None:
        for offset, (label, colour, value_of) in enumerate(columns):
            places = [
                index + 0.26 * (offset - (len(columns) - 1) / 2) for index, row in enumerate(summary) if value_of(row)
            ]
            values = [value_of(row) for row in summary if value_of(row)]
            axes.bar(places, [value["mean"] for value in values], 0.24, color=colour, label=label)
            whiskers = [
                (place, value["mean"], value["std"])
                for place, value in zip(places, values, strict=True)
                if value.get("std") is not None
            ]
            for place, mean, std in whiskers:
                axes.errorbar(place, mean, std, color="#1f2933", elinewidth=1.0, capsize=2.5)
        axes.axhline(0, color=_SOFT, linewidth=0.8)
        axes.set_xticks(range(len(summary)), [f"{row['task']}\n{row['metric']}" for row in summary])
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(-0.6, max(len(summary), 4) - 0.4)
        axes.figure.legend(loc="outside upper right", ncols=3)

    return Chart("Scores by task (bars: mean over seeds; whiskers: standard deviation)", _svg(9.4, 2.9, paint))


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]], title: str, *, x: str, y: str, log_x: bool = False
) -> Chart | None:
    """One line per name through its (x, y) points; None where there are none."""
    if not any(series.values()):
        return None

    def paint(axes: Any) -> None:
        from matplotlib import colormaps

        colours = [*colormaps["tab10"].colors, *colormaps["Set2"].colors]  # type: ignore[attr-defined]
        for colour, (name, points) in zip(itertools.cycle(colours), series.items(), strict=False):
            if points:
                _draw_line(axes, list(points), name, colour)
        if log_x:
            axes.set_xscale("log")
        axes.set(xlabel=x, ylabel=y)
        axes.figure.legend(loc="outside right upper")

    return Chart(title, _svg(9.4, 3.2, paint))


def intervals(rows: Sequence[tuple[str, float, float | None, float | None]], title: str) -> Chart | None:
    """A dot with its interval per (name, value, low, high), beside zero; None where there are none."""
    if not rows:
        return None

    def paint(axes: Any) -> None:
        for place, (_, value, low, high) in enumerate(reversed(rows)):
            if low is not None and high is not None:
                axes.plot([low, high], [place, place], color=_BLUE, linewidth=2.0, alpha=0.5)
            axes.plot([value], [place], "o", color=_BLUE, markersize=5)
        axes.axvline(0, color=_SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(rows)), [name for name, *_ in reversed(rows)])
        axes.grid(visible=False)
        axes.set_ylim(-0.6, len(rows) - 0.4)

    return Chart(title, _svg(9.4, 0.8 + 0.32 * len(rows), paint))


def _draw_line(
    axes: Any, points: list[tuple[float, float]], label: str, colour: str, *, dashes: tuple[int, ...] = ()
) -> None:
    style = {"linestyle": (0, dashes)} if dashes else {"marker": "o" if len(points) < 25 else None, "markersize": 3}
    axes.plot([x for x, _ in points], [y for _, y in points], color=colour, label=label, linewidth=1.6, **style)


def _points(rows: Sequence[Row], name: str, num_steps: int) -> list[tuple[float, float]]:
    """(progress, value) of the finite values, thinned to _MAX_POINTS; the last is always kept."""
    values = {int(row["step"]): float(row[name]) for row in rows if row.get(name) is not None}
    found = [(step / num_steps, values[step]) for step in sorted(values) if math.isfinite(values[step])]
    stride = math.ceil(len(found) / _MAX_POINTS) or 1
    return found[(len(found) - 1) % stride :: stride] if found else []


def _svg(width: float, height: float, paint: Callable[[Any], None]) -> Any:
    """Inline markup of one pair of axes, in inches; no pyplot and no change of matplotlib's settings."""
    import matplotlib
    from markupsafe import Markup
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure.subplots())
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = stream.getvalue()
    return Markup(text[text.index("<svg") :])  # matplotlib escapes the text that it writes
