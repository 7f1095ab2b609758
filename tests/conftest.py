"""What several test files share: a small text, and folders in which flows run as the user runs them."""

import contextlib
import functools
import gc
import http.server
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from huggingface_hub.errors import HfHubHTTPError
from planted import PLANTED
from warm_python import interpreter

import fast_electra_core
import steps
from steps.store import Store

# Before torch is imported, here and in what tests start: toy sizes are many times slower on several threads where other
# processes want the cores too.
os.environ["OMP_NUM_THREADS"] = "1"
# Where nobody may keep bytecode, as in most containers, each process that tests start would compile this project anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
ROOT = Path(__file__).resolve().parent.parent
TEXT = ("--preset", "tiny", "--corpus", "text.txt", "--corpus_licence", "CC0-1.0", "--heldout_fraction", "0.1")
"""Parameters of both flows: the text that `write_text` has written."""
TRAINING = (*TEXT, "--shard_megabytes", "0.06", "--tasks", "rte", "--seeds", "1", "--finetune_max_examples", "500")
LONG_ENOUGH_TO_BE_KILLED = ("--num_steps", "200", "--checkpoint_every_steps", "20", "--log_every_steps", "10")

FLOW_FILES = (
    "test_flow.py",
    "test_flow_offline.py",
    "test_flow_reproduce.py",
    "test_flow_resume.py",
    "test_flow_retrain.py",
    "test_flow_secrets.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest work first, so that the workers end at about the same time."""
    items.sort(key=lambda item: item.path.name not in FLOW_FILES)


def pytest_collection_finish() -> None:
    """A million objects that stay: the collector of cycles is not to look among them again and again."""
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file on one worker, and those of FLOW_FILES on the same one, where the flows run once.

    xdist's own groups (`xdist_group`) are without effect under pytest 9.2: they rename items, which no longer works.
    """
    from xdist.scheduler import LoadScopeScheduling

    class FilesTogether(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0].rpartition("/")[2]
            return "flows" if file in FLOW_FILES else file

    config.option.loadscopereorder = False
    return FilesTogether(config, log)


@contextlib.contextmanager
def moto_server(folder: Path, **environment: str) -> Iterator[str]:
    """The address of a mock of AWS on the loopback interface; its log goes to folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (folder / "log").open("wb")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment)
    try:
        deadline = time.monotonic() + 60
        while not _is_listening(port):
            assert server.poll() is None and time.monotonic() < deadline, "the S3 server did not start"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()
        log.close()


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that speaks S3 on the loopback interface."""
    with moto_server(tmp_path_factory.mktemp("moto")) as address:
        yield address


def _is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A client of the server with an empty bucket `bucket`; the environment points at it."""
    import boto3

    from steps import s3_text

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("FAST_ELECTRA_CACHE", str(tmp_path / "s3_cache"))
    urllib.request.urlopen(urllib.request.Request(f"{s3_endpoint}/moto-api/reset", method="POST")).close()
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    yield client
    s3_text._client.cache_clear()
    client.close()


