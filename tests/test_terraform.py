"""The cloud in terraform: valid, private, and least privilege. AWS's place is taken by moto.

The whole of it is applied and destroyed by `pytest -m cloud tests/test_terraform.py`, which takes minutes.
"""

import base64
import email
import fnmatch
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from clouds import ANSWERS, STAND_INS, Terraform, initialized, resources
from conftest import ROOT, moto_server

IN_BUCKETS = (
    "aws_s3_bucket_public_access_block",
    "aws_s3_bucket_ownership_controls",
    "aws_s3_bucket_versioning",
    "aws_s3_bucket_server_side_encryption_configuration",
    "aws_s3_bucket_policy",
)
LOOKING = ("Describe", "Get", "List")


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A mock of AWS of its own: the flows' tests empty theirs."""
    with moto_server(tmp_path_factory.mktemp("moto"), MOTO_IAM_LOAD_MANAGED_POLICIES="true") as address:
        yield address


@pytest.fixture(scope="module")
def terraform(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Terraform:
    return initialized(tmp_path_factory.mktemp("terraform") / "terraform", endpoint)


@pytest.fixture(scope="module")
def plan(terraform: Terraform) -> Any:
    """What would be made in an empty account, as JSON."""
    terraform.run("plan", "-no-color", "-input=false", "-out=all.plan", *ANSWERS)
    return terraform.json("show", "-json", "all.plan")


@pytest.fixture(scope="module")
def planned(plan: Any) -> dict[str, list[Any]]:
    """Values of the planned resources, by type."""
    found: dict[str, list[Any]] = {}
    for resource in resources(plan["planned_values"]["root_module"]):
        found.setdefault(resource["type"], []).append(resource["values"])
    return found


def aws(service: str, endpoint: str) -> Any:
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    return boto3.client(service, endpoint_url=endpoint, region_name="eu-central-1", **keys)


def test_the_files_are_formatted_and_valid(terraform: Terraform) -> None:
    terraform.run("fmt", "-check", "-recursive", "-diff")
    assert terraform.json("validate", "-json")["valid"] is True


def test_every_variable_and_output_says_what_it_is(terraform: Terraform) -> None:
    folder = terraform.folder
    blocks = [block for path in folder.rglob("*.tf") for block in path.read_text().split("\n}\n")]
    named = [block for block in blocks if block.lstrip().startswith(("variable ", "output "))]
    assert len(named) > 40
    assert [block for block in named if "description" not in block] == []


def test_answers_that_cannot_be_meant_are_refused_all_at_once(terraform: Terraform) -> None:
    bad = {
        "name": "Fast_ELECTRA",
        "region": "frankfurt",
        "vpc_cidr": "10.0.0.0/24",
        "num_zones": "1",
        "admin_cidrs": '["0.0.0.0/0"]',
        "kubernetes_version": "1.29",
        "cpu_max_nodes": "1",
        "gpu_instance_types": '["m6i.xlarge"]',
        "gpu_max_nodes": "1000",
        "node_disk_gb": "10",
        "gpu_node_disk_gb": "10",
        "user_principals": '["*"]',
        "deployer_principals": '["arn:aws:iam::111122223333:root"]',
        "mlflow_image_tag": "latest",
        "mlflow_tracking_uri": "http://user:secret@mlflow:5000",
        "noncurrent_days": "0",
        "backup_days": "0",
        "database_instance_class": "t4g.small",
        "database_password_version": "1.5",
    }
    said = terraform.run(
        "plan", "-no-color", "-input=false", *[f"-var={name}={value}" for name, value in bad.items()], succeeds=False
    )
    assert [name for name in bad if f'variable "{name}"' not in said] == []
    assert said.count("Invalid value for variable") == len(bad)


@pytest.mark.parametrize(("name", "value"), [("vpc_cidr", "100.64.0.0/16"), ("name", "fast--electra")])
def test_what_would_fail_later_is_refused(name: str, value: str, terraform: Terraform) -> None:
    """MLflow's NetworkPolicy lets it reach databases in private ranges; RDS takes no two hyphens in a row."""
    said = terraform.run("plan", "-no-color", "-input=false", f"-var={name}={value}", *ANSWERS, succeeds=False)
    assert "Invalid value for variable" in said and f'variable "{name}"' in said


def test_each_bucket_is_private_encrypted_versioned_and_sheds_what_is_left_over(planned: dict[str, list[Any]]) -> None:
    buckets = {bucket["bucket"] for bucket in planned["aws_s3_bucket"]}
    assert len(buckets) == 3 and not any(bucket["force_destroy"] for bucket in planned["aws_s3_bucket"])
    assert [len(planned[kind]) for kind in IN_BUCKETS] == [3] * len(IN_BUCKETS)
    for block in planned["aws_s3_bucket_public_access_block"]:
        assert all(block[name] for name in block if name.startswith(("block_", "ignore_", "restrict_")))
    rules = [rule for config in planned["aws_s3_bucket_lifecycle_configuration"] for rule in config["rule"]]
    assert sum(bool(rule["abort_incomplete_multipart_upload"]) for rule in rules) == 3
    assert [rule["expiration"][0]["days"] for rule in rules if rule["expiration"]] == [35]  # the dumps'


def test_applied_buckets_are_what_the_plan_says_and_the_password_is_nowhere(
    terraform: Terraform, plan: Any, endpoint: str
) -> None:
    kinds = [f"module.storage.{kind}.this" for kind in IN_BUCKETS]
    targets = [
        f"-target={address}" for address in (*kinds, "module.tracking.aws_secretsmanager_secret_version.database")
    ]
    terraform.run("apply", "-no-color", "-input=false", "-auto-approve", *targets, *ANSWERS)
    s3 = aws("s3", endpoint)
    buckets = [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]
    assert [name.rsplit("-123456789012")[0] for name in sorted(buckets)] == [
        "fast-electra-artifacts",
        "fast-electra-backups",
        "fast-electra-data",
    ]
    for bucket in buckets:
        assert all(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values())
        assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
        (rule,) = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
        assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
        (statement,) = json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])["Statement"]
        assert statement["Effect"] == "Deny" and statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}

    password = aws("secretsmanager", endpoint).get_secret_value(SecretId="fast-electra/mlflow-database")["SecretString"]
    assert len(password) == 40 and password.isalnum()
    written = [path for path in terraform.folder.iterdir() if path.is_file()]
    assert {"all.plan", "terraform.tfstate"} <= {path.name for path in written}
    assert [path for path in written if password.encode() in path.read_bytes()] == []
    assert password not in terraform.run("output", "-json")


