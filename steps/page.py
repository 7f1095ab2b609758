"""The form of a page that a person reads: sections of facts, charts and tables, in one HTML file that needs no other.

Every word from outside is escaped by jinja2.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from steps.charts import Chart

Row = Mapping[str, Any]


class Table(NamedTuple):
    """Cells are text already; marked are the indices of the rows to highlight, is_prose aligns to the left."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: Sequence[int] = ()
    is_prose: bool = False


class Section(NamedTuple):
    """One part of a page: facts are (label, value) tiles."""

    heading: str
    note: str = ""
    facts: Sequence[tuple[str, str]] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()


def render(title: str, sections: Iterable[Section], subtitle: str = "", link: str = "") -> str:
    """The page; link is shown under the title."""
    import jinja2

    template = Path(__file__).with_name("page_template.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(template).render(title=title, subtitle=subtitle, link=link, sections=list(sections))


def prose_table(head: str, rows: Mapping[str, Any]) -> Table:
    """Two columns of words."""
    return Table([head, ""], [[str(key), str(value)] for key, value in rows.items()], is_prose=True)


def number(value: Any, *, signed: bool = False) -> str:
    """1234567 -> 1,234,567; 0.123456 -> 0.1235; 3.1e-05 -> 3.1e-05; -0.0 -> 0.0000; None -> –."""
    if value is None:
        return "–"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str | bool):
        return str(value)
    sign = "+" if signed else ""
    if isinstance(value, int) or (value.is_integer() and abs(value) >= 1000):
        return f"{value:{sign},.0f}"
    if 1e-9 < abs(value) < 0.001:
        return f"{value:{sign}.2e}"
    if abs(value) >= 1000:
        return f"{value:{sign},.0f}"
    return f"{value:{sign}z.4f}" if abs(value) < 10 else f"{value:{sign}z.2f}"  # z: no -0.0000


def spread(statistics: Row | None, digits: int = 4) -> str:
    """mean ± standard deviation; the mean alone of a single seed."""
    if not statistics:
        return "–"
    mean, std = statistics["mean"], statistics.get("std")
    return f"{mean:z.{digits}f}" if std is None else f"{mean:z.{digits}f} ± {std:.{digits}f}"


def interval(low: float | None, high: float | None, *, signed: bool = False) -> str:
    """`0.1000 to 0.2000`; – where one end is missing."""
    return "–" if low is None or high is None else f"{number(low, signed=signed)} to {number(high, signed=signed)}"
