"""One of the processes that train together: `python -m steps.training_process FOLDER`, started by steps/launch.py.

FOLDER holds the job, and gets the result of the group's first process, or a user's error.
"""

import json
import logging
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from fast_electra_core.errors import FastElectraError, Interrupted
from steps.launch import ERROR, JOB, RESULT

_logger = logging.getLogger("steps.training_process")  # as a module that is run it has another name


def main(folder: Path) -> None:
    """Do the job; ends the process with code 1 after an error that the user is to mend."""
    if (folder / ERROR).is_file():  # it would be met again
        sys.exit(1)
    _end_with_parent()
    job = json.loads((folder / JOB).read_text())
    from steps.console import show_log_lines

    show_log_lines()
    try:
        _train(job, folder)
    except FastElectraError as error:
        partial = folder / f"{ERROR}.{os.getpid()}.partial"
        partial.write_text(json.dumps([type(error).__name__, str(error)]))
        partial.rename(folder / ERROR)  # whole: the others may have met it, too
        sys.exit(1)


def _train(job: dict[str, Any], folder: Path) -> None:
    import torch

    from fast_electra_core.parallel import GroupLost, joined
    from steps import lifecycle
    from steps.machine import device, share_cores

    if os.environ["RANK"] == "0" and os.environ["TORCHELASTIC_RESTART_COUNT"] != "0":
        _logger.warning(
            "a process of the group has died; the group begins again, restart %s of %s",
            os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["TORCHELASTIC_MAX_RESTARTS"],
        )  # fmt: skip
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    share_cores(int(os.environ["LOCAL_WORLD_SIZE"]), of_one_task=True)
    work = getattr(lifecycle, {"pretrain": "pretrain", "train_auxiliary": "train_auxiliary"}[job["work"]])
    config = job["arguments"][0]["config"]
    try:
        with joined(device(), timeout_seconds=config["group_timeout_seconds"]) as group:
            result = work(*job["arguments"], group=group)
            if group.is_first:
                partial = folder / f"{RESULT}.partial"
                partial.write_text(json.dumps(result))
                partial.rename(folder / RESULT)
    except Interrupted as stop:
        _logger.info("%s", stop)
        sys.exit(1)
    except GroupLost as lost:  # not the user's to mend: the launcher begins again
        _logger.error("%s", lost)
        sys.exit(1)


def _end_with_parent() -> None:
    """The launcher may be killed with no chance to stop its processes. They must not go on beside the next attempt."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except BaseException as error:
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # what is left of the group would wait for others when Python ends
