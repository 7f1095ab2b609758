"""docs/cloud.md: every command, file, output, variable and parameter that it names is there."""

import itertools
import re
import shlex
from collections.abc import Iterator

import pytest
import yaml
from conftest import ROOT

from fast_electra_core.config import AuxiliaryConfig, PretrainConfig
from fast_electra_core.fields import describe_fields
from fast_electra_core.retraining import RetrainConfig
from steps.command import COMMANDS, _parser
from steps.profile import parse_profile

TEXT = (ROOT / "docs" / "cloud.md").read_text()
TERRAFORM = ROOT / "infra" / "terraform"
MADE = {"infra/terraform/backend.tf", "infra/terraform/terraform.tfvars"}
"""Files that the reader makes."""
FLOWS = {"auxiliary_flow.py": AuxiliaryConfig, "pretrain_flow.py": PretrainConfig, "retrain_flow.py": RetrainConfig}


def commands() -> Iterator[list[str]]:
    """The words of each command, those in $( ), behind pipes and after settings of variables too."""
    for block in re.findall(r"^```\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            inner = re.findall(r"\$\(([^()]*)\)", line)
            for part in [*inner, *re.split(r" \| | && ", re.sub(r"\$\([^()]*\)", "INNER", line))]:
                words = list(itertools.dropwhile(lambda word: re.match(r"(export$|[A-Z_]+=)", word), lex(part)))
                if words:
                    yield words


def lex(part: str) -> list[str]:
    try:
        return shlex.split(part, comments=True)
    except ValueError:  # a quotation over several lines: jq's
        return part.split()


def of(program: str) -> list[list[str]]:
    found = [words for words in commands() if words[0] == program]
    assert found, f"docs/cloud.md has no {program}"
    return found


def test_each_call_of_fast_electra_is_one_that_the_command_takes(capsys: pytest.CaptureFixture[str]) -> None:
    calls = [*of("fast-electra"), *(shlex.split(code) for code in re.findall(r"`(fast-electra [a-z-]+[^`…]*)`", TEXT))]
    assert {call[1] for call in calls} >= {"metaflow-config", "preflight", "deploy", "export"}
    for call in calls:
        words = [word for word in call[1:] if word != ">" and not word.endswith(".env")]
        if len(words) > 1:
            _parser(words[0]).parse_args(words)  # leaves by SystemExit where it does not
        assert words[0] in COMMANDS
    assert capsys.readouterr().err == ""


def test_each_flow_is_there_and_takes_the_parameters_that_it_is_given() -> None:
    calls = [words for words in of("python") if words[1].startswith("flows/")]
    assert {words[1] for words in calls} == {f"flows/{name}" for name in FLOWS}
    for words in calls:
        assert (ROOT / words[1]).is_file(), words[1]
        at = next(index for index, word in enumerate(words) if word in ("run", "argo-workflows", "step-functions"))
        before, after = words[2:at], words[at + 1 :]
        assert before[::3] == ["--config"] * len(before[::3]) and set(before[1::3]) <= {"profile", "defaults"}
        if words[at] == "run":
            fields = describe_fields(FLOWS[words[1].removeprefix("flows/")])
            assert {word.removeprefix("--") for word in after if word.startswith("--")} <= set(fields)
        else:
            assert after[0] in ("trigger", "delete")


def test_the_parameters_of_the_schedule_are_those_of_its_flow() -> None:
    (block,) = re.findall(r"'\{(preset:.*?)\}' > weekly\.json", TEXT, re.DOTALL)
    names = re.findall(r"(?:^|,)\s*(\w+): ", block)
    assert set(names) >= {"corpus", "store"} and set(names) <= set(describe_fields(RetrainConfig))


def test_terraforms_outputs_and_variables_are_there() -> None:
    outputs = set(re.findall(r'^output "(\w+)"', (TERRAFORM / "outputs.tf").read_text(), re.MULTILINE))
    variables = set(re.findall(r'^variable "(\w+)"', (TERRAFORM / "variables.tf").read_text(), re.MULTILINE))
    named = [words[4] for words in of("terraform") if words[2] == "output"]
    assert len(named) > 4 and set(named) <= outputs
    assert set(re.findall(r"-var (\w+)=", TEXT)) == {"protect_data"} <= variables
    prose = {"gpu_max_nodes", "mlflow_tracking_uri", "database_password_version", "kubernetes_version"}
    assert all(f"`{name}`" in TEXT for name in prose) and prose <= variables
    assert all(words[1] == "-chdir=infra/terraform" for words in of("terraform"))


def test_what_is_applied_and_built_is_there() -> None:
    for folder in re.findall(r" -k (\S+)", TEXT):
        assert (ROOT / folder / "kustomization.yaml").is_file(), folder
    for path in re.findall(r"(?<![\w/$.-])((?:infra|flows|docs)/[\w/.-]*\w)", TEXT):
        assert path in MADE or (ROOT / path).exists(), path
    for path in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / "docs" / path).exists(), path
    assert len(of("docker")) >= 6


def test_namespaces_secrets_and_profiles_are_those_of_the_manifests() -> None:
    base = ROOT / "infra" / "kubernetes" / "base"
    spaces = {
        yaml.safe_load((base / part / "namespace.yaml").read_text())["metadata"]["name"] for part in ("jobs", "mlflow")
    }
    assert set(re.findall(r" -n ([a-z][a-z-]+)", TEXT)) == spaces
    manifests = "".join(path.read_text() for path in (ROOT / "infra" / "kubernetes").rglob("*.yaml"))
    profile = parse_profile((ROOT / "infra" / "profiles" / "kubernetes-spot.json").read_text())
    for secret, space in re.findall(r"create secret generic ([a-z0-9-]+) -n ([a-z-]+)", TEXT):
        if space == "fast-electra":
            assert secret in profile["every_step"]["secrets"]
        else:
            assert re.search(rf"(secretKeyRef|secretRef): \{{name: {secret}\b", manifests), secret
