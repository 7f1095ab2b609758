"""A user's error in the words of its own, without a stack of calls, where Metaflow is the one that shows it."""

import contextlib
from collections.abc import Iterator

from metaflow.exception import MetaflowException

from fast_electra_core.errors import ConfigError


@contextlib.contextmanager
def said_by_metaflow() -> Iterator[None]:
    """A ConfigError inside is an error of Metaflow's own kind."""
    try:
        yield
    except ConfigError as error:
        # Of an asterisk, which stands in every cron, Metaflow makes bold type: it would be missing.
        raise MetaflowException(str(error).replace("*", "\N{ASTERISK OPERATOR}")) from error