def test_no_role_may_do_more_than_is_written_out(planned: dict[str, list[Any]]) -> None:
    policies = {policy["name"]: policy.get("policy") for policy in planned["aws_iam_role_policy"]}
    assert set(policies) >= {"fast-electra-task", "fast-electra-mlflow", "fast-electra-backup", "batch", "start"}
    assert [name for name, policy in policies.items() if policy is None] == []  # unknown before apply: unchecked
    for name, policy in policies.items():
        for statement in json.loads(policy)["Statement"]:
            actions, places = as_list(statement["Action"]), as_list(statement["Resource"])
            assert statement["Effect"] == "Allow" and not any("*" in action for action in actions), (name, statement)
            if "*" in places and "Condition" not in statement and name != "fast-electra-network-plugin":
                assert all(action.partition(":")[2].startswith(LOOKING) for action in actions), (name, statement)


def test_the_backup_can_only_write_and_tasks_see_only_the_data(planned: dict[str, list[Any]]) -> None:
    policies = {policy["name"]: json.loads(policy["policy"]) for policy in planned["aws_iam_role_policy"]}
    (statement,) = policies["fast-electra-backup"]["Statement"]
    assert sorted(as_list(statement["Action"])) == ["s3:AbortMultipartUpload", "s3:PutObject"]
    places = [
        place for statement in policies["fast-electra-task"]["Statement"] for place in as_list(statement["Resource"])
    ]
    assert {place.split(":::")[1].split("/")[0] for place in places} == {"fast-electra-data-123456789012-eu-central-1"}


