"""A process of warm Python is what a real one would be, to what it prints, to its children, and to who ends it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from warm_python import interpreter, process_of


@pytest.fixture(autouse=True)
def is_warm() -> None:
    if interpreter() == sys.executable:
        pytest.skip("no warm Python is asked for, or can be here")


SHOWS = """
import os, sys, tempfile
print(__name__, __file__, sys.argv, os.getcwd(), os.environ.get("GIVEN"), os.umask(0), sys.flags.dev_mode)
print(sys.dont_write_bytecode, tempfile.gettempdir())
print(sys.path, sys.prefix, sys.stdout.encoding, sys.stdout.line_buffering, sys.stderr.errors)
print(sorted(set(os.environ) - {"_", "LC_CTYPE", "PWD", "OLDPWD", "SHLVL"}), sys.stdin.read(), os.getppid())
print("beside", file=sys.stderr)
"""


def both(*words: str, text: str = "", **more: str | Path) -> list["subprocess.CompletedProcess[str]"]:
    """What warm Python and a real one do."""
    folder = more.pop("cwd", None)
    environment = {**os.environ, **{name: str(value) for name, value in more.items()}}
    return [
        subprocess.run([python, *words], input=text, capture_output=True, text=True, cwd=folder, env=environment)
        for python in (interpreter(), sys.executable)
    ]


def alike(warm: "subprocess.CompletedProcess[str]", real: "subprocess.CompletedProcess[str]") -> None:
    assert (warm.returncode, warm.stdout, warm.stderr) == (real.returncode, real.stdout, real.stderr)


@pytest.mark.parametrize(
    ("words", "no_bytecode"),
    [(["shows.py", "a b", "-x"], ""), (["-u", "shows.py"], "1"), (["-m", "inner.shows", "1"], "")],
)
def test_it_begins_like_a_real_one(words: list[str], no_bytecode: str, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name in ("shows.py", "inner/shows.py"):
        (tmp_path / name).write_text(SHOWS)
    other = tmp_path / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text("print('customized')")
    variables = {"GIVEN": "ä", "PYTHONPATH": f"{other}:{tmp_path}", "PYTHONDONTWRITEBYTECODE": no_bytecode}
    alike(*both(*words, text="given to it", cwd=tmp_path, TMPDIR=other, **variables))


@pytest.mark.parametrize(
    "program",
    [
        "raise SystemExit(3)",
        "raise SystemExit('a reason')",
        "raise SystemExit(None)",
        "raise SystemExit(-1)",
        "raise KeyboardInterrupt",
        "import sys; print('unflushed', end=''); sys.stdout.close()",
        "def fails(): raise ValueError('a fault')\nfails()",
        "import os; os._exit(7)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import atexit; atexit.register(print, 'at the end'); print('before')",
        "import threading, time\ndef late(): time.sleep(.3); print('late')\nthreading.Thread(target=late).start()",
        "def broken(:",
    ],
)
def test_it_ends_like_a_real_one(program: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(program)
    alike(*both("program.py", cwd=tmp_path))


@pytest.mark.parametrize("words", [["-c", "import sys; print(sys.argv)", "a"], ["-V"], ["-m"], ["nowhere.py"]])
def test_other_uses_are_the_real_ones(words: list[str], tmp_path: Path) -> None:
    warm, real = both(*words, cwd=tmp_path)
    assert (warm.returncode != 0) == (real.returncode != 0)
    assert warm.stdout == real.stdout


ANSWERS = r"""
import os, signal, subprocess, sys, time
def stop(number, frame):
    os.write(1, f"stopped by {number}\n".encode())  # a print may have been interrupted
    sys.exit(5)
signal.signal(signal.SIGTERM, stop)
if len(sys.argv) > 1:
    child = subprocess.Popen([sys.executable, __file__])
