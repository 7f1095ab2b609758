"""Metaflow's config file out of terraform's outputs."""

import io
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT

from steps import metaflow_config
from steps.command import main

OUTPUTS = {
    "metaflow_config": {
        "sensitive": False,
        "type": ["object", {}],
        "value": {"METAFLOW_DEFAULT_DATASTORE": "s3", "METAFLOW_DATASTORE_SYSROOT_S3": "s3://bucket/metaflow"},
    },
    "mlflow_config": {
        "sensitive": False,
        "type": ["object", {}],
        "value": {"MLFLOW_TRACKING_URI": "http://mlflow:5000", "MLFLOW_DISABLE_TELEMETRY": "true"},
    },
    "cluster_name": {"sensitive": False, "type": "string", "value": "fast-electra"},
}
CONFIG = {**OUTPUTS["metaflow_config"]["value"], "MLFLOW_TRACKING_URI": "http://mlflow:5000"}  # type: ignore[dict-item]


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with what `terraform output -json` prints; Metaflow's home is a folder that does not exist yet."""
    monkeypatch.setenv("METAFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("METAFLOW_PROFILE", raising=False)
    path = tmp_path / "outputs.json"
    path.write_text(json.dumps(OUTPUTS))
    return path


def test_a_file_a_folder_and_standard_input_give_the_same(
    outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tools, folder = tmp_path / "tools", tmp_path / "a folder; touch broken"
    tools.mkdir()
    folder.mkdir()
    (tools / "terraform").write_text(
        f'#!{sys.executable}\nimport sys\nassert sys.argv[1:] == ["-chdir={folder}", "output", "-json", "-no-color"]\n'
        f'print(open("{outputs}").read())\n'
    )
    (tools / "terraform").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr(sys, "stdin", io.StringIO(outputs.read_text()))
    for source in (str(outputs), str(folder), "-"):
        assert main(["metaflow-config", source]) == 0
        assert json.loads(capsys.readouterr().out) == CONFIG
    assert not (tmp_path / "home").exists()


def test_what_is_written_is_what_metaflow_reads(
    outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAFLOW_PROFILE", "cloud")
    assert main(["metaflow-config", str(outputs), "--write"]) == 0
    path = tmp_path / "home" / "config_cloud.json"
    assert capsys.readouterr().out == f"3 settings in {path}\n"
    assert path.stat().st_mode & 0o077 == 0
    show = "from metaflow import metaflow_config as c; print(c.DEFAULT_DATASTORE, c.DATASTORE_SYSROOT_S3)"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("METAFLOW_")}
    settings = {"METAFLOW_HOME": str(tmp_path / "home"), "METAFLOW_PROFILE": "cloud"}
    done = subprocess.run(
        [sys.executable, "-c", show], env=kept | settings, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "s3 s3://bucket/metaflow\n", done.stderr


def test_a_file_that_is_there_is_replaced_by_force_alone_and_kept(
    outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.json").write_text("mine")
    assert main(["metaflow-config", str(outputs), "--write"]) == 2
    assert "is there already and is left as it is; take --force" in capsys.readouterr().err
    assert [path.name for path in home.iterdir()] == ["config.json"] and (home / "config.json").read_text() == "mine"
    assert main(["metaflow-config", str(outputs), "--write", "--force"]) == 0
    assert json.loads((home / "config.json").read_text()) == CONFIG
    assert (home / "config.json.before").read_text() == "mine"


def test_the_pods_get_mlflows_settings_by_lines(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metaflow-config", str(outputs), "--pods"]) == 0
    assert capsys.readouterr().out == "MLFLOW_TRACKING_URI=http://mlflow:5000\nMLFLOW_DISABLE_TELEMETRY=true\n"


@pytest.mark.parametrize(
    ("outputs_of", "message"),
    [
        ({}, "hold no metaflow_config; give the folder infra/terraform after `terraform apply`"),
        ([], "hold no metaflow_config"),
        ({**OUTPUTS, "mlflow_config": {"value": {"MLFLOW_DISABLE_TELEMETRY": "true"}}}, "lacks MLFLOW_TRACKING_URI"),
        (
            {**OUTPUTS, "metaflow_config": {"value": {"METAFLOW_SFN_IAM_ROLE": None}}},
            "must hold METAFLOW_.* with text, got METAFLOW_SFN_IAM_ROLE: None",
        ),
        ({**OUTPUTS, "metaflow_config": {"value": {"AWS_SECRET": "x"}}}, "got AWS_SECRET"),
    ],
)
def test_outputs_that_are_no_settings_are_refused(
    outputs_of: object, message: str, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs.write_text(json.dumps(outputs_of))
    assert main(["metaflow-config", str(outputs)]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_what_cannot_be_read_says_the_next_move(
    outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["metaflow-config", str(tmp_path)]) == 2
    assert "there is no terraform here; give a file" in capsys.readouterr().err
    assert main(["metaflow-config", str(tmp_path / "nowhere.json")]) == 2
    assert "no outputs of terraform can be read at" in capsys.readouterr().err
    assert main(["metaflow-config", str(ROOT / "README.md")]) == 2
    assert "holds no JSON of `terraform output -json`" in capsys.readouterr().err
    assert main(["metaflow-config", str(outputs), "--force"]) == 2
    assert "--force has no effect without --write" in capsys.readouterr().err


def test_terraforms_own_outputs_have_the_names_that_the_command_and_metaflow_want() -> None:
    from metaflow import metaflow_config

    text = (ROOT / "infra" / "terraform" / "outputs.tf").read_text()
    for output, prefix in (("metaflow_config", "METAFLOW_"), ("mlflow_config", "MLFLOW_")):
        found = re.search(rf'output "{output}".*?\n}}\n', text, re.DOTALL)
        assert found is not None
        names = re.findall(r"^    ([A-Z0-9_]+) +=", found[0], re.MULTILINE)
        assert names and all(name.startswith(prefix) for name in names)
        assert output == "metaflow_config" or "MLFLOW_TRACKING_URI" in names
        if output == "metaflow_config":  # Metaflow says nothing of names that it does not know
            assert [name for name in names if not hasattr(metaflow_config, name.removeprefix(prefix))] == []


def test_a_file_that_cannot_be_written_leaves_the_one_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    path.write_text("mine")

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    with pytest.raises(OSError, match="No space left"):
        metaflow_config._write(path, "new", force=True)
    assert path.read_text() == "mine"
