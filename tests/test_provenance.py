"""Claims about steps/provenance.py: which code and which environment made a run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from steps import provenance
from steps.provenance import code_digest, code_version


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("FAST_ELECTRA_GIT_SHA", raising=False)
    for package in ("steps", "fast_electra_core"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "work.py").write_text("1")
    return tmp_path


def commit(checkout: Path) -> str:
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "one")
    return git(checkout, "rev-parse", "HEAD")


def test_code_version_is_the_commit_and_dirty_where_files_differ(checkout: Path) -> None:
    sha = commit(checkout)
    assert code_version()["code.git_sha"] == sha
    (checkout / "steps" / "work.py").write_text("2")
    assert code_version()["code.git_sha"] == f"{sha}-dirty"


def test_code_version_outside_a_checkout_comes_from_the_environment(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert code_version()["code.git_sha"] == "unknown"
    monkeypatch.setenv("FAST_ELECTRA_GIT_SHA", "abc123")
    assert code_version()["code.git_sha"] == "abc123"


def test_the_code_digest_tells_other_code_from_other_files(checkout: Path) -> None:
    sha = commit(checkout)
    before = code_version()["code.digest"]
    (checkout / "notes.txt").write_text("mine")
    (checkout / "steps" / "__pycache__").mkdir()
    (checkout / "steps" / "__pycache__" / "work.pyc").write_bytes(b"1")
    assert code_version() == {"code.git_sha": f"{sha}-dirty", "code.digest": before}
    (checkout / "steps" / "work.py").write_text("2")
    assert code_version()["code.digest"] != before == provenance.code_digest_of(sha)


def test_the_code_digest_is_of_names_and_contents_in_any_order() -> None:
    one, other = ("a.py", b"1"), ("b.py", b"2")
    assert code_digest([one, other]) == code_digest([other, one])
    assert len({code_digest([one]), code_digest([("b.py", b"1")]), code_digest([("a.py", b"2")])}) == 3


def test_the_lock_of_a_commit_is_read_by_normal_names(checkout: Path) -> None:
    (checkout / "requirements.lock").write_text(
        "# all\nTyping_Extensions==4.1\nmoto[server]==5.2 ; x\n--find-links y\n"
    )
    assert provenance.locked_packages(commit(checkout)) == {"typing-extensions": "4.1", "moto": "5.2"}


def test_a_commit_that_is_not_there_has_no_lock(checkout: Path) -> None:
    commit(checkout)
    with pytest.raises(ValueError, match=r"git show 0{40}:requirements\.lock"):
        provenance.locked_packages("0" * 40)


def test_the_environment_names_python_and_every_package() -> None:
    found = provenance.training_environment("cpu")
    assert found["python"] == sys.version.split()[0]
    assert found["packages"]["numpy"] == __import__("numpy").__version__
    assert found["device"] == "cpu" and found["num_threads"] >= 1
    assert json.loads(json.dumps(found)) == found
