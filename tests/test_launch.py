"""A group of processes trains as one would, and survives the death of each of them, of its launcher, and a stop."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from conftest import new_database, write_text
from hosts import Host, can_have_hosts, two_hosts
from processes import together
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousConnectionError
from toys import save_auxiliary
from warm_python import interpreter, process_of

from fast_electra_core.checkpoint import list_checkpoints, load_latest
from fast_electra_core.errors import CheckpointError, ConfigError, GroupError
from fast_electra_core.parallel import Group
from steps import launch, lifecycle, planning, training_process
from steps.store import Store

GIVEN = {
    "preset": "tiny", "corpus": "text.txt", "heldout_fraction": 0.1, "store": "store", "corpus_licence": "CC0-1.0",
    "num_steps": 120, "checkpoint_every_steps": 10, "log_every_steps": 10, "dropout": 0.0, "learning_rate": 0.003,
    "tracking_uri": "sqlite:///mlflow.db", "auxiliary": "auxiliary", "embedding_size": 8, "tasks": "rte", "seeds": 1,
}  # fmt: skip
TIMEOUT = 30.0  # the first process may import, and open its run, for some seconds while the other waits
STOP_SECONDS = 10  # what is promised of a stop at this size


class Run(NamedTuple):
    """One training of the main model, all that it needs made."""

    folder: Path
    arguments: list[Any]
    """Of launch.pretrain."""

    @property
    def plan(self) -> dict[str, Any]:
        plan: dict[str, Any] = self.arguments[0]
        return plan

    @property
    def checkpoints(self) -> Path:
        return Store(str(self.folder / "store")).path(f"{self.plan['run_key']}/checkpoints")

    def newest_step(self) -> int:
        return max((int(folder.name.removeprefix("step-")) for folder in list_checkpoints(self.checkpoints)), default=0)

    @property
    def scratch(self) -> Path:
        """Where its processes have their temporary files."""
        return self.folder / self.plan["run_key"].replace("/", "-") / "scratch"

    def start(self, *machine: str, name: str = "", host: Host | None = None) -> "subprocess.Popen[str]":
        """machine: its index, the number of machines, and the first one's address, if that is not this machine's;
        name: what it takes itself to be called, if not as it is; host: where it runs, if not here."""
        file = self.scratch.with_name("arguments.json")
        self.scratch.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(self.arguments))
        script = Path(__file__).with_name("train_in_group.py")
        python = (*host.command, sys.executable) if host else (interpreter(),)  # what is warm is on this machine
        return subprocess.Popen(
            [*python, str(script), str(file), *machine], cwd=self.folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(self.scratch), **(self._called(name) if name else {})},
        )  # fmt: skip

    def _called(self, name: str) -> dict[str, str]:
        """The environment in which Python finds a machine of this name."""
        folder = self.folder / name
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(f"import socket\n\nsocket.gethostname = lambda: {name!r}\n")
        return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.scratch.with_name("result.json").read_text())
        return found


@pytest.fixture(scope="module")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Run]]:
    """Runs up to their training, in one folder."""
    folder = tmp_path_factory.mktemp("group")
    new_database(folder)
    text = write_text(folder / "text.txt", num_documents=120)
    save_auxiliary(folder / "auxiliary", text.read_text().split("\n\n"))

    def prepared(name: str, **given: Any) -> Run:
        plan = planning.begin_pretrain({**GIVEN, **given}, flow="PretrainFlow", run_id=name)
        tokenized = [lifecycle.tokenize(plan, task) for task in lifecycle.list_tokenizings(plan)]
        text = lifecycle.gather_tokens(plan, tokenized)
        scored = [lifecycle.score_candidate(plan, text, candidate) for candidate in plan["candidates"]]
        frozen, _ = lifecycle.freeze_auxiliary(plan, text, scored)
        return Run(folder, [plan, text, frozen, lifecycle.gather_corruptions(plan, text, frozen, [])])

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield prepared


@pytest.fixture(scope="module")
def whole(prepare: Callable[..., Run]) -> Run:
    """Trained by two processes that nothing happens to."""
    run = prepare("whole", processes_per_node=2)
    process = run.start()
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return run


class Disturbed(NamedTuple):
    run: Run
    output: list[str]
    """Of the three attempts."""
    stop_seconds: float
    """From SIGTERM to the complete checkpoint."""
    stopped_at: int
    """Its step."""
    survivors: list[int]
    """Processes that still train seconds after their launcher was killed."""
    reached: int
    """The newest checkpoint's step then."""


