"""The preflight: each thing that can be missing is taken away, and the table says so, with the remedy."""

import json
import re
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from conftest import ROOT
from kubernetes_api import TOKEN, Cluster
from metaflow.plugins.aws.aws_utils import get_docker_registry
from ready_cluster import CPU, GPU, GPU_TAINT, Answering, answering, node, ready_cluster

from fast_electra_core.errors import ConfigError
from steps import probe
from steps.checks import Check, as_table
from steps.cluster import TO_CHECK, TO_DEPLOY, TO_RUN, ClusterError
from steps.cluster import Cluster as Connection
from steps.command import main
from steps.inside import image_of
from steps.room import pod_of

PROFILES = ROOT / "infra" / "profiles"
NOT_PULLED = {
    "name": "preflight", "image": "none", "imageID": "", "ready": False, "restartCount": 0,
    "state": {"waiting": {"reason": "ImagePullBackOff"}},
}  # fmt: skip


@pytest.fixture
def mlflow() -> Iterator[Answering]:
    with answering() as found:
        yield found


@pytest.fixture(scope="module")
def bucket(s3_endpoint: str) -> Iterator[Any]:
    """A client of S3 with an empty bucket; nothing here leaves anything there."""
    urllib.request.urlopen(urllib.request.Request(f"{s3_endpoint}/moto-api/reset", method="POST")).close()
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=s3_endpoint, **keys)
    client.create_bucket(Bucket="bucket")
    yield client
    client.close()


