"""What a check has found, and a table of such findings."""

import textwrap
from collections.abc import Iterable
from typing import Literal, NamedTuple

_WIDTH = 110


class Check(NamedTuple):
    """One question, and its answer."""

    what: str
    state: Literal["ok", "note", "failed"]
    """A note is something to know; only what failed stops a run."""
    found: str
    remedy: str = ""
    """What to do; never empty where something failed."""


def failed(checks: Iterable[Check]) -> list[Check]:
    """Those that failed."""
    return [check for check in checks if check.state == "failed"]


def as_table(checks: Iterable[Check]) -> str:
    """One check after the other: its state, what was asked, what was found; below it the remedy."""
    checks = list(checks)
    width = max((len(check.what) for check in checks), default=0)
    indent = " " * (8 + width + 2)
    lines = []
    for check in checks:
        lines += _wrapped(check.found, first=f"{check.state:<8}{check.what:<{width}}  ", indent=indent)
        if check.remedy:
            lines += _wrapped(check.remedy, first=f"{indent}-> ", indent=f"{indent}   ")
    return "\n".join(lines)


def _wrapped(text: str, *, first: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, max(_WIDTH, len(indent) + 40), initial_indent=first, subsequent_indent=indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