@pytest.mark.parametrize("name", [None, "weekly", "fast-electra-weekly"])
def test_the_schedule_may_start_a_state_machine_of_any_name_that_metaflow_gives(
    name: str | None, planned: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from metaflow import current
    from metaflow.plugins.aws.step_functions import step_functions_cli

    monkeypatch.setattr(step_functions_cli, "SFN_STATE_MACHINE_PREFIX", "fast-electra")
    monkeypatch.setattr(current, "_flow_name", "RetrainFlow")
    machine, *_ = step_functions_cli.resolve_state_machine_name(SimpleNamespace(), name)
    (policy,) = (json.loads(each["policy"]) for each in planned["aws_iam_role_policy"] if each["name"] == "start")
    (statement,) = policy["Statement"]
    place = f"arn:aws:states:eu-central-1:123456789012:stateMachine:{machine}"
    assert fnmatch.fnmatch(place, statement["Resource"])


def test_nothing_is_open_to_the_internet(planned: dict[str, list[Any]]) -> None:
    (database,) = planned["aws_db_instance"]
    assert (
        database["publicly_accessible"] is False and database["storage_encrypted"] and database["deletion_protection"]
    )
    assert not database.get("password") and not database.get("password_wo")
    (cluster,) = planned["aws_eks_cluster"]
    assert cluster["vpc_config"][0]["public_access_cidrs"] == ["203.0.113.7/32"]
    assert cluster["encryption_config"][0]["resources"] == ["secrets"]
    for rule in planned["aws_vpc_security_group_ingress_rule"]:
        assert rule["cidr_ipv4"] is None and rule["cidr_ipv6"] is None
    assert not any("ingress" in group and group["ingress"] for group in planned["aws_security_group"])
    assert not any(subnet["map_public_ip_on_launch"] for subnet in planned["aws_subnet"])
    for template in planned["aws_launch_template"]:
        (options,) = template["metadata_options"]
        assert (options["http_tokens"], options["http_put_response_hop_limit"]) == ("required", 1)
        assert template["block_device_mappings"][0]["ebs"][0]["encrypted"] == "true"


def test_gpus_cost_nothing_while_nothing_asks_for_one(planned: dict[str, list[Any]]) -> None:
    groups = {group["node_group_name"]: group for group in planned["aws_eks_node_group"]}
    assert groups["gpu-spot"]["capacity_type"] == "SPOT"
    for name in ("gpu", "gpu-spot", "cpu-spot"):
        (scaling,) = groups[name]["scaling_config"]
        assert (scaling["min_size"], scaling["desired_size"]) == (0, 0)
    assert all(
        environment["compute_resources"][0]["min_vcpus"] == 0
        for environment in planned["aws_batch_compute_environment"]
    )


def test_the_pods_of_the_profiles_fit_the_disks_of_pools_that_start_from_zero(planned: dict[str, list[Any]]) -> None:
    """The autoscaler knows a disk that no node has yet by its group's tag alone; a node keeps 10 % and 1 GiB back."""
    disks = {
        template["name"]: template["block_device_mappings"][0]["ebs"][0]["volume_size"]
        for template in planned["aws_launch_template"]
    }
    assert disks == {
        f"fast-electra-{name}": size
        for name, size in {"cpu-node": 100, "gpu-node": 300, "batch-cpu": 100, "batch-gpu": 300}.items()
    }
    pools = {group["node_group_name"]: group for group in planned["aws_eks_node_group"]}
    for path in (ROOT / "infra" / "profiles").glob("kubernetes*.json"):
        for kind, options in json.loads(path.read_text())["steps"].items():
            pool = options["node_selector"]["fast-electra/pool"]
            told = pools[pool]["tags"]["k8s.io/cluster-autoscaler/node-template/resources/ephemeral-storage"]
            told_bytes = int(told.removesuffix("Gi")) * 2**30
            gigabytes = disks[f"fast-electra-{'gpu' if options.get('gpu') else 'cpu'}-node"]
            assert options["disk"] * 10**6 <= told_bytes <= (0.9 * gigabytes - 1) * 2**30, (path.name, kind)


def test_jobs_of_batch_are_told_before_their_instance_is_taken_away(planned: dict[str, list[Any]]) -> None:
    """Batch adds its own parts to the user data, and takes it in this form alone."""
    templates = [each for each in planned["aws_launch_template"] if "-batch-" in each["name"]]
    assert len(templates) == 2
    for template in templates:
        message = email.message_from_bytes(base64.b64decode(template["user_data"]))
        assert message.is_multipart() and not message.defects
        (script,) = message.get_payload()
        assert script.get_content_type() == "text/x-shellscript"
        assert script.get_payload().splitlines()[:2] == [
            "#!/bin/sh", "echo ECS_ENABLE_SPOT_INSTANCE_DRAINING=true >> /etc/ecs/ecs.config"
        ]  # fmt: skip


def test_outputs_are_settings_that_metaflow_and_mlflow_read(plan: Any) -> None:
    import mlflow.environment_variables
    from metaflow import metaflow_config

    changes = plan["output_changes"]
    names = {output: settings(changes[output]) for output in ("metaflow_config", "mlflow_config")}
    assert not any(change["after_sensitive"] for change in changes.values())  # there is nothing to hide
    assert len(names["metaflow_config"]) > 15
    assert [
        name for name in names["metaflow_config"] if not hasattr(metaflow_config, name.removeprefix("METAFLOW_"))
    ] == []
    assert [name for name in names["mlflow_config"] if not hasattr(mlflow.environment_variables, name)] == []


@pytest.mark.cloud
def test_all_of_it_can_be_applied_and_only_the_named_service_accounts_take_roles(endpoint: str, tmp_path: Path) -> None:
    terraform = initialized(tmp_path / "terraform", endpoint)
    for name, text in STAND_INS.items():
        (terraform.folder / name).write_text(text)
    words = ("-no-color", "-input=false", "-auto-approve", "-var=name=whole", *ANSWERS)
    terraform.run("apply", *words, timeout=500)
    assert len(resources(terraform.json("show", "-json")["values"]["root_module"])) > 80

    iam = aws("iam", endpoint)
    subjects = {
        "whole-task": [
            "system:serviceaccount:fast-electra:fast-electra",
            "system:serviceaccount:fast-electra:fast-electra-argo",
        ],
        "whole-mlflow": ["system:serviceaccount:mlflow:mlflow"],
        "whole-backup": ["system:serviceaccount:mlflow:mlflow-backup"],
        "whole-autoscaler": ["system:serviceaccount:kube-system:cluster-autoscaler"],
    }
    for role, expected in subjects.items():
        (trust,) = iam.get_role(RoleName=role)["Role"]["AssumeRolePolicyDocument"]["Statement"]
        conditions = trust["Condition"]["StringEquals"]
        assert {tuple(sorted(as_list(value))) for value in conditions.values()} == {
            tuple(expected),
            ("sts.amazonaws.com",),
        }
    outputs = terraform.json("output", "-json")
    queues = {queue["jobQueueName"] for queue in aws("batch", endpoint).describe_job_queues()["jobQueues"]}
    assert outputs["metaflow_config"]["value"]["METAFLOW_BATCH_JOB_QUEUE"] in queues
    assert (
        outputs["metaflow_config"]["value"]["METAFLOW_SFN_DYNAMO_DB_TABLE"]
        in aws("dynamodb", endpoint).list_tables()["TableNames"]
    )
    terraform.run("apply", *words, "-var=protect_data=false", timeout=500)
    terraform.run("destroy", *words, "-var=protect_data=false", timeout=500)
    assert aws("s3", endpoint).list_buckets(Prefix="whole-")["Buckets"] == []


def settings(change: Any) -> set[str]:
    """Names of an output's settings; the values of some are known after apply only."""
    unknown = change["after_unknown"]
    return {*change.get("after", {}), *(unknown if isinstance(unknown, dict) else ())}


def as_list(value: str | list[str]) -> list[str]:
    """A policy's one-or-many, as many."""
    return [value] if isinstance(value, str) else value