@pytest.fixture
def cluster(
    bucket: Any, s3_endpoint: str, mlflow: Answering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**keys, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    with ready_cluster(tmp_path, monkeypatch, s3=s3_endpoint, mlflow=mlflow.url) as found:
        monkeypatch.setenv("METAFLOW_DEFAULT_METADATA", "service")
        monkeypatch.setenv("METAFLOW_SERVICE_URL", "http://metadata.test")
        yield found


@pytest.fixture
def preflight(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command; returns the table in one line, after a look at the exit code."""

    def run(*words: str, code: int = 0, profile: Path = PROFILES / "kubernetes.json") -> str:
        returned = main(["preflight", "--profile", str(profile), *words])
        shown = capsys.readouterr()
        assert returned == code, shown
        return re.sub(r"\s+", " ", shown.out + shown.err)

    return run


def test_where_nothing_is_missing_every_line_is_ok(
    preflight: Callable[..., str], cluster: Cluster, bucket: Any
) -> None:
    shown = preflight("--num_nodes", "2")
    assert "failed" not in shown and "note" not in shown
    assert f"ok cluster Kubernetes 1.37 at {cluster.url}" in shown
    assert "ok may jobs create, get, patch" in shown
    assert "ok JobSet controller jobset.x-k8s.io/v1alpha2 takes a JobSet (rehearsed, not kept)" in shown
    assert "ok service account fast-electra with the role arn:aws:iam::1:role/task" in shown
    assert (
        "Secret fast-electra keys: AWS_ACCESS_KEY_ID, AWS_DEFAULT_REGION, AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_URI"
        in shown
    )
    assert "nodes for light 2 of 3 would take cpu 2, memory 8192M, ephemeral-storage 10240M" in shown
    assert "nodes for pretrain 1 of 3 would take" in shown
    assert "s3://bucket/metaflow can be written, listed, read and deleted from" in shown
    assert cluster.unknown == [] and cluster.jobsets == {} and cluster.jobs == {}
    assert "Contents" not in bucket.list_objects_v2(Bucket="bucket")  # what was written is gone


def test_what_is_asked_of_the_api_is_what_the_document_lists() -> None:
    text = (ROOT / "infra" / "kubernetes" / "permissions.md").read_text()
    asked = [part for part in text.split("\n## ") if part.startswith(("Whoever", "The preflight"))]
    listed = set().union(*(rows(part) for part in asked))
    listed.discard(("authorization.k8s.io", "selfsubjectaccessreviews", ("create",)))  # the way of asking itself
    ours = {(each.group or "core", each.resource, each.verbs) for each in (*TO_RUN, *TO_CHECK, *TO_DEPLOY)}
    assert ours == listed


def rows(part: str) -> set[tuple[str, str, tuple[str, ...]]]:
    found = re.findall(
        r"^\| (?:`([^|`]*)`|(core))(?: \(cluster\))? \| ([^|]*) \| ([a-z, ]+?)(?:,? \*?\*?\(?only.*?)? \|",
        part,
        re.MULTILINE,
    )
    return {
        (group or core, resource, tuple(verbs.split(", ")))
        for group, core, resources, verbs in found
        for resource in re.findall(r"`([^`]+)`", resources)
    }


@pytest.mark.parametrize(
    ("denied", "code", "message"),
    [
        (
            ("create", "jobs"),
            1,
            r"failed may jobs create jobs is not allowed in training -> ask whoever runs the cluster",
        ),
        (("list", "pods"), 1, r"failed may pods list pods is not allowed in training"),
        (
            ("create", "jobsets"),
            0,
            r"note may jobsets create jobsets .*goes steps on several nodes \(--num_nodes above 1\)",
        ),
        (("create", "pods/exec"), 0, r"note may pods/exec create .*goes a gentle stop of running tasks"),
        (("get", "secrets"), 0, r"note Secret fast-electra not looked at: secrets is forbidden"),
        (("list", "nodes"), 0, r"note nodes not looked at: nodes is forbidden"),
        (("list", "limitranges"), 0, r"note quotas not looked at: limitranges is forbidden"),
    ],
)
def test_a_missing_permission_fails_where_nothing_runs_without_it(
    denied: tuple[str, str], code: int, message: str, preflight: Callable[..., str], cluster: Cluster
) -> None:
    cluster.denied.add(denied)
    assert re.search(message, preflight(code=code))


def test_with_several_nodes_jobsets_are_a_must(preflight: Callable[..., str], cluster: Cluster) -> None:
    cluster.denied.add(("delete", "jobsets"))
    assert "failed may jobsets delete jobsets is not allowed" in preflight("--num_nodes", "2", code=1)


def test_exec_is_asked_by_the_verb_of_the_clusters_version(preflight: Callable[..., str], cluster: Cluster) -> None:
    cluster.version = "1.34"
    preflight()
    assert {asked["verb"] for asked in cluster.reviewed if asked.get("subresource") == "exec"} == {"get"}
    assert {asked["name"] for asked in cluster.reviewed if asked["resource"] == "secrets"} == {"fast-electra"}


def no_jobsets(cluster: Cluster) -> None:
    cluster.has_jobsets = False


def dead_controller(cluster: Cluster) -> None:
    cluster.jobset_trouble = (
        'failed calling webhook "mjobset.kb.io": no endpoints available for service "jobset-webhook"'
    )


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (no_jobsets, r"JobSet controller jobset.x-k8s.io/v1alpha2 is not served -> kubectl apply --server-side -k"),
        (
            dead_controller,
            r"installed, and refuses: failed calling webhook .* -> is it running\? kubectl get pods -n jobset",
        ),
    ],
)
def test_a_jobset_controller_that_is_not_there_or_not_alive_is_told_apart(
    trouble: Callable[[Cluster], None], message: str, preflight: Callable[..., str], cluster: Cluster
) -> None:
    trouble(cluster)
    assert re.search(
        f"failed {message}" if "refuses" not in message else message, preflight("--num_nodes", "2", code=1)
    )
    assert re.search("note JobSet controller", preflight())  # one node needs none


def test_secrets_and_accounts_that_are_missing_are_named_with_the_command(
    preflight: Callable[..., str], cluster: Cluster
) -> None:
    cluster.secrets.clear()
    del cluster.service_accounts["fast-electra"]
    shown = preflight(code=1)
    assert 'failed Secret fast-electra secrets "fast-electra" not found -> kubectl create secret generic' in shown
    assert 'failed service account fast-electra serviceaccounts "fast-electra" not found -> kubectl apply -k' in shown


@pytest.mark.parametrize(
    ("nodes", "code", "message"),
    [
        (
            [node("cpu", CPU)],
            0,
            r"note nodes for pretrain none now is labelled fast-electra/pool=gpu; that is right where",
        ),
        (
            [node("cpu", CPU), node("gpu", GPU | {"memory": "60Gi"}, GPU_TAINT)],
            1,
            r"failed nodes for pretrain none of the 1 labelled .* memory is 60Gi -> ask for less in the profile",
        ),
        (
            [node("cpu", CPU), node("gpu", {**GPU, "nvidia.com/gpu": "0"}, GPU_TAINT)],
            1,
            r"nvidia.com/gpu is 0 -> .*is the device plugin there",
        ),
        (
            [node("cpu", CPU), node("gpu", GPU, GPU_TAINT, {"key": "team", "value": "b", "effect": "NoExecute"})],
            1,
            r"the taint team=b:NoExecute is not tolerated",
        ),
        (
            [node("cpu", CPU), node("gpu", GPU, {"key": "soft", "effect": "PreferNoSchedule"})],
            0,
            r"pretrain 1 of 2 would",
        ),
        (
            [node("cpu", CPU, {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"})],
            1,
            r"failed nodes for light .*taint node.kubernetes.io/unschedulable=:NoSchedule is not tolerated",
        ),
    ],
)
def test_pods_that_no_node_would_take_are_told_apart_from_groups_at_zero(
    nodes: list[dict[str, Any]], code: int, message: str, preflight: Callable[..., str], cluster: Cluster
) -> None:
    cluster.nodes = nodes
    assert re.search(message, preflight(code=code))


def test_a_toleration_with_another_value_does_not_help(
    preflight: Callable[..., str], cluster: Cluster, tmp_path: Path
) -> None:
    profile = json.loads((PROFILES / "kubernetes.json").read_text())
    profile["steps"]["pretrain"]["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Equal", "value": "absent"}]
    (tmp_path / "mine.json").write_text(json.dumps(profile))
    shown = preflight(profile=tmp_path / "mine.json", code=1)
    assert "the taint nvidia.com/gpu=present:NoSchedule is not tolerated" in shown


def test_quotas_and_limits_that_refuse_the_pods_fail_and_those_that_are_used_up_are_noted(
    preflight: Callable[..., str], cluster: Cluster
) -> None:
    hard = {"requests.nvidia.com/gpu": "0", "limits.cpu": "16"}
    cluster.quotas = [{"metadata": {"name": "team"}, "spec": {"hard": hard}, "status": {"used": {"limits.cpu": "13"}}}]
    largest = {"type": "Container", "max": {"memory": "64Gi"}}
    cluster.limits = [{"metadata": {"name": "small"}, "spec": {"limits": [largest]}}]
    shown = preflight(code=1)
    assert "failed quota for pretrain requests.nvidia.com/gpu 1, the quota team allows 0 -> ask for less" in shown
    assert "note quota for pretrain limits.cpu 12 would wait: 13 of team's 16 are used" in shown
    assert "failed quota for pretrain memory 98304M, small allows a container 68719476736" in shown
    assert "quota for light" not in shown


def other_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAFLOW_DATASTORE_SYSROOT_S3", "s3://nowhere/metaflow")


def no_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METAFLOW_DATASTORE_SYSROOT_S3")


def local_datastore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METAFLOW_DEFAULT_DATASTORE")


def no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("METAFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")


def closes_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv("METAFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")

    def close_each() -> None:
        with server:
            for _ in range(2):  # as often as the probe tries
                server.accept()[0].close()

    threading.Thread(target=close_each, daemon=True).start()


def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (
            other_bucket,
            r"failed s3, from here s3://nowhere/metaflow: s3:PutObject: .*NoSuchBucket.* -> make the bucket",
        ),
        (
            no_bucket,
            r"METAFLOW_DATASTORE_SYSROOT_S3 must be s3://BUCKET/PREFIX, got '' -> METAFLOW_PROFILE=cloud fast-electra",
        ),
        (local_datastore, r"METAFLOW_DEFAULT_DATASTORE must be s3 for steps in pods, got 'local'"),
        (no_endpoint, r"s3:PutObject: Could not connect to the endpoint URL.* -> is the address right"),
        (closes_connections, r"s3:PutObject: Connection (was closed|reset).* -> is the address right"),
        (no_keys, r"s3:PutObject: Unable to locate credentials -> log in"),
    ],
)
def test_s3_that_does_not_answer_or_is_not_set_fails_with_the_next_move(
    trouble: Callable[[pytest.MonkeyPatch], None],
    message: str,
    preflight: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trouble(monkeypatch)
    assert re.search(message, preflight(code=1))


@pytest.mark.parametrize(
    ("code", "message"), [("AccessDenied", "lacks s3:PutObject there"), ("ExpiredToken", "not valid or no longer")]
)
def test_s3_that_refuses_says_which_action_is_lacking(
    code: str, message: str, preflight: Callable[..., str], mlflow: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.status, mlflow.text = 403, f"<Error><Code>{code}</Code><Message>no</Message></Error>"
    monkeypatch.setenv("METAFLOW_S3_ENDPOINT_URL", mlflow.url)
    assert message in preflight(code=1)


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (401, "", r"answers 401 Unauthorized -> set MLFLOW_TRACKING_USERNAME"),
        (500, "", r"answers 500 Internal Server Error -> look at the server's log"),
        (200, "<html>", r"answers, but not as MLflow does -> give the server's own address"),
    ],
)
def test_an_mlflow_server_that_refuses_or_is_none_fails(
    status: int, text: str, message: str, preflight: Callable[..., str], mlflow: Answering
) -> None:
    mlflow.status, mlflow.text = status, text
    assert re.search(f"failed mlflow, from here {mlflow.url} {message}", preflight(code=1))


def test_mlflows_credentials_are_sent_and_not_shown(
    preflight: Callable[..., str], mlflow: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "planted-password")
    assert "planted" not in preflight()
    path, authorization = mlflow.asked[-1]
    assert path.startswith("/api/2.0/mlflow/experiments/search")
    assert authorization == "Basic bWU6cGxhbnRlZC1wYXNzd29yZA=="  # base64 of me:planted-password


@pytest.mark.parametrize(
    ("uri", "code", "message"),
    [
        (
            "sqlite:///mlflow.db",
            1,
            "a server that every pod reaches is needed, http:// or https://; got sqlite:///mlflow.db",
        ),
        (
            "",
            1,
            # The profile comes first: without it another file is written than is read afterwards.
            "got none -> --tracking_uri; or MLFLOW_TRACKING_URI: METAFLOW_PROFILE=cloud fast-electra metaflow-config "
            r"infra/terraform --write and then export METAFLOW_PROFILE=cloud \(docs/cloud.md\)",
        ),
        (
            "http://mlflow.mlflow.svc.cluster.local:5000",
            0,
            "note mlflow, from here .* -> ask from inside: --from_inside",
        ),
    ],
)
def test_an_mlflow_address_is_looked_at_with_the_pods_eyes(
    uri: str, code: int, message: str, preflight: Callable[..., str]
) -> None:
    assert re.search(message, preflight("--tracking_uri", uri, code=code))


def test_records_that_pods_cannot_reach_are_noted(
    preflight: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "ok metaflow's records with the service at http://metadata.test" in preflight()
    monkeypatch.setenv("METAFLOW_DEFAULT_METADATA", "local")
    shown = preflight()
    assert re.search("note metaflow's records on this machine: .* render no card .* -> every page is in MLflow", shown)


def test_from_inside_a_pod_asks_the_same_and_is_gone_afterwards(
    preflight: Callable[..., str], cluster: Cluster, bucket: Any
) -> None:
    shown = preflight("--from_inside")
    assert "ok s3, from inside s3://bucket/metaflow can be written" in shown and "ok mlflow, from inside" in shown
    assert "note image, from inside a step is not told when its pod is taken away" in shown
    (pod,) = cluster.pods.values()
    (container,) = pod.spec["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] and container["image"] == "fast-electra:cpu"
    assert pod.environment["AWS_SECRET_ACCESS_KEY"] == "testing"
    assert cluster.jobs == {} and cluster.unknown == []


def test_from_inside_the_projects_own_image_is_known_to_tell_its_steps(
    preflight: Callable[..., str], cluster: Cluster
) -> None:
    cluster.image["BASH_ENV"] = "/opt/tell_step.sh"
    assert "ok image, from inside a step is told when its pod is taken away" in preflight("--from_inside")


def test_from_inside_other_credentials_count_than_those_from_here(
    preflight: Callable[..., str], cluster: Cluster
) -> None:
    cluster.secrets["fast-electra"] = {"AWS_DEFAULT_REGION": "us-east-1"}
    shown = preflight("--from_inside", code=1)
    assert "ok s3, from here" in shown
    assert re.search(
        r"failed s3, from inside .*Unable to locate credentials -> .*inside a cluster: a role on the", shown
    )


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (
            {"phase": "Pending", "containerStatuses": [NOT_PULLED]},
            "failed from inside ImagePullBackOff -> push the image",
        ),
        (
            {
                "phase": "Pending",
                "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}],
            },
            r"failed from inside no answer after 0.01 minutes: Unschedulable: -> wait longer \(--wait_minutes\)",
        ),
    ],
)
def test_a_pod_that_does_not_start_says_why_and_is_removed(
    status: dict[str, Any], message: str, preflight: Callable[..., str], cluster: Cluster
) -> None:
    cluster.pod_trouble = status
    assert re.search(message, preflight("--from_inside", "--wait_minutes", "0.01", code=1))
    assert cluster.jobs == {}


def test_a_job_that_is_refused_and_an_image_without_python_are_said(
    preflight: Callable[..., str], cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "__file__", str(ROOT / "infra" / "README.md"))  # no program
    shown = preflight("--from_inside", code=1)
    assert re.search(r"failed from inside the pod's last words: SyntaxError.* \(exit code 1, Error\) -> has", shown)
    cluster.denied.add(("create", "jobs"))
    assert "failed from inside the Job is refused: jobs is forbidden" in preflight("--from_inside", code=1)


def test_a_container_that_could_not_be_started_says_why(preflight: Callable[..., str], cluster: Cluster) -> None:
    ended = {"exitCode": 128, "reason": "StartError", "message": "no such user"}  # as Kubernetes 1.20 puts it
    cluster.pod_trouble = {"phase": "Failed", "containerStatuses": [NOT_PULLED | {"state": {"terminated": ended}}]}
    shown = preflight("--from_inside", code=1)
    assert "failed from inside the pod's last words: (none) (exit code 128, StartError, no such user)" in shown
    assert cluster.jobs == {}


def test_a_log_that_cannot_be_read_is_a_failed_check(preflight: Callable[..., str], cluster: Cluster) -> None:
    cluster.denied.add(("get", "pods/log"))
    shown = preflight("--from_inside", code=1)
    assert re.search(r"failed from inside the pod's log cannot be read: pods/log is forbidden.* -> this needs", shown)
    assert cluster.jobs == {}


def wrong_token(cluster: Cluster) -> str:
    return Path(cluster.kubeconfig()).read_text().replace(TOKEN, "old")


def dead_server(cluster: Cluster) -> str:
    return Path(cluster.kubeconfig()).read_text().replace(cluster.url, "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (wrong_token, "does not know you (401): log in again"),
        (dead_server, "http://127.0.0.1:9 does not answer"),
        (lambda cluster: "{}", "no way to a cluster is known"),
    ],
)
def test_a_cluster_that_cannot_be_asked_is_one_line_and_exit_code_2(
    config: Callable[[Cluster], str],
    message: str,
    preflight: Callable[..., str],
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "other").write_text(config(cluster))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "other"))
    shown = preflight(code=2)
    assert shown.startswith("fast-electra preflight: ") and message in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--num_nodes", "0"), "num_nodes must be > 0, got 0"),
        (("--wait_minutes", "nan"), "wait_minutes must be > 0, got nan"),
        (("--profile", "nowhere.json"), "no profile can be read at nowhere.json"),
        (
            ("--profile", str(PROFILES / "local.json")),
            "has runs_on 'local', and 'kubernetes' is needed; give another --profile",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(words: tuple[str, ...], message: str, preflight: Callable[..., str]) -> None:
    assert message in preflight(*words, code=2)


def test_settings_come_from_metaflows_config_file_too(
    preflight: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "metaflow_home"
    home.mkdir()
    (home / "config.json").write_text(json.dumps({"METAFLOW_DATASTORE_SYSROOT_S3": "s3://bucket/other"}))
    monkeypatch.delenv("METAFLOW_DATASTORE_SYSROOT_S3")
    assert "s3://bucket/other can be written" in preflight()
    (home / "config.json").write_text("{")
    assert f"Metaflow's config file {home}/config.json cannot be read" in preflight(code=2)


def test_images_get_the_registry_that_is_set_unless_they_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAFLOW_DEFAULT_CONTAINER_REGISTRY", "registry.test/team/")
    assert image_of({"image": "fast-electra:cpu"}) == "registry.test/team/fast-electra:cpu"
    assert image_of({"image": "ghcr.io/x/y:1"}) == "ghcr.io/x/y:1"
    for image in ("fast-electra", "x/y:1", "localhost/y:1", "localhost:5000/y:1", "x/y.z/a:1", "x/y.z:1", "Host:1/y"):
        is_kept = get_docker_registry(image) is not None  # as Metaflow sees it
        assert image_of({"image": image}) == (image if is_kept else f"registry.test/team/{image}")


def test_the_table_keeps_remedies_below_what_they_remedy() -> None:
    shown = as_table([Check("a", "ok", "fine"), Check("longer", "failed", "broken", "mend it")])
    assert shown == "ok      a       fine\nfailed  longer  broken\n                -> mend it"


@pytest.mark.parametrize(
    ("denied", "message"),
    [
        (("list", "pods"), "failed from inside the pod cannot be looked at: pods is forbidden"),
        (
            ("delete", "jobs"),
            "note from inside the Job fast-electra-preflight-.* stays for 10 minutes: jobs is forbid",
        ),
    ],
)
def test_what_is_not_allowed_while_the_pod_asks_is_said_beside_all_else(
    denied: tuple[str, str], message: str, preflight: Callable[..., str], cluster: Cluster
) -> None:
    cluster.denied.add(denied)
    shown = preflight("--from_inside", code=1 if denied == ("list", "pods") else 0)
    assert re.search(message, shown), shown
    assert "ok s3, from here" in shown


def test_from_inside_the_profiles_environment_counts_and_metaflows_settings_do(
    preflight: Callable[..., str], cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_endpoint: str
) -> None:
    """As for a step: the endpoint of S3 may stand in the profile, and what it leaves out in Metaflow's settings."""
    monkeypatch.delenv("METAFLOW_S3_ENDPOINT_URL")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("METAFLOW_KUBERNETES_NODE_SELECTOR", "fast-electra/pool=cpu")
    monkeypatch.setenv("METAFLOW_KUBERNETES_TOLERATIONS", '[{"key": "team", "operator": "Exists"}]')
    monkeypatch.setenv("METAFLOW_KUBERNETES_IMAGE_PULL_SECRETS", '["pull"]')
    environment = {"AWS_ENDPOINT_URL": s3_endpoint}
    profile = {"runs_on": "kubernetes", "every_step": {"secrets": ["fast-electra"], "environment": environment}}
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile))
    shown = preflight("--from_inside", "--profile", str(path))
    assert f"can be written, listed, read and deleted from by {s3_endpoint}" in shown.partition("s3, from inside")[2]
    (pod,) = cluster.pods.values()
    assert pod.spec["nodeSelector"] == {"fast-electra/pool": "cpu"}
    assert pod.spec["tolerations"] == [{"key": "team", "operator": "Exists"}]
    assert pod.spec["imagePullSecrets"] == [{"name": "pull"}]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("METAFLOW_KUBERNETES_CPU", "many", "METAFLOW_KUBERNETES_CPU must be a number, got 'many'"),
        ("METAFLOW_KUBERNETES_NODE_SELECTOR", "cpu", "NODE_SELECTOR must be LABEL=VALUE, .* got 'cpu'"),
        ("METAFLOW_KUBERNETES_TOLERATIONS", "5", "METAFLOW_KUBERNETES_TOLERATIONS must be a JSON list, got '5'"),
    ],
)
def test_settings_of_metaflow_that_cannot_be_read_are_named(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("METAFLOW_HOME", str(tmp_path))
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        pod_of({"runs_on": "kubernetes"}, "light")


def test_a_kubeconfig_that_is_no_yaml_leads_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text("a: [")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with pytest.raises(ClusterError, match=r"(?s)no way to a cluster is known: while parsing .*let KUBECONFIG name"):
        Connection()
