"""Who is champion, decided once though several decide at the same time.

An alias of MLflow's is set by whoever writes last. A run's parameter is different: once written it cannot be changed,
and of two that write one at the same moment the database lets one through. So the champions of a registered model are
listed as parameters `champion.0001`, `champion.0002`, ... of one run, the ledger: whoever writes the next number has
decided, and the alias only follows. The ledger is also the history that a rollback goes back in. docs/decisions/0008.
"""

import datetime
import time
from typing import Any, NamedTuple

from fast_electra_core.errors import TrackingError
from steps.tracking.connection import ask, ask_for, connected_uri, mlflow_client
from steps.tracking.registry import no_such_model

CHAMPION = "champion"
LEDGER_TAG = "champions.of"
WAIT_SECONDS = 10.0
"""How long a champion that is in the ledger may take to get the alias, before the alias is believed."""
_PARAMETER = "champion."
_NOBODY = "none"


class Entry(NamedTuple):
    """One line of the ledger."""

    version: str | None
    """None: the alias had been taken away."""
    how: str
    """promoted, restored (by a rollback), or found: the alias was set by other means."""
    at: str
    """UTC, ISO 8601."""


class Throne(NamedTuple):
    """Ledger and alias of a registered model at a moment when they agree."""

    name: str
    ledger: str
    """The id of the run."""
    entries: tuple[Entry, ...]

    @property
    def champion(self) -> str | None:
        """The version that is champion."""
        return self.entries[-1].version if self.entries else None

    def before(self) -> str | None:
        """The version that was champion before the present one, as a rollback sees it: what was rolled back is not
        gone back to."""
        stack: list[str] = []
        for entry in self.entries:
            if entry.version is None:
                continue
            if entry.how == "restored" and entry.version in stack:
                while stack[-1] != entry.version:  # back to its last time: it may have been champion before that, too
                    stack.pop()
            elif stack[-1:] != [entry.version]:
                stack.append(entry.version)
        return stack[-2] if len(stack) > 1 else None


def throne(name: str) -> Throne:
    """Ledger and alias, once they agree: a champion in the ledger is waited for, WAIT_SECONDS long; after that, what
    the alias says is entered as found."""
    _alias(name)  # the model is there
    waiting_for, since = 0, time.monotonic()
    while True:
        ledger = _find_ledger(name) or _create_ledger(name)
        entries, seated = _entries(ledger), _alias(name)
        last = entries[-1].version if entries else None
        if last == seated:
            return Throne(name, ledger, entries)
        if len(entries) != waiting_for:
            waiting_for, since = len(entries), time.monotonic()
        if entries and time.monotonic() - since < WAIT_SECONDS:
            time.sleep(0.2)
        else:
            _write(ledger, len(entries) + 1, seated or _NOBODY, "found")


def claim(seen: Throne, version: str, how: str) -> bool:
    """The version is champion, in ledger and alias; False if another has become champion since `seen`.

    The decision is looked at again after it was written: an alias that another has set meanwhile, from a later line
    of the ledger, is put right.
    """
    number = len(seen.entries) + 1
    if not _write(seen.ledger, number, version, how):
        return False
    while True:
        ledger = _find_ledger(seen.name) or seen.ledger
        entries = _entries(ledger)
        last = entries[-1].version if entries else None
        if last is not None and _alias(seen.name) != last:
            _seat(seen.name, last)
            continue
        # Two that opened a ledger at the same time: the older one holds, and this decision was not made in it.
        return ledger == seen.ledger and len(entries) == number


def _seat(name: str, version: str) -> None:
    ask(f"set the alias {CHAMPION}", mlflow_client().set_registered_model_alias, name, CHAMPION, version)


def _alias(name: str) -> str | None:
    found = ask("list models", mlflow_client().search_registered_models, f"name='{name}'")
    if not found:
        raise no_such_model(name)
    number = found[0].aliases.get(CHAMPION)
    return None if number is None else str(number)


def _write(ledger: str, number: int, version: str, how: str) -> bool:
    """Whether this line is ours now."""
    from mlflow.exceptions import MlflowException

    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    key, value = f"{_PARAMETER}{number:04}", f"{version} {how} {at}"

    def write_once() -> bool:
        try:
            mlflow_client().log_param(ledger, key, value)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
        # Asked again, whatever the answer was: ours may have arrived though its confirmation was lost.
        return bool(mlflow_client().get_run(ledger).data.params.get(key) == value)

    return bool(ask("enter a champion", write_once))


def _entries(ledger: str) -> tuple[Entry, ...]:
    params = ask("read the champions", mlflow_client().get_run, ledger).data.params
    lines = [params[key].split(" ") for key in sorted(params) if key.startswith(_PARAMETER)]
    return tuple(Entry(None if version == _NOBODY else version, how, at) for version, how, at in lines)


def _find_ledger(name: str) -> str | None:
    """The oldest run that is the model's ledger, in whichever experiment."""
    client = mlflow_client()
    experiments = [each.experiment_id for each in ask("list experiments", _all_experiments)]
    condition = f"tags.`{LEDGER_TAG}` = '{name}'"
    found = ask("look for the champions", client.search_runs, experiments, condition, max_results=100)
    runs = sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))
    return str(runs[0].info.run_id) if runs else None


def _all_experiments() -> list[Any]:
    found, token = [], None
    while True:
        page = mlflow_client().search_experiments(max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _create_ledger(name: str) -> str:
    """A run in the experiment of the model's newest version whose own run is still there."""
    client = mlflow_client()
    versions = ask("list model versions", client.search_model_versions, f"name='{name}'")
    run_ids = [each.run_id for each in sorted(versions, key=lambda each: -int(each.version)) if each.run_id]
    runs = (ask_for("find the experiment", client.get_run, run_id) for run_id in run_ids)
    experiment = next((run.info.experiment_id for run in runs if run is not None), None)
    if experiment is None:
        raise TrackingError(
            f"no version of {name!r} at {connected_uri()} has a run, so there is no place for its history"
        )
    note = (
        f"The champions of {name} in their order, as parameters; written by promotions and rollbacks. Do not delete it."
    )
    tags = {LEDGER_TAG: name, "mlflow.note.content": note}
    made = ask("open a run", client.create_run, experiment, tags=tags, run_name=f"champions of {name}")
    ask("end a run", client.set_terminated, made.info.run_id)
    return _find_ledger(name) or str(made.info.run_id)
