"""What tests of `infra/` share: terraform's configuration in a folder of its own, with moto in AWS's place."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

TERRAFORM = Path(__file__).resolve().parent.parent / "infra" / "terraform"
ANSWERS = ("-var=region=eu-central-1", '-var=admin_cidrs=["203.0.113.7/32"]')
"""The variables that have no default."""
_MIRRORS = ("~/.terraform.d/plugins", "/usr/local/share/terraform/plugins", "/opt/tf-plugins")

PROVIDER = """
provider "aws" {
  access_key                  = "testing"
  secret_key                  = "testing"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  s3_use_path_style           = true
}
"""
# What moto 5.2 lacks: EKS add-ons and a cluster's security group. And it wants a service role, where AWS Batch has
# its own.
STAND_INS = {
    "stand_in.tf": """
resource "aws_security_group" "stand_in" {
  vpc_id = module.network.vpc_id
}
""",
    "stand_in_override.tf": """
module "tracking" {
  cluster_security_group_id = aws_security_group.stand_in.id
}
""",
    "modules/cluster/stand_in_override.tf": "".join(
        f'resource "aws_eks_addon" "{name}" {{\n  count = 0\n}}\n' for name in ("network_plugin", "proxy", "dns")
    ),
    "modules/batch/stand_in_override.tf": """
resource "aws_batch_compute_environment" "this" {
  service_role = aws_iam_role.instance.arn
}
""",
}


class Terraform:
    """The configuration, copied to a folder and initialized; AWS is the server at endpoint."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.folder = folder
        shutil.copytree(TERRAFORM, folder, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*", "*.tfvars"))
        (folder / "moto_override.tf").write_text(PROVIDER)
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "TF_"))
        } | {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
            "CHECKPOINT_DISABLE": "true",
            "TF_IN_AUTOMATION": "true",
        }
        mirrors = [os.environ.get("TERRAFORM_PROVIDER_MIRROR", ""), *_MIRRORS]
        mirror = next(
            (path for path in map(Path, map(os.path.expanduser, filter(None, mirrors))) if path.is_dir()), None
        )
        if mirror is not None:
            (folder / "mirror.tfrc").write_text(
                f'provider_installation {{\n  filesystem_mirror {{\n    path = "{mirror}"\n  }}\n}}\n'
            )
            self._environment["TF_CLI_CONFIG_FILE"] = str(folder / "mirror.tfrc")

    def run(self, *words: str, succeeds: bool = True, timeout: float = 120) -> str:
        """Run terraform; returns all that it printed."""
        done = subprocess.run(
            ["terraform", f"-chdir={self.folder}", *words],
            env=self._environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
        )
        assert (done.returncode == 0) == succeeds, done.stdout
        return done.stdout

    def json(self, *words: str) -> Any:
        """What terraform prints as JSON."""
        return json.loads(self.run(*words))


def initialized(folder: Path, endpoint: str) -> Terraform:
    """Terraform in folder, or the test is skipped because there is no terraform or no AWS provider."""
    if shutil.which("terraform") is None:
        pytest.skip("there is no terraform here")
    terraform = Terraform(folder, endpoint)
    try:
        terraform.run("init", "-no-color", "-input=false", timeout=60)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        pytest.skip(
            f"terraform init found no AWS provider (TERRAFORM_PROVIDER_MIRROR names a folder with one): {error}"
        )
    return terraform


def resources(module: Any) -> list[Any]:
    """All resources of a module as `terraform show -json` tells of it, those of its modules included."""
    below = [found for child in module.get("child_modules", []) for found in resources(child)]
    return [resource for resource in module.get("resources", []) if resource["mode"] == "managed"] + below
