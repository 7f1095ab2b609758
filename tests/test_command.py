"""Claims about the console command `fast-electra`."""

import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from steps.command import COMMANDS, main

COMMAND = Path(sys.executable).with_name("fast-electra")


def helped(words: list[str], folder: Path) -> tuple[str, set[str]]:
    """What `--help` prints, and which modules it has imported."""
    call = f"main({[*words, '--help']!r})"
    run = f"import sys\nfrom steps.command import main\ntry: {call}\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", run], cwd=folder, capture_output=True, text=True, check=True)
    shown, _, modules = done.stdout.rstrip("\n").rpartition("\n")
    return f"{shown}\n", set(modules.split())


def test_the_installed_command_lists_its_commands_without_heavy_imports(tmp_path: Path) -> None:
    shown_in_process, modules = helped([], tmp_path)
    shown = subprocess.run([COMMAND, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert shown == shown_in_process
    assert all(re.search(rf"\n    {name}\s", shown) for name in COMMANDS)
    assert "steps.command" in modules
    assert not modules & {"torch", "mlflow", "metaflow", "transformers", "jinja2", "numpy"}


@pytest.mark.parametrize("command", list(COMMANDS))
def test_each_command_teaches_by_an_example_without_heavy_imports(command: str, tmp_path: Path) -> None:
    shown, modules = helped([command], tmp_path)
    assert f"    fast-electra {command} " in shown
    assert not modules & {"torch", "mlflow", "metaflow", "transformers"}


def test_what_the_user_has_to_mend_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    words = [COMMAND, "export", "models:/x@y", "folder", "--tracking_uri", "ftp://x"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert line.startswith("fast-electra export: tracking_uri must start with one of http://")
    assert (done.returncode, done.stdout) == (2, "")
    assert list(tmp_path.iterdir()) == []


ON_THE_REGISTRY = pytest.mark.parametrize(
    "words", [["lineage", "models:/m@x"], ["export", "models:/m@x", "folder"], ["promote", "models:/m/1"], ["rollback"]]
)


@ON_THE_REGISTRY
def test_in_a_folder_in_which_no_flow_ran_nothing_is_made(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--tracking_uri", "sqlite:///mlflow.db"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"no MLflow database can be read at {tmp_path}/mlflow.db" in line and "give --tracking_uri" in line
    assert list(tmp_path.iterdir()) == []


@ON_THE_REGISTRY
def test_a_server_that_does_not_answer_is_said_in_one_line_within_seconds(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # nobody listens: connections are refused
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
        start = time.monotonic()
        assert main([*words, "--tracking_uri", address]) == 2
    assert time.monotonic() - start < 20  # MLflow is imported meanwhile
    (line,) = capsys.readouterr().err.splitlines()
    assert f"no MLflow server answers at {address}" in line and "start it with `make ui`" in line
    assert "--tracking_uri" in line and "resume" not in line
    assert list(tmp_path.iterdir()) == []


def test_a_config_file_of_metaflow_that_is_broken_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{")
    monkeypatch.setenv("METAFLOW_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["rollback"]) == 2  # its default is looked up in that file
    assert capsys.readouterr().err.startswith(f"fast-electra rollback: Metaflow's config file {tmp_path}/config.json")


def test_an_unknown_command_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["exprot"])
    assert exit.value.code == 2
    assert "invalid choice: 'exprot'" in (shown := capsys.readouterr().err) and "export" in shown


def test_an_argument_that_a_command_does_not_know_is_refused_with_its_own_usage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["promote", "models:/fast-electra/1", "--reason", "words", "more"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: fast-electra promote [-h]") and "--corpus_licence" in said
    assert said.endswith("fast-electra promote: error: unrecognized arguments: --reason words more\n")
