"""What a person sees of a step: log lines, and a user's error in the words of its own, without a stack of calls."""

import contextlib
import sys
from collections.abc import Iterator

from metaflow.exception import MetaflowException

from fast_electra_core.errors import FastElectraError, Interrupted, full_disk
from steps.console import show_log_lines


@contextlib.contextmanager
def said_by_metaflow() -> Iterator[None]:
    """A user's error inside, a disk that is full or an interruption is one of Metaflow's own kind, under the name that
    it had: of those Metaflow shows the message, of all others a stack of calls as an internal error."""
    try:
        yield
    except (FastElectraError, Interrupted) as error:
        raise _of_metaflow(type(error), str(error)) from None
    except OSError as error:
        if full := full_disk(error):
            message = f"{full}. Free some disk space and resume, or give another --store"
            raise _of_metaflow(OSError, message) from None
        raise


def _of_metaflow(kind: type[Exception], message: str) -> MetaflowException:
    # The message says what is wrong and what to do; where in our code it was noticed helps nobody.
    sys.tracebacklimit = 0
    name = kind.__name__
    shown = type(name, (MetaflowException,), {"headline": name, "__module__": kind.__module__})
    # Of an asterisk, which stands in every cron and glob, Metaflow makes bold type: it would be missing.
    return shown(message.replace("*", "\N{ASTERISK OPERATOR}"))


@contextlib.contextmanager
def told() -> Iterator[None]:
    """A step inside shows its log lines, and its user's errors as said_by_metaflow says."""
    show_log_lines()
    with said_by_metaflow():
        yield
