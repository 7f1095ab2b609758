"""A user's error in the words of its own, without a stack of calls, where Metaflow is the one that shows it."""

import contextlib
from collections.abc import Iterator

from metaflow.exception import MetaflowException

from fast_electra_core.errors import ConfigError
from steps.console import for_metaflow


@contextlib.contextmanager
def said_by_metaflow() -> Iterator[None]:
    """A ConfigError inside is an error of Metaflow's own kind."""
    try:
        yield
    except ConfigError as error:
        raise MetaflowException(for_metaflow(str(error))) from error
