"""Tells a webhook how a flow's run has ended. Imports nothing but the standard library.

The URL is often a secret, so it is no parameter: it stands in the environment variable WEBHOOK of the machine where
the flow ends (on a cluster from a Kubernetes Secret), and in nothing that this module prints or raises.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message
from typing import IO, Any
from urllib.parse import urlsplit

from fast_electra_core.errors import ConfigError

WEBHOOK = "FAST_ELECTRA_WEBHOOK"
TIMEOUT_SECONDS = 10.0
PAUSES = (1.0, 2.0, 4.0)
"""Seconds between the attempts: one more than there are pauses. Only what may pass is tried again: answers from 500 on,
429, and no answer."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """What is sent is not carried to wherever an answer points."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


def url_given() -> str:
    """The URL in the environment; empty where there is none.

    Raises:
        ConfigError: it is no http:// or https:// URL; it is not shown.
    """
    url = os.environ.get(WEBHOOK, "").strip()
    if url and not _is_http(url):
        raise ConfigError(f"{WEBHOOK} must be an http:// or https:// URL; what it holds is not shown")
    return url


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return url.isprintable() and " " not in url and parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


def message(run: str, status: str, outcome: Mapping[str, Any] | None = None, words: str = "") -> dict[str, Any]:
    """What is posted: flow, run, status (succeeded or failed), outcome (None where it cannot be read from here), and
    text, which chats show."""
    return {
        "flow": run.partition("/")[0],
        "run": run,
        "status": status,
        "outcome": None if outcome is None else dict(outcome),
        "text": words or f"{run} {status}",
    }


def post(url: str, content: Mapping[str, Any]) -> str:
    """Post the content as JSON; returns in words, without the URL, how that went: `told` first, or `not told`."""
    body = json.dumps(content).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", "User-Agent": "fast-electra"})
    opener = urllib.request.build_opener(_NoRedirects)
    problem = ""
    for attempt, pause in enumerate((*PAUSES, None), start=1):
        try:
            with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                return f"told the webhook ({answer.status}, attempt {attempt})"
        except urllib.error.HTTPError as error:
            error.close()
            problem = f"it answered {error.code}"
            if error.code < 500 and error.code != 429:
                break
        except (OSError, ValueError, http.client.HTTPException) as error:  # whose words may hold the URL
            problem = f"no answer ({type(error).__name__})"
        if pause is not None:
            time.sleep(pause)
    return f"not told: {problem}, after {attempt} attempt{'s' if attempt > 1 else ''}"
