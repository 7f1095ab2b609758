"""Profiles: what a file of infra/profiles/ may say, and what becomes of it."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Workspace

from fast_electra_core.errors import ConfigError
from steps.profile import KINDS, LOCAL, check_datastore, check_profile, decorators, options_of, parse_profile

FOLDER = ROOT / "infra" / "profiles"
ON_CLUSTER = ("kubernetes", "kubernetes-spot")


def profile_named(name: str) -> dict[str, Any]:
    return parse_profile((FOLDER / f"{name}.json").read_text())


def on_kubernetes(**pretrain: Any) -> dict[str, Any]:
    return {"runs_on": "kubernetes", "steps": {"pretrain": pretrain}}


def test_the_profiles_are_local_batch_kubernetes_and_kubernetes_spot() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == {"local", "batch", *ON_CLUSTER}


def test_the_default_in_the_code_is_the_local_profile() -> None:
    assert profile_named("local") == LOCAL


def test_the_local_profile_decorates_nothing() -> None:
    assert [decorators(LOCAL, kind, step="any") for kind in KINDS] == [{}] * len(KINDS)


@pytest.mark.parametrize("name", ON_CLUSTER)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_a_cluster_profile_is_bounded_and_unprivileged(name: str, kind: str) -> None:
    options = decorators(profile_named(name), kind, step="any")["kubernetes"]
    security = options["security_context"]
    assert options["qos"] == "Guaranteed"  # limits are set, and are what is requested
    assert {"image", "cpu", "memory", "disk", "service_account", "secrets", "node_selector"} <= set(options)
    assert security["run_as_non_root"] and security["run_as_user"] > 0
    assert security["allow_privilege_escalation"] is False and security["capabilities"] == {"drop": ["ALL"]}
    assert not security.get("privileged")
    if security.get("read_only_root_filesystem"):  # then there must be a place that can be written
        assert options["tmpfs_path"] == "/tmp"


def test_only_the_spot_profile_goes_to_nodes_that_are_taken_away() -> None:
    assert "spot" not in json.dumps(profile_named("kubernetes"))
    kinds = {kind for kind in KINDS if "spot" in json.dumps(options_of(profile_named("kubernetes-spot"), kind))}
    assert kinds == set(KINDS) - {"light"}


def test_what_a_kind_says_is_added_to_what_is_said_of_every_step() -> None:
    profile = {
        "runs_on": "kubernetes",
        "every_step": {"cpu": 1, "memory": 100, "labels": {"a": "1", "b": "2"}, "secrets": ["one"]},
        "steps": {"pretrain": {"cpu": 8, "labels": {"b": "3"}, "secrets": ["two"]}},
    }
    assert options_of(profile, "light") == profile["every_step"]
    found = {"cpu": 8, "memory": 100, "labels": {"a": "1", "b": "3"}, "secrets": ["two"]}
    assert options_of(profile, "pretrain") == found


def test_retries_timeout_and_environment_become_decorators_of_their_own() -> None:
    profile = {
        "runs_on": "local",
        "every_step": {"retries": 2, "minutes_between_retries": 0.5, "timeout_minutes": 7, "environment": {"A": 1}},
    }
    assert decorators(check_profile(profile), "light", step="register") == {
        "retry": {"times": 2, "minutes_between_retries": 0.5},
        "timeout": {"minutes": 7},
        "environment": {"vars": {"A": "1"}},
    }


def test_on_batch_steps_with_a_gpu_go_to_terraforms_queue_of_gpus() -> None:
    profile = profile_named("batch")
    made = {kind: decorators(profile, kind, step="any")["batch"] for kind in KINDS}
    assert {kind for kind, options in made.items() if options.get("gpu")} == {"corrupt", "finetune", "pretrain"}
    for options in made.values():
        pool = "gpu" if options.get("gpu") else "cpu"
        assert (options["queue"], options["image"]) == (f"fast-electra-{pool}", f"fast-electra:{pool}")
    text = (ROOT / "infra" / "terraform" / "modules" / "batch" / "main.tf").read_text()
    assert re.findall(r"^    (\w+) = \{ types", text, re.MULTILINE) == ["cpu", "gpu"]
    assert 'name     = "${var.name}-${each.key}"' in text


def test_pods_that_argo_starts_are_somebody_else() -> None:
    profile = {"runs_on": "kubernetes", "argo_service_account": "reports", "every_step": {"service_account": "silent"}}
    ours = decorators(check_profile(profile), "light", step="end")
    argos = decorators(check_profile(profile), "light", step="end", on_argo=True)
    assert ours["kubernetes"]["service_account"] == "silent" and argos["kubernetes"]["service_account"] == "reports"


def test_start_is_never_retried_because_bad_input_stays_bad() -> None:
    profile = {"runs_on": "local", "every_step": {"retries": 2}}
    assert "retry" not in decorators(profile, "light", step="start")


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ([], "the profile must be an object"),
        ({}, "must say runs_on, one of local, kubernetes, batch"),
        ({"runs_on": "kubernets"}, "Did you mean 'kubernetes'"),
        (
            {"runs_on": "local", "step": {}},
            "a key of the profile must be one of runs_on, argo_service_account, every_step, steps; got 'step'",
        ),
        ({"runs_on": "local", "steps": {"train": {}}}, "must be one of light, tokenize, corrupt, finetune, pretrain"),
        (
            {"runs_on": "batch", "every_step": {"secrets": ["x"]}},
            "every_step.secrets has no effect with runs_on 'batch'",
        ),
        (on_kubernetes(queue="x"), "pretrain.queue has no effect with runs_on 'kubernetes'"),
        (on_kubernetes(gpus=1), "a key of the profile's pretrain must be one of .*got 'gpus'. Did you mean 'gpu'"),
        (on_kubernetes(cpu=0), "pretrain.cpu must be cores, > 0; got 0"),
        (on_kubernetes(gpu=-1), "pretrain.gpu must be GPUs, >= 0; got -1"),
        (on_kubernetes(gpu=True), "pretrain.gpu must be GPUs, >= 0; got True"),
        (on_kubernetes(memory="8Gi"), "pretrain.memory must be MiB, >= 1; got '8Gi'"),
        (on_kubernetes(retries=5), "pretrain.retries must be 0 to 4.*got 5"),
        (on_kubernetes(timeout_minutes=0), "pretrain.timeout_minutes must be an integer >= 1; got 0"),
        (on_kubernetes(secrets=[""]), "pretrain.secrets must be a list of names"),
        (on_kubernetes(tolerations=[{"keys": "x"}]), "must be one of key, operator, value.*got 'keys'"),
        (on_kubernetes(security_context={"runAsNonRoot": True}), "Did you mean 'run_as_non_root'"),
        (
            on_kubernetes(tolerations=[{"key": "x", "operator": "Exist"}]),
            "operator must be one of Equal, Exists; got 'Exi",
        ),
        (on_kubernetes(tolerations=[{"key": "x", "effect": "NoShedule"}]), "Did you mean 'NoSchedule'"),
        (on_kubernetes(tolerations=[{"key": "x", "value": True}]), r"tolerations\[…\].value must be text, got True"),
        (on_kubernetes(security_context={"run_as_user": "root"}), "run_as_user must be an integer, got 'root'"),
        (on_kubernetes(security_context={"run_as_non_root": "yes"}), "must be true or false, got 'yes'"),
        (on_kubernetes(labels={"team": 1}), "labels must be an object of labels, each text; got {'team': 1}"),
        (on_kubernetes(node_selector={"gpu": True}), "node_selector must be an object of node labels, each text"),
        (on_kubernetes(environment={"A": None}), "environment must be .* each text or a number"),
        (on_kubernetes(environment={"A B": "x"}), "environment must be an object of environment variables"),
        (on_kubernetes(cpu=float("nan")), "pretrain.cpu must be cores, > 0; got nan"),
        (on_kubernetes(port=65536), "pretrain.port must be .* 1 to 65535; got 65536"),
        (on_kubernetes(namespace=""), "pretrain.namespace must be a namespace; got ''"),
        (on_kubernetes(qos="BestEffort"), "pretrain.qos must be one of Guaranteed, Burstable; got 'BestEffort'"),
        (on_kubernetes(environment={"AWS_SECRET_ACCESS_KEY": "x"}), "put it into a Kubernetes Secret"),
        ({"runs_on": "kubernetes", "argo_service_account": ""}, "argo_service_account must be the name of a service"),
        ({"runs_on": "local", "argo_service_account": "x"}, "argo_service_account has no effect with runs_on 'local'"),
        ({"runs_on": "local", "every_step": {"gpu": 1}}, "every_step.gpu has no effect with runs_on 'local'"),
    ],
)
def test_a_profile_that_cannot_be_used_is_refused_by_name(profile: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_profile(profile)


def test_odd_but_legal_values_are_taken() -> None:
    tolerations = [{"operator": "Exists"}, {"key": "a", "effect": "NoExecute", "toleration_seconds": 60}]
    odd = {
        "cpu": 0.5, "gpu": 0, "image_pull_secrets": ["regcred"], "tolerations": tolerations, "namespace": "other",
        "environment": {"OMP_NUM_THREADS": 4, "_A": ""}, "labels": {"empty": ""}, "port": 65535,
    }  # fmt: skip
    found = decorators(check_profile(on_kubernetes(**odd)), "pretrain", step="pretrain")
    assert found["environment"] == {"vars": {"OMP_NUM_THREADS": "4", "_A": ""}}
    assert found["kubernetes"] == {name: value for name, value in odd.items() if name != "environment"}


def test_text_that_is_no_json_is_refused_with_the_place() -> None:
    with pytest.raises(ConfigError, match=r"the profile is not JSON: .*line 1 column 2"):
        parse_profile("{runs_on: local}")


def test_a_bad_profile_stops_the_flow_at_once_without_a_stack_of_calls(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    (tmp_path / "mine.json").write_text('{"runs_on": "kubernetes", "steps": {"pretrain": {"gpus": 1}}}')
    output = workspace.run("pretrain_flow.py", "--config", "profile", "mine.json", "run", succeeds=False)
    assert "got 'gpus'. Did you mean 'gpu'?" in output and "Traceback" not in output
    assert not (tmp_path / ".metaflow" / "PretrainFlow").exists()


@pytest.mark.parametrize(
    ("words", "datastore", "runs_on", "is_refused"),
    [
        (("run",), None, "kubernetes", True),
        (("resume", "finetune"), "local", "batch", True),
        (("run",), "s3", "kubernetes", False),
        (("run",), None, "local", False),
        (("--datastore", "s3", "run"), None, "kubernetes", False),
        (("run", "--help"), None, "kubernetes", False),
        (("step", "finetune"), None, "kubernetes", False),  # within a pod
    ],
)
def test_steps_elsewhere_are_not_started_where_they_could_not_leave_anything(
    words: tuple[str, ...], datastore: str | None, runs_on: str, is_refused: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("METAFLOW_HOME", str(tmp_path))
    monkeypatch.delenv("METAFLOW_DEFAULT_DATASTORE", raising=False)
    if datastore:
        monkeypatch.setenv("METAFLOW_DEFAULT_DATASTORE", datastore)
    profile = {"runs_on": runs_on}
    expected = pytest.raises(ConfigError, match=rf"{tmp_path}/config\.json.*export the METAFLOW_PROFILE")
    with expected if is_refused else contextlib.nullcontext():
        check_datastore(profile, ("flow.py", *words))


def test_asterisks_of_a_message_are_shown_by_metaflow_too(tmp_path: Path) -> None:
    """It makes bold type of them; those of a cron are what the message is about."""
    output = Workspace(tmp_path).run(
        "retrain_flow.py", "--config-value", "deployment", '{"cron": "0 3 * *"}', "show", succeeds=False
    )
    assert "got 4: '0 3 \N{ASTERISK OPERATOR} \N{ASTERISK OPERATOR}'" in output
