"""What is shipped: the code package that steps on other machines unpack, and the lists of what it needs.

That a flow runs to its end from the package is shown in test_kubernetes_run.py.
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from conftest import ROOT, Workspace
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGES = ("steps", "fast_electra_core")


class Package(NamedTuple):
    workspace: Workspace
    folder: Path
    """Where it was unpacked."""

    @property
    def environment(self) -> dict[str, str]:
        """As Metaflow sets it where a step starts from the package."""
        return {"PYTHONPATH": str(self.folder / ".mf_code"), "METAFLOW_EXTRACTED_ROOT": str(self.folder)}

    def python(self, code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=self.folder,
            env=self.workspace.environment(**self.environment),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The main flow's code package, unpacked into an empty folder."""
    workspace = Workspace(tmp_path_factory.mktemp("package"))
    (workspace.folder / "secret.env").write_text("KEY=1")
    file = workspace.folder / "package.tar"
    workspace.run("pretrain_flow.py", "package", "save", str(file))
    folder = workspace.folder / "unpacked"
    folder.mkdir()
    subprocess.run(["tar", "-xf", file, "-C", folder], check=True)  # tarfile is safe from Python 3.11.4 on only
    return Package(workspace, folder)


def files_of(folder: Path) -> set[str]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in files if "__pycache__" not in path.parts}


def sources_of(name: str) -> set[str]:
    """The package's files in this checkout."""
    return {f"{name}/{path}" for path in files_of(ROOT / name)}


def test_the_package_holds_the_flows_and_both_packages_whole(package: Package) -> None:
    code = files_of(package.folder / ".mf_code")
    ours = {path for path in code if not path.startswith("metaflow")}
    mutators = {"profiles.py"}  # Metaflow ships their modules here, and beside the flow file besides
    assert ours == sources_of("steps") | sources_of("fast_electra_core") | mutators
    assert "steps/page_template.html" in ours
    flows = {path.name for path in package.folder.glob("*.py")}
    assert flows == {path.name for path in (ROOT / "flows").glob("*.py")}


def test_the_package_holds_no_data_and_no_secrets(package: Package) -> None:
    ours = {path for path in files_of(package.folder) if not path.startswith(".mf_code/metaflow")}
    assert {Path(path).suffix for path in ours} <= {".py", ".html", ""}
    without_suffix = {path for path in ours if not Path(path).suffix}
    assert without_suffix <= {".mf_install", ".mf_meta/INFO", ".mf_meta/CONFIG", ".mf_meta/DIST_INFO"}
    text = "".join((package.folder / path).read_text(encoding="utf-8") for path in ours)
    assert not re.search(r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|hf_[A-Za-z0-9]{30}", text)
    size = sum((package.folder / path).stat().st_size for path in ours)
    assert size < 1_500_000  # source alone: what is packed by mistake is larger


def test_every_module_of_the_package_imports_there_from_the_unpacked_copy(package: Package) -> None:
    names = sorted(
        path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in sources_of("steps") | sources_of("fast_electra_core")
        if path.endswith(".py")
    )
    code = (
        "import importlib, json\n"
        f"names = {names!r}\n"
        "print(json.dumps({name: importlib.import_module(name).__file__ for name in names}))"
    )
    files = json.loads(package.python(code).splitlines()[-1])
    assert {name for name, file in files.items() if not file.startswith(str(package.folder / ".mf_code"))} == set()


def test_a_flow_describes_itself_from_the_unpacked_package(package: Package) -> None:
    flow = package.folder / "pretrain_flow.py"
    output = package.workspace.run(flow, "show", **package.environment)
    assert "Fine-tune on some tasks and seeds" in output


def test_a_flow_file_imports_nothing_that_is_not_shipped(package: Package) -> None:
    for path in package.folder.glob("*.py"):
        tree = ast.parse(path.read_text())
        imported = {
            (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        beside = {path.stem for path in package.folder.glob("*.py")}
        assert {name.partition(".")[0] for name in imported} <= {
            "metaflow",
            *PACKAGES,
            *beside,
            *sys.stdlib_module_names,
        }


# What has to be installed


@pytest.fixture(scope="module")
def project() -> dict[str, list[str]]:
    """pyproject.toml's requirements: of the project, and of its tests."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {"project": table["dependencies"], **table["optional-dependencies"]}


def test_environment_yml_asks_for_what_pyproject_asks_for(project: dict[str, list[str]]) -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (by_pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    options = [line for line in by_pip if line.startswith("-")]
    assert options == ["--constraint requirements.lock"]
    wanted = [requirement for requirements in project.values() for requirement in requirements]
    assert sorted(set(by_pip) - set(options)) == sorted(wanted)
    by_conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    assert "python>=3.11" in by_conda


def test_the_lock_pins_every_direct_requirement_once_and_within_its_range(project: dict[str, list[str]]) -> None:
    lines = [
        line
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if line and not line.startswith(("#", "-"))
    ]
    pins = [re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[^]]+\])?==([^\s;]+)(?:\s*;.*)?", line) for line in lines]
    assert None not in pins, [line for line, pin in zip(lines, pins, strict=True) if pin is None]
    versions = {canonicalize_name(pin[1]): pin[2] for pin in pins if pin}
    assert len(versions) == len(lines)
    for requirement in map(Requirement, [each for requirements in project.values() for each in requirements]):
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), (requirement, version)
    assert sum(name == "torch" for name in versions) == 1
    assert re.fullmatch(r"\d+\.\d+\.\d+", versions["torch"])


def test_every_library_that_is_imported_is_asked_for(project: dict[str, list[str]]) -> None:
    asked_for = {canonicalize_name(Requirement(each).name) for each in project["project"]}
    comes_with = {
        "alembic": "mlflow",
        "botocore": "boto3",
        "huggingface_hub": "transformers",
        "markupsafe": "jinja2",
        "sklearn": "scikit-learn",
        "sqlalchemy": "mlflow",
        "urllib3": "kubernetes",
    }
    missing, ours = set(), set(PACKAGES)
    for path in [path for folder in (*PACKAGES, "flows") for path in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            else:
                continue
            beside = {each.stem for each in path.parent.glob("*.py")} if path.parent.name == "flows" else set()
            for name in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - ours - beside:
                if canonicalize_name(comes_with.get(name, name)) not in asked_for:
                    missing.add((path.name, name))
    assert missing == set()
