"""The work behind each step of the flows. One file per kind of work; owns files, tracker and checkpoints."""

import os

# Metaflow ships only the flow's own folder, unless a package that is imported when the flow file loads asks to be
# included; asking here covers the core as well.
METAFLOW_PACKAGE_POLICY = "include"

# Metaflow takes a run's owner from these variables and refuses to run for root, which containers mostly are.
if all(os.environ.get(name, "root") in ("", "root") for name in ("METAFLOW_USER", "SUDO_USER", "USERNAME", "USER")):
    os.environ["USERNAME"] = "anonymous"
