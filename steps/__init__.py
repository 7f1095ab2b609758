"""The work behind each step of the flows. One file per kind of work; owns files, tracker and checkpoints."""

import gc
import os
import sys
from pathlib import Path

import fast_electra_core

# Metaflow ships only the flow's own folder and those packages, imported when the flow file loads, that ask for it.
# The core is asked for here: it knows no orchestrator.
METAFLOW_PACKAGE_POLICY = "include"
vars(fast_electra_core)["METAFLOW_PACKAGE_POLICY"] = METAFLOW_PACKAGE_POLICY

# Metaflow takes a run's owner from these variables and refuses to run for root, which containers mostly are.
if all(os.environ.get(name, "root") in ("", "root") for name in ("METAFLOW_USER", "SUDO_USER", "USERNAME", "USER")):
    os.environ["USERNAME"] = "anonymous"

# In a local run Metaflow starts the other machines of a step as `python`, which may be another one than this.
os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))

# Importing torch, transformers and MLflow makes a million objects that stay, among which the collector of cycles would
# look a thousand times: a sixth of the seconds that each task begins with (docs/LOG.md).
gc.set_threshold(10_000)

# Read when torch is loaded: how often its threads look for one another before they give their core up. By themselves
# they look 300,000 times, and two trainings on the same cores take up to thirty times as long
# (benchmarks/side_by_side.py).
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "10000"
