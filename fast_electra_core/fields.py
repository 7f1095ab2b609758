"""What the fields of a config class are: read from its source, where each field's docstring stands under it."""

import ast
import dataclasses
import functools
import inspect
import itertools
import sys
from typing import Any, NamedTuple, get_args, get_type_hints


class Described(NamedTuple):
    """A field as a user meets it."""

    kind: type
    """str, int, float or bool; a field that may also be None has the other type."""
    text: str
    """Its docstring, in one line."""


@functools.cache
def describe_fields(config_class: type[Any]) -> dict[str, Described]:
    """Every field of the dataclass, inherited ones too, in order, but for those that it names in LEFT_OUT; where a
    subclass says nothing new of a field that it overrides, its base's words hold.

    Raises:
        LookupError: a field without a docstring.
    """
    hints = get_type_hints(config_class)
    texts: dict[str, str] = {}
    for each in reversed(config_class.__mro__):
        if dataclasses.is_dataclass(each):
            texts |= _docstrings(each)
    left_out: frozenset[str] = getattr(config_class, "LEFT_OUT", frozenset())
    names = [field.name for field in dataclasses.fields(config_class) if field.name not in left_out]
    missing = [name for name in names if name not in texts]
    if missing:
        raise LookupError(f"fields without a docstring in {config_class.__name__}: {', '.join(missing)}")
    return {name: Described(_kind(hints[name]), texts[name]) for name in names}


def _docstrings(config_class: type[Any]) -> dict[str, str]:
    body = _classes(config_class.__module__)[config_class.__name__].body
    found = {}
    for node, after in itertools.pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
            found[node.target.id] = " ".join(ast.literal_eval(after.value).split())
    return found


@functools.cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    """Of its top level. `inspect` would parse the whole module anew for each class, in each task of a flow."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _kind(hint: Any) -> type:
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    kind: type = kinds[0]
    return kind