def brought_from_s3(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is read of texts in S3 from now on, answer by answer."""
    from steps import s3_text

    brought: list[bytes] = []
    get = s3_text._Object._get

    def noted(*given: Any) -> bytes:
        brought.append(get(*given))
        return brought[-1]

    monkeypatch.setattr(s3_text._Object, "_get", noted)
    return brought


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@functools.cache
def _empty_database() -> bytes:
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory() as folder:
        MlflowClient(f"sqlite:///{folder}/mlflow.db")
        return Path(folder, "mlflow.db").read_bytes()


def new_database(folder: Path) -> str:
    """The URI of an MLflow database in the folder, with the experiment `tests`. Making its tables takes MLflow four
    seconds, once for all the tests of a process."""
    from steps import tracking

    (folder / "mlflow.db").write_bytes(_empty_database())
    uri = f"sqlite:///{folder}/mlflow.db"
    tracking.check_server(uri, "tests")
    return uri


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a file's own."""
    return new_database(tmp_path_factory.mktemp("database"))


@contextlib.contextmanager
def answering(answer: Callable[[str], tuple[int, str]]) -> Iterator[str]:
    """The address of an HTTP server on the loopback interface that answers a GET of a path by status and body."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answer(self.path)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def denying_server() -> Iterator[str]:
    """An MLflow server that lets nobody in."""
    refusal = json.dumps({"error_code": "PERMISSION_DENIED", "message": "Permission denied"})
    with answering(lambda path: (403, refusal)) as address:
        yield address


HUB_HTTP_ERROR: Any = HfHubHTTPError.__bases__[0]
"""Of the library by which huggingface_hub talks to the hub: it lets a connection's errors through as they are."""


def write_text(path: Path, *, num_documents: int = 400) -> Path:
    """About 100 KB of documents with two words each, so that a masked word is easily told from its neighbours."""
    rng = random.Random(0)
    beginnings, endings = ("ka", "mo", "ri", "te", "su", "lo", "na", "vi"), ("ra", "den", "lis", "to", "mu", "pel")
    words = [beginning + ending for beginning in beginnings for ending in endings]
    documents = []
    for _ in range(num_documents):
        topic = rng.sample(words, 2)
        documents.append(" ".join(rng.choice(topic) for _ in range(rng.randrange(28, 60))) + ".")
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


@contextlib.contextmanager
def files_no_larger_than(num_bytes: int) -> Iterator[None]:
    """The operating system refuses to let any file of this process grow further, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Workspace:
    """A folder of its own in which flows run as subprocesses, with Metaflow's and MLflow's data inside it."""

    timeout_seconds = 900
    """After which a flow is killed, and its test fails."""

    def __init__(self, folder: Path, *, has_database: bool = True, python: str = "") -> None:
        """has_database: whether MLflow's tables are there already, which takes a flow four seconds; python: what runs
        the flows, by default one that has imported what takes their steps most of their time."""
        self.folder = folder
        self.python = python or interpreter()
        if has_database:
            (folder / "mlflow.db").write_bytes(_empty_database())
        write_text(folder / "text.txt")
        # The packages that the tests import, and nothing else that lies beside them.
        self.packages = folder / "packages"
        self.packages.mkdir()
        for package in (steps, fast_electra_core):
            (self.packages / package.__name__).symlink_to(Path(str(package.__file__)).resolve().parent)

    def environment(self, **more: str) -> dict[str, str]:
        """The user's, cleaned of what would lead to other folders or servers."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("METAFLOW", "MLFLOW", "PYTHONPATH"))
        }
        ours = {
            "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(self.folder),
            "METAFLOW_HOME": str(self.folder / "metaflow_home"),
            "METAFLOW_DEFAULT_METADATA": "local",
            "METAFLOW_DEFAULT_DATASTORE": "local",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PYTHONPATH": str(self.packages),
            "USERNAME": "tester",
        }
        return {**kept, **ours, **more}

    def start(self, flow: str | Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """A flow in a process group of its own; flow is a file of `flows/`, or any path."""
        return subprocess.Popen(
            [self.python, str(ROOT / "flows" / flow), *arguments],
            cwd=self.folder,
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, flow: str | Path, *arguments: str, succeeds: bool = True, **environment: str) -> str:
        """Run a flow to its end; returns what it printed."""
        process = self.start(flow, *arguments, **environment)
        try:
            output, _ = process.communicate(timeout=self.timeout_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            pytest.fail(f"{flow} had not ended after {self.timeout_seconds} s: {output}")
        assert (process.returncode == 0) == succeeds, output
        return output

    def latest(self, flow: str) -> Any:
        """Metaflow's newest run of the flow."""
        import metaflow

        metaflow.metadata(f"local@{self.folder}")
        metaflow.namespace(None)
        return metaflow.Flow(flow).latest_run

    def mlflow(self) -> Any:
        """A client of the MLflow database."""
        from mlflow import MlflowClient

        uri = f"sqlite:///{self.folder}/mlflow.db"
        return MlflowClient(uri, registry_uri=uri)  # by itself it would ask the registry that this process used last


_BREAKS = """
import os, sys

class Breaks:
    @staticmethod
    def find_spec(name, path=None, target=None):
        step, module, *index = os.environ.get("BREAK_AT", "no step").split()
        if name != module or step not in sys.argv:  # a task's command line names its step
            return
        if not index or sys.argv[sys.argv.index("--split-index") + 1] == index[0]:
            raise OSError("broken in this step")

sys.meta_path.insert(0, Breaks)
"""


def breakable(workspace: Workspace, folder: Path) -> dict[str, str]:
    """The environment of a flow whose step breaks where it imports a module, if BREAK_AT says so: `STEP MODULE`, or
    `STEP MODULE INDEX` for one task of a foreach. Of a module that comes before torch, that costs little."""
    (folder / "sitecustomize.py").write_text(_BREAKS)
    return {"PYTHONPATH": f"{folder}:{workspace.packages}"}


class Finished(NamedTuple):
    """One AuxiliaryFlow and one PretrainFlow, run to their ends."""

    workspace: Workspace
    auxiliary: Any
    """Metaflow's run."""
    pretrain: Any
    output: str
    """What PretrainFlow printed."""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Both flows on the small text, with secrets in their environment. It costs minutes: the files of the tests that
    ask for it are in FLOW_FILES."""
    # As a user's first run finds it.
    workspace = Workspace(tmp_path_factory.mktemp("flows"), has_database=False, python=sys.executable)
    steps = ("--num_steps", "60", "--learning_rate", "0.01", "--checkpoint_every_steps", "20")
    workspace.run("auxiliary_flow.py", "run", *TEXT, *steps, **PLANTED)
    workspace.python = interpreter()
    output = workspace.run(
        "pretrain_flow.py", "run", *TRAINING, *LONG_ENOUGH_TO_BE_KILLED, "--keep_task_models", "true", **PLANTED
    )
    return Finished(workspace, workspace.latest("AuxiliaryFlow"), workspace.latest("PretrainFlow"), output)
