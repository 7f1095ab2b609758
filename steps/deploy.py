"""Put a flow on Argo Workflows or AWS Step Functions: whole, or not at all.

    fast-electra deploy flows/retrain_flow.py --to argo-workflows --defaults weekly.json
    fast-electra deploy flows/retrain_flow.py --to argo-workflows --config_value deployment '{"event": "new-text"}'
    fast-electra deploy flows/retrain_flow.py --to step-functions --defaults weekly.json --create=--max-workers=20
    fast-electra deploy flows/pretrain_flow.py --to argo-workflows --only_json

It looks first at all that the runs will need, as `fast-electra preflight` does, and rehearses the template and its
schedule; then the flow's own `argo-workflows create` or `step-functions create` runs. If that stops half-way, what was
there before is put back. A schedule gives no parameters: those of its runs are in --defaults, {"corpus": "s3://…", …}.
Exit code: 0; 1 if a check or the deployment failed; 2 if nothing could be asked.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fast_electra_core.errors import ConfigError
from steps import argo
from steps import step_functions as aws
from steps.checks import Check, as_table, failed
from steps.cluster import Cluster
from steps.cluster_checks import check_reaches_mlflow
from steps.metaflow_settings import setting
from steps.preflight import check_cluster, check_mlflow, check_s3, read_profile, tracking_uri

PLACES = {"argo-workflows": "kubernetes", "step-functions": "batch"}
"""Where the schedulers start their tasks."""
# By itself every task on Argo tells Argo Events that it has ended: for five minutes, with its GPU, where a network
# policy lets nothing through to there. No flow here waits for that; --create=--auto-emit-argo-events has it back.
_UNASKED = {"argo-workflows": ["--no-auto-emit-argo-events"]}


class Flow(NamedTuple):
    """How a flow's file is called."""

    file: str
    configs: tuple[str, ...]
    """Its words before the command."""
    name: str
    """Of the deployment; empty: the flow's own."""
    words: tuple[str, ...]
    """Handed on to `create`."""

    def command(self, scheduler: str, *words: str) -> list[str]:
        """The arguments of a process: no shell reads them."""
        named = ["--name", self.name] if self.name else []
        given = [*_UNASKED.get(scheduler, ()), *self.words, *words]
        return [sys.executable, self.file, *self.configs, scheduler, *named, "create", *given]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `fast-electra deploy` takes."""
    parser.add_argument("flow", help="the flow's file")
    parser.add_argument("--to", required=True, choices=PLACES, help="where to")
    parser.add_argument(
        "--profile", default=None, help="where each kind of step runs [infra/profiles/kubernetes.json, or batch.json]"
    )
    parser.add_argument("--defaults", default=None, help="file with the parameters of runs that give none, as JSON")
    parser.add_argument("--name", default="", help="of the deployment; two of one flow need two [the flow's own]")
    for option, value in (("--config", "FILE"), ("--config_value", "JSON")):
        parser.add_argument(
            option, nargs=2, action="append", default=[], metavar=("CONFIG", value), help="another Config of the flow"
        )
    parser.add_argument(
        "--only_json",
        action="store_true",
        help="print what would be submitted, and deploy nothing; job definitions of AWS Batch are made all the same",
    )
    parser.add_argument(
        "--create",
        action="append",
        default=[],
        metavar="WORD",
        help="a word for the flow's own `create`, by --create=WORD",
    )


def run(arguments: argparse.Namespace) -> int:
    """`fast-electra deploy`.

    Raises:
        ConfigError: no such flow, or files that cannot be used.
        ClusterError: the cluster cannot be asked.
    """
    if not Path(arguments.flow).is_file():
        raise ConfigError(f"no flow can be read at {arguments.flow}; those of flows/ are some")
    defaults = _read_defaults(arguments.defaults)
    configs = [("--config", *pair) for pair in arguments.config]
    configs += [("--config-value", *pair) for pair in arguments.config_value]
    if arguments.defaults is not None:
        configs.append(("--config", "defaults", arguments.defaults))
    path = arguments.profile or f"infra/profiles/{PLACES[arguments.to]}.json"
    configs.append(("--config", "profile", path))
    flow = Flow(arguments.flow, tuple(sum(configs, ())), arguments.name, tuple(arguments.create))
    profile = read_profile(path, PLACES[arguments.to])
    places = [check_s3(setting("METAFLOW_DATASTORE_SYSROOT_S3"))]  # where `create` puts the code
    if not arguments.only_json:
        uri = str(defaults["tracking_uri"]) if "tracking_uri" in defaults else tracking_uri(None)
        places += [*_check_places(defaults), check_mlflow(uri, given_by='"tracking_uri" in the file of --defaults')]
    if arguments.to == "step-functions":
        places += aws.check_aws(profile)  # Metaflow makes job definitions even for --only-json
    if failed(places):
        return _stop(places)
    described = _describe(flow, arguments.to)
    if arguments.only_json:
        print(json.dumps(described, indent=2))
        return 0
    if arguments.to == "argo-workflows":
        return _to_argo(flow, described, profile, defaults, places)
    places.append(aws.check_reaches_mlflow(profile, defaults.get("tracking_uri")))
    return _to_step_functions(flow, described, places)


def _to_argo(
    flow: Flow,
    template: Mapping[str, Any],
    profile: Mapping[str, Any],
    defaults: Mapping[str, Any],
    places: list[Check],
) -> int:
    cluster, namespace = Cluster(), setting("METAFLOW_KUBERNETES_NAMESPACE", "default")
    checks = check_cluster(cluster, profile, needs_jobsets=defaults.get("num_nodes", 1) > 1, deploys=True)
    checks.append(check_reaches_mlflow(cluster, profile, namespace, defaults.get("tracking_uri")))
    of_argo, is_list = argo.check_argo(cluster, namespace, template)
    checks += [*places, *of_argo]
    if failed(checks):
        return _stop(checks)
    plan = argo.planned(template)
    return _whole_or_not(
        checks,
        submit=lambda: _create(flow, "argo-workflows", **{argo.USE_SCHEDULES: str(is_list)}),
        look=lambda: argo.present(cluster, namespace, plan),
        missing=lambda there: argo.missing(plan, namespace, there),
        restore=lambda before: argo.restore(cluster, before),
    )


def _to_step_functions(flow: Flow, machine: Mapping[str, Any], places: list[Check]) -> int:
    name = aws.name_of(machine)
    checks = [*places, aws.check_size(machine)]
    if failed(checks):
        return _stop(checks)
    return _whole_or_not(
        checks,
        submit=lambda: _create(flow, "step-functions"),
        look=lambda: aws.present(name),
        missing=aws.missing,
        restore=lambda before: aws.restore(name, before),
    )


def _whole_or_not(
    checks: list[Check],
    *,
    submit: Callable[[], bool],
    look: Callable[[], Any],
    missing: Callable[[Any], list[str]],
    restore: Callable[[Any], list[str]],
) -> int:
    """Submit; where that fails, is interrupted, or leaves something out, put back what was there before."""
    print(as_table(checks), flush=True)
    before, whole = look(), False
    try:
        if submit():
            left_out = missing(look())
            for what in left_out:
                print(f"`create` said nothing of it, and {what} is missing", file=sys.stderr)
            whole = not left_out
    finally:
        if not whole:
            print("the deployment stopped half-way:", *restore(before), sep="\n  ", file=sys.stderr)
    return 0 if whole else 1


def _create(flow: Flow, scheduler: str, **settings: str) -> bool:
    """Run the flow's own `create`, its output on this terminal; whether it went well."""
    return subprocess.run(flow.command(scheduler), env=os.environ | settings).returncode == 0


