"""Claims about infra/compose.yaml, of whose containers only MLflow's has been started, by itself (docs/LOG.md)."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

FILE = ROOT / "infra" / "compose.yaml"
SECRETS = {"MLFLOW_DATABASE_PASSWORD": "database1", "S3_ACCESS_KEY": "access12", "S3_SECRET_KEY": "secret123"}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())["services"]
    return found


def config(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a compose client makes of the file, in an environment without other secrets."""
    has_plugin = (
        shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    )
    client = ["docker", "compose"] if has_plugin else [shutil.which("docker-compose") or ""]
    if client == [""]:
        pytest.skip("no compose client here")
    words = [*client, "--project-directory", str(FILE.parent), "-f", str(FILE), "config"]
    kept = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    return subprocess.run(words, env={**kept, **environment}, cwd=tmp_path, capture_output=True, text=True)


def test_a_compose_client_takes_the_file_and_every_secret_reaches_its_server(tmp_path: Path) -> None:
    found = config(tmp_path, **SECRETS)
    assert found.returncode == 0, found.stderr
    resolved = yaml.safe_load(found.stdout)["services"]
    mlflow = resolved["mlflow"]["environment"]
    assert mlflow["MLFLOW_BACKEND_STORE_URI"] == "postgresql://mlflow:database1@database:5432/mlflow"
    assert (mlflow["AWS_ACCESS_KEY_ID"], mlflow["AWS_SECRET_ACCESS_KEY"]) == ("access12", "secret123")
    assert resolved["database"]["environment"]["POSTGRES_PASSWORD"] == "database1"
    assert resolved["s3"]["environment"]["MINIO_ROOT_PASSWORD"] == "secret123"


@pytest.mark.parametrize("name", list(SECRETS))
def test_a_secret_that_is_not_given_is_asked_for_by_name(name: str, tmp_path: Path) -> None:
    found = config(tmp_path, **{key: value for key, value in SECRETS.items() if key != name})
    assert found.returncode != 0
    assert "password" in found.stderr or "name for the S3 server" in found.stderr


def test_nothing_but_mlflow_is_reachable_and_that_from_this_machine_alone(services: dict[str, Any]) -> None:
    ports = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert ports == {"mlflow": ["127.0.0.1:${PORT:-5000}:5000"]}


def test_the_server_is_the_lock_s_mlflow_and_reads_every_variable_that_it_is_given(services: dict[str, Any]) -> None:
    import mlflow.environment_variables
    from mlflow.cli import server

    (release,) = re.findall(r"(?m)^mlflow==(\S+)", (ROOT / "requirements.lock").read_text())
    assert services["mlflow"]["image"] == services["bucket"]["image"] == f"fast-electra-mlflow:{release}"
    read = {option.envvar for option in server.params} | set(vars(mlflow.environment_variables))
    given = {name for name in services["mlflow"]["environment"] if name.startswith("MLFLOW_")}
    assert len(given) == 4 and given <= read
    image = (ROOT / "infra/container/mlflow.Dockerfile").read_text()
    assert {word.partition("=")[0] for word in re.findall(r"\bMLFLOW_\w+=\S+", image)} <= read
    options = {option for parameter in server.params for option in parameter.opts}
    assert {word.partition("=")[0] for word in services["mlflow"]["command"] if word.startswith("--")} <= options


def test_the_image_has_the_driver_that_the_lock_s_sqlalchemy_takes_for_the_address(services: dict[str, Any]) -> None:
    from sqlalchemy.engine import make_url

    scheme, colon, _ = services["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"].partition(":")
    driver = make_url(f"{scheme}{colon}//database/mlflow").get_dialect().driver
    (command,) = re.findall(r"(?m)^RUN pip install (.*)", (ROOT / "infra/container/mlflow.Dockerfile").read_text())
    packages = [re.split(r"[\[=]", word.strip("'"))[0] for word in command.split()]
    assert driver in packages


def test_the_bucket_is_made_and_making_it_again_changes_nothing(services: dict[str, Any], s3: Any) -> None:
    program = services["bucket"]["command"][-1]
    for _ in range(2):
        environment = {**os.environ, "MLFLOW_S3_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"]}
        subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert [each["Name"] for each in s3.list_buckets()["Buckets"]] == ["bucket", "mlflow-artifacts"]
    place = services["mlflow"]["environment"]["MLFLOW_ARTIFACTS_DESTINATION"]
    assert place.startswith("s3://mlflow-artifacts/")
