"""Two trainings on the same cores: steps per second of one alone and of two together, each with all cores, by how long
torch's threads keep their cores while they wait for one another (GOMP_SPINCOUNT, which steps/__init__.py sets).

    python benchmarks/side_by_side.py [--spins 300000,10000,3000,1000] [--seconds 8] [--rounds 3]

By the clock; every round goes through all of them. Fast-ELECTRA at the shape and batch of a preset, random text.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from unittest import mock

from arm_steps import ONLINE, Comparison, batch_of, build_step, config_of

from fast_electra_core.presets import AUXILIARY_PRESETS, PRETRAIN_PRESETS

SHAPE = ("num_layers", "hidden_size", "embedding_size", "num_heads", "intermediate_size")


def main() -> None:
    """Measure and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--spins", default="300000,10000,3000,1000", help="GOMP_SPINCOUNT; libgomp's own is 300000")
    arguments.add_argument("--presets", default="demo,laptop", help="whose shapes, separated by commas")
    arguments.add_argument("--seconds", type=float, default=8, help="of each training")
    arguments.add_argument("--rounds", type=int, default=3, help="of which the median, lowest and highest are shown")
    given = arguments.parse_args()
    for preset in given.presets.split(","):
        places = [(spin, number) for spin in given.spins.split(",") for number in (1, 2)]
        speeds: dict[tuple[str, int], list[float]] = {place: [] for place in places}
        for _ in range(given.rounds):
            for spin, number in places:
                speeds[spin, number].append(_together(number, spin, preset, given.seconds))
        print(f"\n{preset}, {os.cpu_count()} cores{'alone':>16}{'(lowest, highest)':>20}{'two, in all':>13}")
        for spin in given.spins.split(","):
            alone, both = speeds[spin, 1], speeds[spin, 2]
            extremes = f"({min(alone):.2f}, {max(alone):.2f})"
            print(
                f"{spin:>14}{statistics.median(alone):>14.2f}{extremes:>20}{statistics.median(both):>13.2f}"
                f" ({min(both):.2f}, {max(both):.2f})"
            )


def _together(number: int, spin: str, preset: str, seconds: float) -> float:
    """Steps per second of so many trainings, added up."""
    with mock.patch.dict(os.environ, GOMP_SPINCOUNT=spin), multiprocessing.get_context("spawn").Pool(number) as pool:
        return sum(pool.starmap(_steps_per_second, [(preset, seconds)] * number, chunksize=1))


def _steps_per_second(preset: str, seconds: float) -> float:
    comparison = _comparison(preset)
    step, config = build_step(ONLINE, comparison), config_of(comparison.main, comparison)
    batch = batch_of(config, seed=0)
    step(batch, 0)
    num_steps, start = 0, time.monotonic()
    while time.monotonic() < start + seconds:
        step(batch, 0)
        num_steps += 1
    return num_steps / (time.monotonic() - start)


def _comparison(preset: str) -> Comparison:
    main = PRETRAIN_PRESETS[preset]
    auxiliary = {name: AUXILIARY_PRESETS[preset][name] for name in SHAPE}
    return Comparison(
        {name: main[name] for name in SHAPE}, auxiliary, main["batch_size"], main["sequence_length"], (ONLINE,), ()
    )


if __name__ == "__main__":
    main()