def _stop(checks: list[Check]) -> int:
    print(as_table(checks))
    print("\nnothing was deployed")
    return 1


def _describe(flow: Flow, scheduler: str) -> dict[str, Any]:
    """What `create` would submit.

    Raises:
        ConfigError: the flow refuses; its words are in the message.
    """
    done = subprocess.run(flow.command(scheduler, "--only-json"), capture_output=True, text=True)
    described = re.search(r"^\{.*", done.stdout, re.DOTALL | re.MULTILINE)  # after what Metaflow has to say
    if done.returncode or described is None:
        said = "\n".join(line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip())
        raise ConfigError(f"{flow.file} cannot be described for {scheduler}:\n{said}")
    return dict(json.loads(described[0]))


def _read_defaults(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"no parameters can be read at {path}: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} must hold an object of parameters, got {found!r:.80}")
    return found


def _check_places(defaults: Mapping[str, Any]) -> list[Check]:
    """Are text and files where every machine reaches them?"""
    checks = []
    remedy = 'name it in --defaults FILE: {"corpus": "s3://BUCKET/text/", "store": "s3://BUCKET/store"}'
    for name, allowed in (("store", ("s3://",)), ("corpus", ("s3://", "hub:", "pydocs"))):
        value = str(defaults.get(name, ""))
        if value.startswith(allowed):
            checks.append(Check(name, "ok", value))
        else:
            said = f"must start with one of {', '.join(allowed)}, which every machine reaches; got {value or 'none'}"
            checks.append(Check(name, "failed", said, remedy))
    return checks