@pytest.fixture(scope="module")
def disturbed(whole: Run, prepare: Callable[..., Run]) -> Disturbed:
    """The same training, with a process killed; then one slow; then stopped; then its launcher killed; then left in
    peace."""
    run = prepare("disturbed", processes_per_node=2, group_timeout_seconds=TIMEOUT)
    process = run.start()
    wait_for_step(run, process, 10)
    os.kill(group_of(process)[1], signal.SIGKILL)
    reached = run.newest_step()
    wait_for_step(run, process, reached + 20)
    slow = group_of(process)[0]
    os.kill(slow, signal.SIGSTOP)
    time.sleep(4)
    os.kill(slow, signal.SIGCONT)
    wait_for_step(run, process, run.newest_step() + 20)
    asked = time.time()
    process.send_signal(signal.SIGTERM)
    first, _ = process.communicate(timeout=60)
    stop_seconds, stopped_at = list_checkpoints(run.checkpoints)[0].stat().st_ctime - asked, run.newest_step()

    process = run.start()
    wait_for_step(run, process, stopped_at + 10)
    group = [*group_of(process).values()]
    os.kill(process_of(process.pid), signal.SIGKILL)
    survivors, reached = still_running(group), run.newest_step()
    second, _ = process.communicate(timeout=60)

    process = run.start()
    third, _ = process.communicate(timeout=200)
    assert process.returncode == 0, third
    return Disturbed(run, [first, second, third], stop_seconds, stopped_at, survivors, reached)


