"""Python for tests' subprocesses that starts with torch, transformers and MLflow imported: seconds less for each.

A server (server.py) imports them once and forks a process for each one that is asked for; what is tested is imported
by that process itself. Each is a process as the user's is: with its own environment, folder, files and end
(tests/test_warm_python.py compares it with a real one). It stands in a session of its own, and SIGSTOP does not reach
it: tests that stop processes ask `process_of` for it, those that signal a whole group take `sys.executable`.
"""

import atexit
import functools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COLD = "FAST_ELECTRA_TESTS_COLD"
"""In the environment (`FAST_ELECTRA_TESTS_COLD=1 make test`): every process imports all for itself, as users' do."""


@functools.cache
def interpreter() -> str:
    """What stands in for `sys.executable`; its folder holds nothing else than this `python`."""
    if COLD in os.environ or not _tells_of_ends():
        return sys.executable
    here, folder = Path(__file__).parent, Path(tempfile.mkdtemp(prefix="warm"))
    address, python = folder / "socket", folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{here}/client.py" "$0" "{address}" "$@"\n')
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSTARTUP")}
    # The memory pool of pyarrow has a thread, which a fork would lose.
    environment["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
    with (folder / "log").open("wb") as log:
        _servers.append(
            subprocess.Popen(
                [sys.executable, str(here / "server.py"), str(address)],
                stdin=subprocess.PIPE,  # it ends where this process closes it, also by being killed
                stdout=log,
                stderr=log,
                env=environment,
            )
        )
    atexit.register(_servers[-1].communicate, timeout=20)  # closes that, and waits
    while not address.exists():
        assert _servers[-1].poll() is None, (folder / "log").read_text()
        time.sleep(0.01)
    return str(python)


def process_of(pid: int) -> int:
    """The process that `pid` stands for; itself, where it stands for none."""
    note = Path(interpreter()).parents[1] / str(pid)
    return int(note.read_text()) if note.exists() else pid


def _tells_of_ends() -> bool:
    """Whether this system has what the server waits by: Linux since 5.3, but not every sandbox."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


_servers: list["subprocess.Popen[bytes]"] = []
