"""A process that has imported what flows import of others, and forks one for whoever asks (client.py).

python server.py SOCKET, until its standard input ends. It has one thread, and nothing of this project: what is tested
is imported anew by every process.
"""

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import threading
import types
import weakref
from pathlib import Path
from typing import NamedTuple

READ_AT_IMPORT = ("HF_", "MPL", "OMP_", "PYTHON", "TRANSFORMERS_")
"""How variables begin that what is imported here reads as it is imported: with other values a process starts cold."""
INDIFFERENT = (
    "HF_HUB_DISABLE_PROGRESS_BARS", "HF_TOKEN", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONUNBUFFERED"
)  # fmt: skip
"""Of these Python's own are minded here; a token is read when it is used; and every step sets the other, for downloads,
of which there are none."""


IMPORTED = (
    "alembic.command", "boto3", "jinja2", "kubernetes", "matplotlib.backends.backend_svg", "matplotlib.pyplot",
    "mlflow.pytorch", "mlflow.store.model_registry.sqlalchemy_workspace_store",
    "mlflow.store.tracking.sqlalchemy_workspace_store", "mlflow.transformers", "pyarrow.parquet", "sklearn.metrics",
    "sqlalchemy.dialects.sqlite", "torch.distributed.elastic.multiprocessing.api", "torch.distributed.fsdp",
    "torch.distributed.launcher.api", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto", "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert", "transformers.models.electra.modeling_electra",
    "transformers.models.modernbert.modeling_modernbert", "transformers.pipelines",
)  # fmt: skip
"""Seconds of a step. Metaflow is not among them: what it reads at its import differs from flow to flow."""


class Request(NamedTuple):
    words: list[str]
    """What Python would be started with: [-u] FILE or [-u] -m MODULE, and arguments."""
    executable: str
    """What this Python is called by the process that it becomes, and started by it."""
    folder: str
    environment: dict[str, str]
    mask: int
    parent: int
    """The process that asked."""
    files: list[int]
    """Its standard files."""

    @property
    def suits(self) -> bool:
        """Whether what is imported is what its process would have imported."""
        return _read_at_import(self.environment) == _read_at_import(os.environ)


def _read_at_import(environment: "dict[str, str] | os._Environ[str]") -> dict[str, str]:
    named = {name: value for name, value in environment.items() if name.startswith(READ_AT_IMPORT)}
    return {name: value for name, value in named.items() if name not in INDIFFERENT}


def receive(connection: socket.socket) -> Request:
    """Raises EOFError where whoever asked is gone."""
    message, files, _, _ = socket.recv_fds(connection, 8, 3)
    content = connection.makefile("rb").read(int.from_bytes(message, "big"))
    try:
        return Request(**json.loads(content), files=files)
    except (ValueError, TypeError):
        close(files)
        raise EOFError from None


def close(files: list[int]) -> None:
    for file in files:
        os.close(file)


