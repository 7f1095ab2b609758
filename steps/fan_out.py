"""How wide a fan-out may be: Metaflow refuses more than 100 tasks (its --max-num-splits)."""

from collections.abc import Sequence
from typing import TypeVar

MAX_TASKS = 96

_Item = TypeVar("_Item")


def in_groups(items: Sequence[_Item], most: int = MAX_TASKS) -> list[list[_Item]]:
    """The items, in order, in groups for one task each: as many as there are items, and at most `most`."""
    per_group = -(-len(items) // most) or 1
    return [list(items[first : first + per_group]) for first in range(0, len(items), per_group)]
