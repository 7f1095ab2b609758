"""Time and memory of one optimiser step: Fast-ELECTRA beside its rivals.

    python benchmarks/step.py [--comparison base,small] [--rounds 5] [--compile] [--device cuda]

base: 12 × 768 with an auxiliary of 4 × 768, beside joint ELECTRA in our own trainer and the main model alone. small:
ELECTRA-small with its generator of a quarter of the width, beside what others have published.

The arms take turns in every round, so that whatever else the machine does befalls all of them; printed are medians,
their ratio to the first arm, and as noise half the interquartile range.

On a CPU: one thread, process time, float32, 8 sequences of 128. Peak memory is what a process of its own, with two
steps of the arm, keeps resident beyond its imports, where malloc gives back what is freed.
On a GPU: by the clock, in bf16 where the hardware has it, turns of several steps before and after which the GPU is
waited for, 64 sequences of 512 (base) and 128 of 128 (small); base attends within documents, too. Peak memory is what
torch has allocated in a process of its own.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import rivals
import torch
from arm_steps import (
    ALONE,
    APART,
    COMPARISONS,
    ONLINE,
    PACKAGE,
    Comparison,
    Place,
    batch_of,
    build_step,
    config_of,
    planned_flops,
    shape_of,
    store_samples,
)

from fast_electra_core.methods import Batch
from fast_electra_core.peak import gemm_flops_per_second
from steps.meter import MemoryMeter

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
SIZES_ON_GPU = {"base": (64, 512), "small": (128, 128)}
STEPS_PER_TURN_ON_GPU = 10


class Times(NamedTuple):
    """Seconds per step of every arm, a value for each round, and the best matrix product's FLOP/s."""

    of_arms: dict[str, list[float]]
    gemm: float


