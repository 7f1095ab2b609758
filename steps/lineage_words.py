"""The tree of a version's lineage as text, for a terminal."""

import textwrap
from collections import Counter
from collections.abc import Iterator

from steps.lineage_checks import OK, Check
from steps.lineage_tree import Node

_WIDTH = 116
_MARKS = {"ok": "[ok]     ", "differs": "[DIFFERS]", "gone": "[gone]   "}
_MANY = 12
"""Checks of one node; of more, those that are ok are only counted."""


def as_text(tree: Node) -> str:
    """The tree, and below it how the checks went."""
    return "\n".join(map(_plain, [*_lines(tree, "", ""), "", *_verdict(tree)]))


def _plain(line: str) -> str:
    """Whoever may set a tag could else move the cursor, and write `ok` over what is not."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)


def _lines(node: Node, first: str, then: str) -> Iterator[str]:
    yield f"{first}{node.title}"
    below = f"{then}│  " if node.parts else f"{then}   "
    if node.missing:
        yield from _wrapped(f"LINEAGE INCOMPLETE, tags missing: {', '.join(node.missing)}", below)
    yield from _facts(node, below)
    checks = list(node.checks)
    if len(checks) > _MANY:
        fine = [check for check in checks if check.verdict == OK]
        checks = [check for check in checks if check.verdict != OK]
        yield f"{below}{_MARKS[OK]} {len(fine):,} digests"
    for check in checks:
        yield from _wrapped(_check(check), below)
    for part in node.parts:
        is_last = part is node.parts[-1]
        yield from _lines(part, then + ("└─ " if is_last else "├─ "), then + ("   " if is_last else "│  "))


def _facts(node: Node, below: str) -> Iterator[str]:
    if node.title in ("parameters", "cost"):  # many and short
        yield from _wrapped("; ".join(f"{name}: {value}" for name, value in node.facts.items()), below)
        return
    width = min(30, max((len(name) for name in node.facts), default=0))
    for name, value in node.facts.items():
        yield from _wrapped(f"{name:<{width}}  {value}", below)


def _check(check: Check) -> str:
    note = f": {check.note}" if check.note else ""
    return f"{_MARKS[check.verdict]} {check.what} {check.recorded}{note}"


def _wrapped(text: str, below: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=below,
        subsequent_indent=f"{below}    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _verdict(tree: Node) -> list[str]:
    found = [(node, check) for node in tree.everything() for check in node.checks]
    if not found:
        return ["nothing was checked"]
    counts = Counter(check.verdict for _, check in found)
    words = {"ok": "ok", "differs": "DIFFER", "gone": "gone or not recorded, so not checked"}
    lines = [f"{len(found)} digests: {', '.join(f'{counts[key]} {words[key]}' for key in words if counts[key])}"]
    return lines + [f"differs: {node.title}: {check.what}" for node, check in found if check.verdict == "differs"]