print(os.getpid(), "torch" in sys.modules, flush=True)
time.sleep(60)
"""


def started(folder: Path, *words: str) -> tuple["subprocess.Popen[str]", list[int]]:
    """With the process, and those that it and its children say they are."""
    (folder / "answers.py").write_text(ANSWERS)
    process = subprocess.Popen([interpreter(), "answers.py", *words], cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    lines = [process.stdout.readline().split() for _ in range(1 + len(words))]
    assert [line[1] for line in lines] == ["True"] * len(lines)
    return process, [int(line[0]) for line in lines]


def test_signals_reach_it(tmp_path: Path) -> None:
    process, (pid,) = started(tmp_path)
    assert process_of(process.pid) == pid
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert (process.returncode, output) == (5, f"stopped by {signal.SIGTERM.value}\n")
    assert process_of(process.pid) == process.pid  # which may be another's by now
    process, (pid,) = started(tmp_path)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGUSR1
    assert not psutil.pid_exists(pid)


def test_it_and_its_children_are_gone_where_it_is_killed(tmp_path: Path) -> None:
    process, pids = started(tmp_path, "with a child")
    process.kill()
    process.communicate(timeout=20)
    deadline = time.monotonic() + 20
    while any(map(psutil.pid_exists, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_sees_that_its_parent_is_gone(tmp_path: Path) -> None:
    (tmp_path / "watches.py").write_text(
        "import os, time\nbefore = os.getppid()\nprint(before, flush=True)\n"
        "while os.getppid() == before: time.sleep(.01)\nprint('alone', flush=True)"
    )
    starts = "import subprocess, sys, time\nsubprocess.Popen(sys.argv[1:])\ntime.sleep(60)"
    command = [sys.executable, "-c", starts, interpreter(), "watches.py"]
    parent = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert parent.stdout and int(parent.stdout.readline()) == parent.pid
    parent.kill()
    assert parent.communicate(timeout=20)[0] == "alone\n"


def test_what_imports_read_is_never_another_process_s(tmp_path: Path) -> None:
    """huggingface_hub reads HF_ENDPOINT as it is imported, and never again."""
    (tmp_path / "hub.py").write_text("from huggingface_hub import constants; print(constants.ENDPOINT)")
    alike(*both("hub.py", cwd=tmp_path, HF_ENDPOINT="http://127.0.0.1:1"))


def test_where_a_cluster_is_is_read_by_each_process(tmp_path: Path) -> None:
    (tmp_path / "cluster.py").write_text(
        "import kubernetes, sys\nprint('kubernetes.client.models' in sys.modules)\n"
        "print(kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION, kubernetes.client.CoreV1Api.__module__)\n"
        "from kubernetes.client.rest import ApiException; print(kubernetes.client.ApiException is ApiException)"
    )
    alike(*both("cluster.py", cwd=tmp_path, KUBECONFIG=tmp_path / "config"))


def test_nothing_of_this_project_is_imported_beforehand(tmp_path: Path) -> None:
    (tmp_path / "list.py").write_text("import json, sys; print(json.dumps(sorted(sys.modules)))")
    warm, _ = both("list.py", cwd=tmp_path, HF_HUB_DISABLE_PROGRESS_BARS="1")  # as a flow's tasks have it
    modules = {name.partition(".")[0] for name in json.loads(warm.stdout)}
    assert {"torch", "transformers", "mlflow"} <= modules
    assert not {"steps", "fast_electra_core", "metaflow", "server"} & modules


def test_the_server_ends_with_the_tests_and_leaves_nothing(tmp_path: Path) -> None:
    program = (
        "from warm_python import interpreter, _servers; print(interpreter(), _servers[0].pid, flush=True); input()"
    )
    tests = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert tests.stdout
    python, server = tests.stdout.readline().split()
    assert Path(python).is_file() and psutil.pid_exists(int(server))
    tests.kill()
    tests.communicate()
    deadline = time.monotonic() + 60
    while psutil.pid_exists(int(server)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert list(tmp_path.glob("warm*")) == []