def serve(listener: socket.socket, folder: Path) -> Request:
    """Returns in each process that is forked. The folder says of each who stands for it, and is removed at the end."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(0, selectors.EVENT_READ)
    while True:
        key = selector.select()[0][0]  # one at a time: what it does may end what another would tell
        if key.fileobj == 0:  # closed: the tests have ended
            shutil.rmtree(folder)
            sys.exit()
        elif key.fileobj is listener:
            connection, _ = listener.accept()
            try:
                request = receive(connection)
            except (EOFError, OSError):
                connection.close()
                continue
            if not request.suits:
                tell(connection, "cold")
                connection.close()
                close(request.files)
                continue
            child = os.fork()
            if child == 0:
                close([other.fd for other in selector.get_map().values() if other.fd])
                selector.close()
                connection.close()
                return request
            close(request.files)
            note = folder / str(request.parent)
            note.write_text(str(child))
            tell(connection, child)
            selector.register(connection, selectors.EVENT_READ, (child, None, note))
            selector.register(os.pidfd_open(child), selectors.EVENT_READ, (child, connection, note))
        else:
            child, connection, note = key.data
            selector.unregister(key.fileobj)
            if connection is None:  # closed: whoever asked was killed, and with it all that it stands for
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)
                continue
            _, status = os.waitpid(child, 0)
            note.unlink()
            tell(connection, os.waitstatus_to_exitcode(status))
            if connection.fileno() in selector.get_map():
                selector.unregister(connection)
            connection.close()
            os.close(key.fd)


def tell(connection: socket.socket, answer: str | int) -> None:
    with contextlib.suppress(OSError):  # it is gone
        connection.sendall(f"{answer}\n".encode())


def become(request: Request) -> list[str]:
    """All that a new process has from its parent. Returns the words that say what to run."""
    os.setsid()
    for number, file in enumerate(request.files):
        os.dup2(file, number)
    close(request.files)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request.environment)
    os.umask(request.mask)
    os.chdir(request.folder)
    is_unbuffered = request.words[0] == "-u"
    open_standard_files(is_unbuffered)
    sys.executable = request.executable
    tempfile.tempdir = None  # what TMPDIR said as it was first asked for
    sys.dont_write_bytecode = bool(request.environment.get("PYTHONDONTWRITEBYTECODE"))
    os.getppid = lambda: parent_of(request.parent)  # who watches it looks whether the one who asked is orphaned
    sys.path[:0] = filter(None, request.environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.modules.pop("sitecustomize", None)
    with contextlib.suppress(ModuleNotFoundError):
        import sitecustomize  # noqa: F401
    return request.words[is_unbuffered:]


def open_standard_files(is_unbuffered: bool) -> None:
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")
    for number, name, errors in ((1, "stdout", "strict"), (2, "stderr", "backslashreplace")):
        file = io.FileIO(number, "wb", closefd=False)
        buffer = file if is_unbuffered else io.BufferedWriter(file)
        text = io.TextIOWrapper(
            buffer,  # type: ignore[arg-type]
            encoding="utf-8",
            errors=errors,
            line_buffering=name == "stderr" or os.isatty(number),
            write_through=is_unbuffered,
        )
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)


def parent_of(process: int) -> int:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return 1
    return int(status.rpartition(")")[2].split()[1])


def run(words: list[str]) -> None:
    """As `python WORDS` does."""
    if words[0] == "-m":
        sys.path.insert(0, str(Path.cwd()))
        sys.argv = words[1:]
        runpy._run_module_as_main(words[1])  # type: ignore[attr-defined]
        return
    file = Path(words[0])
    sys.path.insert(0, str(file.resolve().parent))
    sys.argv = words
    module = types.ModuleType("__main__")
    name = str(Path.cwd() / file)
    vars(module).update(__file__=name, __builtins__=__builtins__)
    sys.modules["__main__"] = module
    exec(compile(file.read_bytes(), name, "exec"), vars(module))


def main(address: str) -> Request:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen(64)  # whoever asks before the imports are done waits
    Path(f"{address}.new").rename(address)
    del sys.path[0]  # this folder
    for name in IMPORTED:
        importlib.import_module(name)
    # With KUBECONFIG, which it reads as it is imported; what takes a second of it is kubernetes.client.
    for name in [name for name in sys.modules if name == "kubernetes" or name.startswith("kubernetes.config")]:
        del sys.modules[name]
    threads = list(Path("/proc/self/task").iterdir())
    assert len(threads) == 1, f"a fork loses threads, and what they hold is held for ever: {len(threads)}"
    for each in weakref.finalize._registry:  # type: ignore[attr-defined]
        each.atexit = False  # torch's take down its table of operations, and copy 34 MB for that
    gc.freeze()
    return serve(listener, Path(address).parent)


def end_of(words: list[str]) -> int:
    """The exit status of a process that runs them. All is done that Python does at its end, but for taking the modules
    down: that writes to all the memory that is shared with the server, and takes a second where little else does."""
    status: object = 0
    try:
        run(words)
    except SystemExit as end:
        status = end.code
    except BaseException as error:
        frames = error.__traceback__
        while frames and frames.tb_frame.f_code.co_filename == __file__:
            frames = frames.tb_next
        sys.excepthook(type(error), error.with_traceback(frames), frames)
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    if status is not None and not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for file in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # whoever read it is gone; the program has closed it
            file.flush()
    return status or 0


if __name__ == "__main__":
    status = end_of(become(main(sys.argv[1])))
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status & 0xFF)
