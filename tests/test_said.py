"""What a person sees of a step that ends badly: the message of a user's error alone, of any other the stack."""

import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from conftest import ROOT
from metaflow.exception import MetaflowException

from fast_electra_core.errors import ConfigError, DataError, Interrupted
from said import said_by_metaflow

PROGRAM = """
import sys
sys.path.insert(0, FLOWS)
from metaflow import FlowSpec, step
from fast_electra_core.errors import ConfigError, DataError, Interrupted
from said import told

class EndingFlow(FlowSpec):
    @step
    def start(self):
        with told():
            BODY
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    EndingFlow()
"""


def ended(body: str, folder: Path) -> list[str]:
    """The lines that Metaflow shows of a step's failure, without what stands before each."""
    file = folder / "ending_flow.py"
    file.write_text(PROGRAM.replace("FLOWS", repr(str(ROOT / "flows"))).replace("BODY", body))
    words = [sys.executable, str(file), "--quiet", "--no-pylint", "run"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line.partition(")] ")[2].strip() for line in done.stdout.splitlines() if "/start/1 (pid" in line]
    lines = [line for line in lines if line]
    assert lines[0] == "Task is starting." and lines[-1] == "Task failed."
    return lines[1:-1]


def test_of_a_users_error_metaflow_shows_the_name_and_the_message_with_its_asterisks(tmp_path: Path) -> None:
    assert ended("raise DataError('no file matches **/*.txt')", tmp_path) == [
        "<flow EndingFlow step start> failed:",
        "DataError:",
        "no file matches ∗∗/∗.txt",
    ]


def test_of_a_disk_that_is_full_it_shows_one_line_and_what_to_do(tmp_path: Path) -> None:
    assert ended("open('/dev/full', 'w', buffering=1).write('a\\n')", tmp_path) == [
        "<flow EndingFlow step start> failed:",
        "OSError:",
        "[Errno 28] No space left on device. Free some disk space and resume, or give another --store",
    ]


def test_of_an_error_of_ours_it_shows_the_stack(tmp_path: Path) -> None:
    shown = ended("1 / 0", tmp_path)
    assert "Internal error" in shown and "Traceback (most recent call last):" in shown
    assert shown[-1] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("kind", [ConfigError, DataError, Interrupted])
def test_where_the_stack_is_kept_it_is_one_line_without_what_the_message_repeats(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`@catch` prints it, the webhook is told it."""
    monkeypatch.setattr(sys, "tracebacklimit", 1000, raising=False)  # put back as it was afterwards
    with pytest.raises(MetaflowException) as caught, said_by_metaflow():
        try:
            raise ConfigError("no layers")
        except ConfigError as error:
            raise kind(f"arm a: {error}") from error
    shown = "".join(traceback.format_exception(caught.value))
    assert shown == f"fast_electra_core.errors.{kind.__name__}: arm a: no layers\n"
