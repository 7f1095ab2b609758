"""What a person sees of a step: log lines, and a user's error in the words of its own, without a stack of calls."""

import contextlib
import sys
from collections.abc import Iterator

from metaflow.exception import MetaflowException

from fast_electra_core.errors import FastElectraError, Interrupted
from steps.console import show_log_lines


@contextlib.contextmanager
def said_by_metaflow() -> Iterator[None]:
    """A user's error inside, or an interruption, is one of Metaflow's own kind, under the name that it had: of those
    Metaflow shows the message, of all others a stack of calls as an internal error."""
    try:
        yield
    except (FastElectraError, Interrupted) as error:
        # The message says what is wrong and what to do; where in our code it was noticed helps nobody.
        sys.tracebacklimit = 0
        name = type(error).__name__
        kind = type(name, (MetaflowException,), {"headline": name, "__module__": type(error).__module__})
        # Of an asterisk, which stands in every cron and glob, Metaflow makes bold type: it would be missing.
        raise kind(str(error).replace("*", "\N{ASTERISK OPERATOR}")) from None


@contextlib.contextmanager
def told() -> Iterator[None]:
    """A step inside shows its log lines, and its user's errors as said_by_metaflow says."""
    show_log_lines()
    with said_by_metaflow():
        yield
