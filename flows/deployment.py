"""When a flow runs by itself, and who is told of its end: the Config `deployment`, and the decorators it makes.

python flows/retrain_flow.py --config-value deployment '{"cron": "0 3 * * 1"}' argo-workflows create
python flows/retrain_flow.py --config-value deployment '{"event": "new-text"}' argo-workflows create
"""

import json
import os
import sys
from typing import Any

from metaflow import Config, FlowMutator

from said import said_by_metaflow
from steps.deployment import WEEKLY, decorators, parse_deployment

HELP = 'When the flow runs by itself, as JSON: {"cron": FIVE FIELDS, "timezone": NAME}, {"event": NAME} or {}.'
_SCHEDULERS = ("argo-workflows", "step-functions")
SCHEDULER = next((name for name in _SCHEDULERS if name in sys.argv), "")
"""The scheduler that this command deploys to or asks; empty in a plain run."""
ON_STEP_FUNCTIONS = SCHEDULER == "step-functions" or "SFN_STATE_MACHINE" in os.environ
"""Whether this is AWS Step Functions' graph: of a deploying command, and of every job that it starts, in whose
environment Metaflow puts that name."""


def deployment_config() -> Config:
    """The Config `deployment`; weekly by default."""
    return Config("deployment", default_value=json.dumps(WEEKLY), parser=_parse, plain=True, help=HELP)


class on_deployment(FlowMutator):
    """The flow is scheduled or triggered as the deployment says; after a run the hooks are called, where the scheduler
    has such: functions of a module, which the flow's file must import by name."""

    def init(self, *, hooks: str, on_success: str, on_error: str) -> None:
        self._hooks = {"on_success": on_success, "on_error": on_error}
        # Locally they are found by their path: the flow's file is looked for in the folder that one is in. On Argo they
        # name a template, which must have no dot, and the file is where they are looked for.
        self._prefix = "" if SCHEDULER == "argo-workflows" else f"{hooks}."

    def pre_mutate(self, flow) -> None:
        """Decorate the flow."""
        scheduler = "step-functions" if ON_STEP_FUNCTIONS else SCHEDULER
        with said_by_metaflow():
            found = decorators(dict(flow.configs)["deployment"], scheduler=scheduler)
        if not ON_STEP_FUNCTIONS:  # which has no exit hooks
            found["exit_hook"] = {when: [f"{self._prefix}{name}"] for when, name in self._hooks.items()}
        for name, arguments in found.items():
            flow.add_decorator(name, deco_kwargs=arguments)


def _parse(text: str) -> dict[str, Any]:
    with said_by_metaflow():
        return parse_deployment(text)
