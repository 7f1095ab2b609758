"""Cost as it grows: a step with width, depth, length and batch; tokenizing with the text; a flow with its tasks.

    python benchmarks/growth.py [--rounds 5] [--tasks 2,8,32]

A step is Fast-ELECTRA's with an auxiliary of a third of the depth, around 4 x 256, length 128, batch 8: one thread,
process time, medians of turns that all sizes take. Tokenizing: one thread, process time. A flow: AuxiliaryFlow at toy
size by its command line, seconds by the clock with two tasks at a time, so that what is left is processes, imports,
Metaflow and MLflow.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import arm_steps
import data
import torch

from fast_electra_core.config import AuxiliaryConfig
from fast_electra_core.methods import Batch
from fast_electra_core.peak import gemm_flops_per_second

AROUND = {"layers": 4, "width": 256, "length": 128, "batch": 8}
GROWN = {"layers": (2, 8), "width": (128, 512), "length": (32, 64, 256, 512), "batch": (2, 32)}
FLOWS = Path(__file__).resolve().parent.parent / "flows"


def main() -> None:
    """Measure and print the tables."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5, help="measured rounds, after one to warm up")
    arguments.add_argument("--tasks", default="2,8,32", help="numbers of tokenizing tasks of a flow; empty: no flow")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    print_steps(given.rounds)
    with tempfile.TemporaryDirectory() as folder:
        print_tokenizing(Path(folder))
    for count in filter(None, given.tasks.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            print(f"flow with {count} tokenizing tasks: {seconds_of_flow(Path(folder), int(count)):.0f} s", flush=True)


def print_steps(rounds: int) -> None:
    """Time of a step where one size is another than around the middle."""
    points = [
        ("", dict(AROUND)),
        *((f"{name} {value}", AROUND | {name: value}) for name in GROWN for value in GROWN[name]),
    ]
    made: dict[str, tuple[arm_steps.Comparison, Callable[[Batch, int], None]]] = {}
    for name, size in points:
        heads = size["width"] // 64
        comparison = arm_steps.Comparison(
            arm_steps.shape_of(size["layers"], size["width"], size["width"], heads),
            arm_steps.shape_of(max(1, size["layers"] // 3), size["width"], size["width"], heads),
            size["batch"], size["length"], (arm_steps.ONLINE,), (),
        )  # fmt: skip
        made[name] = comparison, arm_steps.build_step(arm_steps.ONLINE, comparison)
    times: dict[str, list[float]] = {name: [] for name in made}
    gemm = 0.0
    for number in range(rounds + 1):
        gemm = max(gemm, gemm_flops_per_second(torch.device("cpu"), clock=time.process_time))
        for name, (comparison, step) in made.items():
            batch = arm_steps.batch_of(arm_steps.config_of(comparison.main, comparison), seed=number)
            start = time.process_time()
            step(batch, number)
            if number:
                times[name].append(time.process_time() - start)
    print(f"a step around {AROUND}; GEMM {gemm / 1e9:.1f} GFLOP/s")
    print(f"{'':<14}{'ms per step':>12}{'noise':>7}{'tokens/s':>10}{'time':>7}{'FLOPs':>7}{'of GEMM':>9}")
    middle = arm_steps.planned_flops(made[""][0])[arm_steps.ONLINE] * AROUND["batch"] * AROUND["length"]
    for name, (comparison, _) in made.items():
        low, median, high = statistics.quantiles(times[name], n=4)
        tokens = comparison.batch_size * comparison.sequence_length
        flops = arm_steps.planned_flops(comparison)[arm_steps.ONLINE] * tokens
        print(
            f"{name or 'the middle':<14}{1000 * median:>12.0f}{500 * (high - low):>7.1f}{tokens / median:>10,.0f}"
            f"{median / statistics.median(times['']):>7.2f}{flops / middle:>7.2f}{flops / median / gemm:>9.1%}"
        )


def print_tokenizing(folder: Path) -> None:
    """Throughput of a tokenizing task on one, two and four times the text."""
    text = data._text(None, folder, num_bytes=4_000_000)
    config = AuxiliaryConfig(corpus=str(text), on_bad_text="skip").to_dict()
    key = data._tokenizer_key(text, config, folder)
    for times_longer in (1, 2, 4):
        longer = folder / f"text-{times_longer}.txt"
        longer.write_bytes(text.read_bytes() * times_longer)
        seconds = data._seconds_of_task(longer, config, folder / f"store-{times_longer}", folder / "store", key)
        megabytes = longer.stat().st_size / 1e6
        print(f"tokenizing {megabytes:.0f} MB: {megabytes / seconds:.2f} MB/s", flush=True)


def seconds_of_flow(folder: Path, num_tasks: int) -> float:
    """Of AuxiliaryFlow at toy size, its text tokenized by so many tasks."""
    text = data._text(None, folder, num_bytes=1_000_000)
    sizes = ("--num_steps", "2", "--shard_megabytes", str(text.stat().st_size / 1e6 / num_tasks))
    ours = {
        "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(folder), "METAFLOW_HOME": str(folder), "USERNAME": "benchmark",
        "METAFLOW_DEFAULT_METADATA": "local", "METAFLOW_DEFAULT_DATASTORE": "local", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [
        sys.executable, str(FLOWS / "auxiliary_flow.py"), "--quiet", "run", "--preset", "tiny", "--corpus", str(text),
        "--on_bad_text", "skip", "--max-workers", "2", *sizes,
    ]  # fmt: skip
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=os.environ | ours, check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
