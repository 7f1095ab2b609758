"""The tasks to score on, from wherever they lie: embedded, a folder, S3 or the hub."""

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

from fast_electra_core.config import ScoringConfig
from fast_electra_core.errors import DataError
from fast_electra_core.glue import SPECS, TaskData, summarise_task
from fast_electra_core.glue_files import check_task_folder, read_hub_task, read_task
from fast_electra_core.sample_tasks import sample_task
from steps.store import cache_folder, s3_client

_logger = logging.getLogger(__name__)


def load_task(glue: str, task: str, *, on_bad_row: str = "error", with_test: bool = False) -> TaskData:
    """The task's examples from `sample`, a folder or s3:// prefix with a sub-folder per task, or `hub:NAME`.

    Raises:
        DataError: something is missing, broken or cannot be reached; the message says what.
    """
    if glue == "sample":
        return sample_task(task)
    if glue.startswith("hub:"):
        return read_hub_task(glue.removeprefix("hub:"), task, with_test=with_test)
    root = _download_task(glue, task) if glue.startswith("s3://") else Path(glue).expanduser()
    return read_task(root, task, on_bad_row=on_bad_row, with_test=with_test)


def check_tasks(config: ScoringConfig) -> dict[str, dict[str, Any]]:
    """Reads every task of the run, before anything costs; per task its counts and digest (summarise_task).

    Raises:
        ConfigError, DataError: as load_task.
    """
    on_bad_row, with_test, tasks = bad_row_choice(config), config.test_predictions, config.task_list()
    if config.glue != "sample" and not config.glue.startswith(("hub:", "s3://")):
        found = check_task_folder(Path(config.glue).expanduser(), tasks, on_bad_row=on_bad_row, with_test=with_test)
    else:
        found = {
            task: summarise_task(load_task(config.glue, task, on_bad_row=on_bad_row, with_test=with_test))
            for task in tasks
        }
    for task, facts in found.items():
        if facts["num_skipped"]:
            _logger.warning("task %s: broken rows left out: %d", task, facts["num_skipped"])
    return found


def bad_row_choice(config: ScoringConfig) -> str:
    """What to do with a broken row: --on_bad_text has a third choice, which a row has not."""
    return "skip" if config.on_bad_text == "skip" else "error"


def _download_task(address: str, task: str) -> Path:
    """A local folder with the task's files as they are in S3 now: named by their ETags, so never stale."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = address.removeprefix("s3://").strip("/").partition("/")
    if not bucket:
        raise DataError(f"glue must be s3://BUCKET/PREFIX, got {address!r}")
    prefix = f"{prefix}/" if prefix else ""
    names = (*SPECS[task].folders, task) if task in SPECS else (task,)
    try:
        client = s3_client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        found = {entry["Key"].removeprefix(prefix): entry for page in pages for entry in page.get("Contents", [])}
        folder = next((name for name in names if any(key.startswith(f"{name}/") for key in found)), None)
        if folder is None:
            there = sorted({key.split("/")[0] for key in found if "/" in key})
            raise DataError(
                f"{address} has no folder {' or '.join(names)} for task {task}; folders there: "
                f"{', '.join(there) or 'none'}"
            )
        files = {key: entry for key, entry in found.items() if key.startswith(f"{folder}/") and not key.endswith("/")}
        identity = repr((address, sorted((key, entry["ETag"]) for key, entry in files.items())))
        root = cache_folder() / "glue" / hashlib.sha256(identity.encode()).hexdigest()[:16]
        for key, entry in files.items():
            path = (root / key).resolve()
            if not path.is_relative_to(root.resolve()):
                raise DataError(f"object {entry['Key']!r} leads out of its folder and is refused")
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f".{path.name}.{os.getpid()}")
                client.download_file(bucket, entry["Key"], str(partial))
                partial.replace(path)  # whole or not at all: other tasks may share the cache
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise DataError(
            f"{address} cannot be read: {error}. Check the bucket, AWS_ENDPOINT_URL and credentials"
        ) from error
    (root / folder).mkdir(parents=True, exist_ok=True)
    return root