def main() -> None:
    """Measure and print the tables."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--comparison", default=",".join(COMPARISONS), help="which, separated by commas")
    arguments.add_argument("--rounds", type=int, default=5, help="measured rounds, after one to warm up")
    arguments.add_argument("--batch_size", type=int, help="instead of the comparison's own")
    arguments.add_argument("--sequence_length", type=int, help="likewise")
    arguments.add_argument("--device", choices=("cpu", "cuda"), help="by itself a GPU, where there is one")
    arguments.add_argument("--compile", action="store_true", help="compile the layers, the rivals' too")
    arguments.add_argument("--peak_tflops", type=float, help="the device's by its data sheet: shares of it are shown")
    given = arguments.parse_args()
    device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    for name in given.comparison.split(","):
        comparison = COMPARISONS[name]
        if device.type == "cuda":
            comparison = _on_gpu(name, comparison)
        sizes = {key: value for key in ("batch_size", "sequence_length") if (value := getattr(given, key)) is not None}
        place = Place(device, is_compiled=given.compile)
        _print_table(name, comparison._replace(**sizes), place, given.rounds, given.peak_tflops)


def _on_gpu(name: str, comparison: Comparison) -> Comparison:
    batch_size, sequence_length = SIZES_ON_GPU[name]
    return comparison._replace(
        batch_size=batch_size, sequence_length=sequence_length, arms=tuple(dict.fromkeys((*comparison.arms, APART)))
    )


def _print_table(name: str, comparison: Comparison, place: Place, rounds: int, peak_tflops: float | None) -> None:
    arms = [arm for arm in comparison.arms if arm != PACKAGE or rivals.HAS_ELECTRA_PYTORCH]
    times, gemm = _measured_times(comparison, arms, place, rounds)
    memory = {arm: _measured_memory(comparison, arm, place) for arm in comparison.with_memory}
    planned = planned_flops(comparison)
    medians = {arm: statistics.median(times[arm]) for arm in arms}
    print(
        f"\n{name}: {_words(comparison.main)}, auxiliary {_words(comparison.auxiliary)}, "
        f"batch {comparison.batch_size} x {comparison.sequence_length}{', compiled' if place.is_compiled else ''}; "
        f"{_device_name(place.device)}, GEMM {gemm / 1e9:.1f} GFLOP/s"
    )
    print(
        f"{'':<22}{'ms per step':>12}{'noise':>7}{'ratio':>7}{'by FLOPs':>10}{'of GEMM':>9}"
        + (f"{'of peak':>9}" if peak_tflops else "")
        + (f"{'peak, MB':>10}{'ratio':>7}" if memory else "")
    )
    for arm in arms:
        low, _, high = statistics.quantiles(times[arm], n=4)
        row = f"{arm:<22}{1000 * medians[arm]:>12.1f}{500 * (high - low):>7.1f}{medians[arm] / medians[arms[0]]:>7.3f}"
        if arm in planned:
            speed = planned[arm] * comparison.batch_size * comparison.sequence_length / medians[arm]
            row += f"{planned[arm] / planned[arms[0]]:>10.3f}{speed / gemm:>9.1%}"
            row += f"{speed / (peak_tflops * 1e12):>9.1%}" if peak_tflops else ""
        if arm in memory:
            row += f"{memory[arm] / 1e6:>10.0f}{memory[arm] / memory[arms[0]]:>7.3f}"
        print(row)
    if {ONLINE, ALONE} <= set(arms):
        print(
            f"the auxiliary's share: {1 - medians[ALONE] / medians[ONLINE]:.1%} of the step's time, "
            f"{1 - planned[ALONE] / planned[ONLINE]:.1%} of its FLOPs"
        )
    if len(arms) < len(comparison.arms):
        print(f"{PACKAGE}: not installed; {rivals.HOW_TO_GET_IT}")


def _measured_times(comparison: Comparison, arms: list[str], place: Place, rounds: int) -> Times:
    torch.set_num_threads(1)
    config, times = config_of(comparison.main, comparison), {arm: list[float]() for arm in arms}
    gemm = 0.0
    with tempfile.TemporaryDirectory() as folder:
        stored = store_samples(Path(folder), config, rounds=rounds + 1)
        steps = {arm: build_step(arm, comparison, stored, place=place) for arm in arms}
        for number in range(rounds + 1):
            batch = batch_of(config, seed=number)
            gemm = max(gemm, gemm_flops_per_second(place.device, clock=_clock(place.device)))
            for arm, step in steps.items():
                seconds = _seconds_per_step(step, batch, number, place.device)
                if number:
                    times[arm].append(seconds)
    return Times(times, gemm)


def _seconds_per_step(step: Callable[[Batch, int], None], batch: Batch, number: int, device: torch.device) -> float:
    clock, num_steps = _clock(device), 1 if device.type == "cpu" else STEPS_PER_TURN_ON_GPU
    _wait(device)
    start = clock()
    for _ in range(num_steps):
        step(batch, number)
    _wait(device)
    return (clock() - start) / num_steps


def _clock(device: torch.device) -> Callable[[], float]:
    return time.process_time if device.type == "cpu" else time.perf_counter


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _measured_memory(comparison: Comparison, arm: str, place: Place) -> int:
    """Bytes at the peak of two steps, in a process of its own, beyond what a tiny step has loaded."""
    with mock.patch.dict(os.environ, MALLOC):
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            return pool.apply(_peak_of_two_steps, (comparison, arm, place))


def _peak_of_two_steps(comparison: Comparison, arm: str, place: Place) -> int:
    torch.set_num_threads(1)
    tiny = comparison._replace(main=shape_of(2, 64, 64, 1), auxiliary=shape_of(1, 64, 64, 1), batch_size=1)
    _two_steps(tiny, arm, place)
    meter = MemoryMeter(str(place.device))
    _two_steps(comparison, arm, place)
    return meter.peak_bytes()


def _two_steps(comparison: Comparison, arm: str, place: Place) -> None:
    config = config_of(comparison.main, comparison)
    with tempfile.TemporaryDirectory() as folder:
        step = build_step(arm, comparison, store_samples(Path(folder), config, rounds=2), place=place)
        for number in range(2):
            step(batch_of(config, seed=number), number)
        _wait(place.device)


def _words(shape: dict[str, int]) -> str:
    return f"{shape['num_layers']} x {shape['hidden_size']}"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "one thread"


if __name__ == "__main__":
    main()
