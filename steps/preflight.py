"""Would flows run on the cluster? Permissions, JobSets, Secrets, nodes, S3 and MLflow, each with its remedy.

    fast-electra preflight
    fast-electra preflight --profile infra/profiles/kubernetes-spot.json --num_nodes 2
    fast-electra preflight --from_inside

It changes nothing, but for an object in S3 that it writes and deletes, and with --from_inside a Job that asks S3 and
MLflow as a light step would. Exit code: 0 if all is well or only noted, 1 if something failed, 2 if the cluster cannot
be asked at all.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fast_electra_core.errors import ConfigError
from steps import cluster_checks as ask
from steps import probe
from steps.checks import Check, as_table, failed
from steps.cluster import Cluster
from steps.inside import ask_from_inside
from steps.metaflow_settings import HOW_TO_SET, setting
from steps.profile import parse_profile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `fast-electra preflight` takes."""
    parser.add_argument(
        "--profile", default="infra/profiles/kubernetes.json", help="where each kind of step runs [%(default)s]"
    )
    parser.add_argument(
        "--num_nodes", type=int, default=1, help="nodes of a training; above 1 JobSets must work [%(default)s]"
    )
    parser.add_argument(
        "--tracking_uri",
        default=None,
        help="the MLflow server of the steps [MLFLOW_TRACKING_URI, of the environment or Metaflow's config file]",
    )
    parser.add_argument("--from_inside", action="store_true", help="ask S3 and MLflow from a pod, too (a minute)")
    parser.add_argument(
        "--wait_minutes",
        type=float,
        default=15.0,
        help="how long that pod may take, its node's start included [%(default)g]",
    )


def run(arguments: argparse.Namespace) -> int:
    """`fast-electra preflight`.

    Raises:
        ConfigError: no such profile, or one that needs no cluster; a number out of range.
        ClusterError: the cluster cannot be asked.
    """
    for name in ("num_nodes", "wait_minutes"):
        if not getattr(arguments, name) > 0:
            raise ConfigError(f"{name} must be > 0, got {getattr(arguments, name)}")
    profile = read_profile(arguments.profile)
    addresses = {"s3": setting("METAFLOW_DATASTORE_SYSROOT_S3"), "mlflow": tracking_uri(arguments.tracking_uri)}
    cluster = Cluster()
    checks = check_cluster(cluster, profile, needs_jobsets=arguments.num_nodes > 1)
    checks += [check_s3(addresses["s3"]), check_mlflow(addresses["mlflow"], given_by="--tracking_uri"), check_records()]
    if arguments.from_inside:
        asked = {name: address for name, address in addresses.items() if address.startswith(("s3://", "http"))}
        for namespace in ask.namespaces_of(profile):
            seconds = 60 * arguments.wait_minutes
            checks += ask_from_inside(cluster, profile, namespace, asked, wait_seconds=seconds)
    print(as_table(checks))
    return 1 if failed(checks) else 0


def read_profile(path: str, place: str = "kubernetes") -> dict[str, Any]:
    """A profile that runs there.

    Raises:
        ConfigError: it cannot be read or used, or runs elsewhere.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"no profile can be read at {path}: {error.strerror}. Those of infra/profiles are some"
        ) from error
    profile = parse_profile(text)
    if profile["runs_on"] != place:
        raise ConfigError(f"{path} has runs_on {profile['runs_on']!r}, and {place!r} is needed; give another --profile")
    return profile


def tracking_uri(given: str | None) -> str:
    """The MLflow server that was given, else the one that is set; empty if there is none."""
    return given if given is not None else setting("MLFLOW_TRACKING_URI")


def check_cluster(
    cluster: Cluster, profile: Mapping[str, Any], *, needs_jobsets: bool, deploys: bool = False
) -> list[Check]:
    """All that is asked of the cluster itself."""
    version = cluster.version()
    checks = [Check("cluster", "ok", f"Kubernetes {version[0]}.{version[1]} at {cluster.address}")]
    for namespace in ask.namespaces_of(profile):
        checks += ask.check_permissions(cluster, profile, namespace, needs_jobsets=needs_jobsets, deploys=deploys)
        checks.append(ask.check_jobsets(cluster, namespace, needed=needs_jobsets))
        checks += ask.check_service_accounts(cluster, profile, namespace, deploys=deploys)
        checks += ask.check_secrets(cluster, profile, namespace)
        checks += ask.check_room(cluster, profile, namespace)
    return checks


def check_s3(address: str) -> Check:
    """Does S3 answer from here, and is it what Metaflow is set to use?"""
    what, remedy = "s3, from here", HOW_TO_SET
    if not address.startswith("s3://"):
        said = f"METAFLOW_DATASTORE_SYSROOT_S3 must be s3://BUCKET/PREFIX, got {address!r}"
        return Check(what, "failed", said, remedy)
    kind = setting("METAFLOW_DEFAULT_DATASTORE", "local")
    if kind != "s3":
        return Check(what, "failed", f"METAFLOW_DEFAULT_DATASTORE must be s3 for steps in pods, got {kind!r}", remedy)
    return Check(what, *probe.ask_s3(address))  # type: ignore[arg-type]


def check_mlflow(uri: str, *, given_by: str) -> Check:
    """Does the tracking server answer from here, and could pods share it? given_by: where the command takes it."""
    what = "mlflow, from here"
    if not uri.startswith("http"):
        said = f"a server that every pod reaches is needed, http:// or https://; got {uri or 'none'}"
        return Check(what, "failed", said, f"{given_by}; or MLFLOW_TRACKING_URI: {HOW_TO_SET}")
    return Check(what, *probe.ask_mlflow(uri))  # type: ignore[arg-type]


def check_records() -> Check:
    """Are Metaflow's own records with its service, where pods can read them?"""
    what, address = "metaflow's records", setting("METAFLOW_SERVICE_URL")
    if setting("METAFLOW_DEFAULT_METADATA", "local") == "service" and address:
        return Check(what, "ok", f"with the service at {address}")
    said = "on this machine: pods do not find their own run, and log that they render no card and tag no run"
    return Check(what, "note", said, "every page is in MLflow all the same; otherwise Metaflow's metadata service")