def still_running(group: list[int], *, seconds: float = 5) -> list[int]:
    """Those of the processes that have not ended in so long; without their launcher they would train for longer.

    A process that is killed closes its output before it ceases to be one, and so is there for a moment more.
    """
    deadline = time.monotonic() + seconds
    while (left := [pid for pid in group if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def group_of(process: "subprocess.Popen[str]") -> dict[int, int]:
    """The processes that train, by rank."""
    children = psutil.Process(process_of(process.pid)).children()
    found = [each for each in children if "steps.training_process" in each.cmdline()]
    return {int(each.environ()["RANK"]): process_of(each.pid) for each in found}


def wait_for_step(run: Run, process: "subprocess.Popen[str]", step: int) -> None:
    deadline = time.monotonic() + 120
    while run.newest_step() < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def weights_of(run: Run) -> dict[str, bytes]:
    newest = load_latest(run.checkpoints)
    assert newest is not None and newest.step == GIVEN["num_steps"]
    return {name: value.numpy().tobytes() for name, value in newest.tensors.items()}


def test_two_processes_train_the_model_that_one_trains(prepare: Callable[..., Run], whole: Run) -> None:
    alone = prepare("alone")
    result, _ = lifecycle.pretrain(*alone.arguments)
    together = whole.result()
    assert (result["num_processes"], together["num_processes"]) == (1, 2)
    for ours, theirs in zip(together["curve"], result["curve"], strict=True):
        assert ours["step"] == theirs["step"]
        for name in ("loss", "gradient_norm", "replaced_fraction", "heldout_rtd_loss", "heldout_auc"):
            assert ours[name] == pytest.approx(theirs[name], rel=2e-3), (ours["step"], name)
    assert together["scores"] == pytest.approx(result["scores"], rel=2e-3)
    assert list(whole.scratch.iterdir()) == []


def pretrain_in(group: Group, folder: str, arguments: list[Any]) -> dict[str, Any]:
    os.chdir(folder)
    return lifecycle.pretrain(*arguments, group=group)[0]


def test_processes_that_share_the_model_score_and_save_the_one_that_one_trains(prepare: Callable[..., Run]) -> None:
    """Without the launcher."""
    run = prepare("shared", processes_per_node=2, sharding="fsdp", num_steps=20)
    shared, nothing = together(2, pretrain_in, str(run.folder), run.arguments)
    assert nothing == {}
    alone, _ = lifecycle.pretrain(*prepare("for one", num_steps=20).arguments)
    for ours, theirs in zip(shared["curve"], alone["curve"], strict=True):
        for name in ("step", "loss", "gradient_norm", "heldout_rtd_loss", "heldout_auc"):
            assert ours[name] == pytest.approx(theirs[name], rel=2e-3), (ours["step"], name)
    assert shared["scores"] == pytest.approx(alone["scores"], rel=2e-3)
    assert shared["num_parameters"] == alone["num_parameters"]


def test_a_group_whose_members_are_killed_and_stopped_ends_with_the_same_bits(whole: Run, disturbed: Disturbed) -> None:
    assert weights_of(disturbed.run) == weights_of(whole)
    assert disturbed.run.result()["digest"] == whole.result()["digest"]
    curve = disturbed.run.result()["curve"]
    expected = whole.result()["curve"]
    assert [{**row, "tokens_per_second": 0} for row in curve] == [{**row, "tokens_per_second": 0} for row in expected]


def test_a_process_that_is_killed_is_replaced_without_help_and_one_that_is_slow_is_waited_for(
    disturbed: Disturbed,
) -> None:
    output = disturbed.output[0]
    assert output.count("goes on from its checkpoint at step") == 1
    assert "a process of the group has died; the group begins again, restart 1 of 3" in output
    assert "restart 2 of 3" not in output


def test_a_stop_gives_a_checkpoint_in_time(disturbed: Disturbed) -> None:
    assert 0 < disturbed.stop_seconds < STOP_SECONDS
    assert f"stopped after step {disturbed.stopped_at}; a checkpoint is written" in disturbed.output[0]
    assert f"goes on from its checkpoint at step {disturbed.stopped_at}" in disturbed.output[1]


def test_no_process_outlives_its_launcher(disturbed: Disturbed) -> None:
    """Nor trains on to its end."""
    assert disturbed.survivors == []
    assert disturbed.reached < GIVEN["num_steps"]


def test_the_tracker_has_one_curve_of_a_disturbed_run(whole: Run, disturbed: Disturbed) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{whole.folder}/mlflow.db")
    curves = {}
    for run in (whole, disturbed.run):
        history = client.get_metric_history(run.result()["mlflow_run_id"], "loss")
        curves[run.plan["run_key"]] = sorted((value.step, value.value) for value in history)
        assert [value.step for value in sorted(history, key=lambda value: value.step)] == list(range(10, 121, 10))
    assert len({tuple(curve) for curve in curves.values()}) == 1


class Apart(NamedTuple):
    """The same training on two machines, whose launchers do not see each other's processes."""

    run: Run
    output: str
    """Of all launchers."""
    hung: int
    """The process of the other machine that was frozen for longer than the group waits."""
    rank: int
    hung_at: int
    """The newest checkpoint's step then."""


@pytest.fixture(scope="module")
def apart(whole: Run, prepare: Callable[..., Run]) -> Apart:
    """A process of the other machine hangs: both launchers stay, and neither's group goes on without the other. Then
    that machine is lost, and another one comes in its place, as a JobSet's pod that is started again elsewhere."""
    run = prepare("apart", processes_per_node=1, num_nodes=2, group_timeout_seconds=TIMEOUT)
    first, second = run.start("0", "2", name="machine-a"), run.start("1", "2", name="machine-b")
    wait_for_step(run, first, 10)
    (waiting,), ((rank, hung),) = group_of(first).values(), group_of(second).items()
    os.kill(hung, signal.SIGSTOP)
    hung_at = run.newest_step()
    assert still_running([waiting, hung], seconds=100) == []
    wait_for_step(run, first, hung_at + 20)
    for pid in (*group_of(second).values(), process_of(second.pid)):
        os.kill(pid, signal.SIGKILL)
    launchers = [first, second, run.start("1", "2")]
    output = "".join(launcher.communicate(timeout=200)[0] for launcher in launchers)
    assert [first.returncode, launchers[-1].returncode] == [0, 0], output
    return Apart(run, output, hung, rank, hung_at)


def test_a_process_that_hangs_is_named_with_its_machine(apart: Apart) -> None:
    beginning = f"got no answer from rank {apart.rank} (process {apart.hung} on machine-b)"
    said = apart.output[apart.output.index(beginning) :]
    assert re.match(
        r".*([Tt]imed out|timeout).*It ends, for the group to begin again from its newest checkpoint\.", said
    ), apart.output
    assert f"An answer may take {TIMEOUT:g} s: raise --group_timeout_seconds where one was merely slow" in said


def test_after_a_hang_and_the_loss_of_a_machine_the_group_ends_with_the_same_bits(whole: Run, apart: Apart) -> None:
    begun_at = sorted(map(int, re.findall(r"goes on from its checkpoint at step (\d+)", apart.output)))
    assert len(begun_at) == 2 and apart.hung_at <= begun_at[0] <= begun_at[1] - 20 < GIVEN["num_steps"] - 20
    assert weights_of(apart.run) == weights_of(whole)


@pytest.mark.long
def test_machines_whose_cable_is_cut_for_longer_than_they_wait_go_on_when_it_is_mended(
    whole: Run, prepare: Callable[..., Run]
) -> None:
    """Nobody is told that it is cut: what is sent is lost, and connections stay."""
    if not can_have_hosts():
        pytest.skip("no namespaces of the network here: they want root, and iproute2")
    run = prepare("cut", processes_per_node=1, num_nodes=2, group_timeout_seconds=TIMEOUT)
    with two_hosts() as network:
        address = network.hosts[0].address
        launchers = [run.start(str(index), "2", address, host=host) for index, host in enumerate(network.hosts)]
        wait_for_step(run, launchers[0], 10)
        network.cut()
        time.sleep(3 * TIMEOUT)
        cut_at = run.newest_step()
        network.mend()
        outputs = [launcher.communicate(timeout=300)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], "".join(outputs)
    assert cut_at < GIVEN["num_steps"]
    for output in outputs:
        assert "got no answer from rank " in output, output
    assert weights_of(run) == weights_of(whole)


def test_an_error_of_the_users_is_said_as_one_and_not_tried_again(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another seed in the folder of the run that has ended; the launcher is left out, the process is this one."""
    plan = {**whole.plan, "config": {**whole.plan["config"], "seed": 7}}
    arguments = [plan, *whole.arguments[1:]]
    (tmp_path / launch.JOB).write_text(json.dumps({"work": "pretrain", "arguments": arguments}))
    places = {"RANK": "0", "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "0"}
    keep_environment(monkeypatch)
    for name, value in places.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "tracebacklimit", 100, raising=False)
    with pytest.raises(SystemExit, match="1"):
        training_process.main(tmp_path)
    kind, message = json.loads((tmp_path / launch.ERROR).read_text())
    assert kind == "CheckpointError"
    assert "is of another run: seed differ. Start a new run" in message
    assert not (tmp_path / launch.RESULT).exists()
    monkeypatch.setattr(lifecycle, "pretrain", lambda *_, **__: pytest.fail("it was tried again"))
    with pytest.raises(SystemExit, match="1"):
        training_process.main(tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise ChildFailedError("", {0: ProcessFailure(0, 0, 1, "")})

    monkeypatch.setattr("torch.distributed.launcher.api.launch_agent", fail)
    with pytest.raises(CheckpointError, match="is of another run: seed differ"):
        launch._run_group(tmp_path, 2, launch.ONE)
    (tmp_path / launch.ERROR).unlink()
    with pytest.raises(ChildFailedError):  # of a kind that nobody has expected
        launch._run_group(tmp_path, 2, launch.ONE)


def test_a_machine_whose_first_one_has_ended_says_where_the_reason_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch says that of the meeting place, which the first machine has taken along."""
    keep_environment(monkeypatch)

    def fail(*_: Any, **__: Any) -> None:
        raise RendezvousConnectionError("The connection to the C10d store has failed.")

    monkeypatch.setattr("torch.distributed.launcher.api.launch_agent", fail)
    with pytest.raises(GroupError, match=r"the first of .*, 127\.0\.0\.1, has ended .* its own task says why"):
        launch._run_group(tmp_path, 1, launch.Machine(1, 2, "127.0.0.1", "7-0"))


def test_machines_that_do_not_come_are_waited_for_no_longer_than_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch waits ten minutes by itself, whatever a `timeout` among its settings is: a node may take longer."""
    keep_environment(monkeypatch)
    assert launch._JOIN_SECONDS == 30 * 60
    monkeypatch.setattr(launch, "_JOIN_SECONDS", 3)
    begun = time.monotonic()
    with pytest.raises(
        GroupError, match=r"not all of the 2 machines .* within 0\.05 minutes: .* still wait for a node"
    ):
        launch._run_group(tmp_path, 1, launch.Machine(0, 2, "127.0.0.1", str(tmp_path)))
    assert 3 <= time.monotonic() - begun < 60


def test_a_meeting_place_that_is_taken_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_environment(monkeypatch)
    attempt = str(tmp_path)
    port = 20_000 + zlib.crc32(attempt.encode()) % 10_000
    with (
        socket.create_server(("", port)),
        pytest.raises(GroupError, match=rf"meet at 127\.0\.0\.1:{port}: .*address already in use.*another port"),
    ):
        launch._run_group(tmp_path, 1, launch.Machine(0, 2, "127.0.0.1", attempt))


def keep_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a launch sets for its processes is to be as it was afterwards."""
    for name in ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "TORCH_CPP_LOG_LEVEL", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What torch's launcher is given from now on; it starts nothing."""
    keep_environment(monkeypatch)
    found: list[Any] = []
    monkeypatch.setattr("torch.distributed.launcher.api.launch_agent", lambda config, *_, **__: found.append(config))
    return found


def test_processes_that_are_to_stop_have_time_for_a_large_checkpoint(tmp_path: Path, launched: list[Any]) -> None:
    """Torch's launcher kills them after 30 s by itself: seen of one that takes 34."""
    launch._run_group(tmp_path, 2, launch.ONE)
    assert [config.shutdown_timeout for config in launched] == [300]


@pytest.mark.skipif(sys.platform != "linux", reason="the loopback has another name")
def test_processes_listen_on_the_way_to_the_first_machine_and_not_where_a_name_leads(
    tmp_path: Path, launched: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's own /etc/hosts leads a machine's name to its loopback."""
    launch._run_group(tmp_path, 2, launch.ONE)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "bond0")
    launch._run_group(tmp_path, 2, launch.ONE)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "bond0"  # who has chosen one keeps it


def test_the_launchers_of_a_run_meet_at_its_first_machine_and_attempts_do_not_mix(
    tmp_path: Path, launched: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_own_address", lambda of_first: f"the way to {of_first}")
    for index, attempt in ((0, "7-0"), (1, "7-0"), (0, "7-1")):
        launch._run_group(tmp_path, 4, launch.Machine(index, 2, "10.0.0.1", attempt))
    first, second, again = launched
    for each in launched:
        assert (each.min_nodes, each.max_nodes, each.nproc_per_node, each.max_restarts) == (2, 2, 4, 3)
        assert each.local_addr == "the way to 10.0.0.1"
        assert each.rdzv_endpoint.startswith("10.0.0.1:")
        assert 20_000 <= int(each.rdzv_endpoint.partition(":")[2]) < 30_000
        assert each.rdzv_configs["read_timeout"] == 1800
    assert (first.rdzv_endpoint, first.run_id) == (second.rdzv_endpoint, second.run_id)
    assert first.rdzv_endpoint != again.rdzv_endpoint and first.run_id != again.run_id
    assert [each.rdzv_configs["is_host"] for each in launched] == [True, False, True]
    launch._run_group(tmp_path, 2, launch.ONE)
    assert (launched[-1].max_nodes, launched[-1].rdzv_endpoint) == (1, "127.0.0.1:0")  # a port that nobody has
    assert os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


@pytest.mark.parametrize("rank", [0, 5])
def test_a_process_takes_its_gpu_and_cores_and_the_first_of_all_leaves_the_result(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The group is left out; it has begun again once. Rank 5 is the second process of its machine."""
    places = {"RANK": str(rank), "LOCAL_RANK": str(rank % 4), "LOCAL_WORLD_SIZE": "4"}
    for name, value in (places | {"TORCHELASTIC_RESTART_COUNT": "1", "TORCHELASTIC_MAX_RESTARTS": "3"}).items():
        monkeypatch.setenv(name, value)
    seen: list[Any] = []

    @contextlib.contextmanager
    def joined(device: Any, *, timeout_seconds: float) -> Iterator[Group]:
        seen.append((device, timeout_seconds))
        yield Group(rank, 8)

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_device", seen.append)
    monkeypatch.setattr("steps.machine.device", lambda: "its device")
    monkeypatch.setattr("steps.machine.share_cores", lambda number, **more: seen.append((number, more)))
    monkeypatch.setattr("fast_electra_core.parallel.joined", joined)
    monkeypatch.setattr(lifecycle, "train_auxiliary", lambda *given, group: [*given, group.rank])
    arguments = [{"config": {"group_timeout_seconds": 77}}, {}]
    training_process._train({"work": "train_auxiliary", "arguments": arguments}, tmp_path)
    assert seen == [rank % 4, (4, {"of_one_task": True}), ("its device", 77)]
    result = tmp_path / launch.RESULT
    assert result.exists() == (rank == 0)
    assert rank or json.loads(result.read_text()) == [*arguments, 0]
    assert ("begins again, restart 1 of 3" in caplog.text) == (rank == 0)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [launch.count_processes({"processes_per_node": wanted}) for wanted in (None, 1, 2)] == [2, 1, 2]
    with pytest.raises(ConfigError, match=r"processes_per_node must be at most the number of GPUs, 2, got 3. Leave it"):
        launch.count_processes({"processes_per_node": 3})
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert [launch.count_processes({"processes_per_node": wanted}) for wanted in (None, 3)] == [1, 3]


def test_a_process_that_ends_by_what_nobody_expected_shows_where(tmp_path: Path) -> None:
    """It leaves without Python's own end, which shows it otherwise. Here its job is missing."""
    command = [sys.executable, "-m", "steps.training_process", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr and "FileNotFoundError" in done.stderr
