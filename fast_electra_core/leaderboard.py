"""The files that the GLUE leaderboard takes: eleven, in one zip, each with the columns `index` and `prediction`."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from fast_electra_core.errors import DataError
from fast_electra_core.glue import SPECS

FILES: Mapping[tuple[str, str], str] = {
    ("cola", "test"): "CoLA.tsv",
    ("sst2", "test"): "SST-2.tsv",
    ("mrpc", "test"): "MRPC.tsv",
    ("stsb", "test"): "STS-B.tsv",
    ("mnli", "matched"): "MNLI-m.tsv",
    ("mnli", "mismatched"): "MNLI-mm.tsv",
    ("qnli", "test"): "QNLI.tsv",
    ("qqp", "test"): "QQP.tsv",
    ("rte", "test"): "RTE.tsv",
    ("wnli", "test"): "WNLI.tsv",
    ("ax", "test"): "AX.tsv",
}
_EPOCH = (1980, 1, 1, 0, 0, 0)  # zip's first moment: equal answers make equal files


def write_submission(path: Path, answers: Mapping[str, Mapping[str, Sequence[float]]]) -> tuple[list[str], list[str]]:
    """Write the zip for answers: task -> split -> class ids (or numbers) in the order of the test file.

    Returns the names written and those of the eleven that are missing: the leaderboard refuses a zip without them.
    Labels are words where the task's are (mnli, qnli, rte, ax), else 0 and 1; stsb's numbers are cut to [0, 5].

    Raises:
        DataError: a split that the leaderboard has not.
    """
    for task, splits in answers.items():
        for split in splits:
            if (task, split) not in FILES:
                raise DataError(f"the leaderboard has no test set {split!r} of {task!r}")
    written = []
    with zipfile.ZipFile(path, "w") as archive:
        for (task, split), name in FILES.items():
            if split in answers.get(task, {}):
                lines = [f"{index}\t{_word(task, answer)}" for index, answer in enumerate(answers[task][split])]
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, "\n".join(["index\tprediction", *lines, ""]))
                written.append(name)
    return written, [name for name in FILES.values() if name not in written]


def _word(task: str, answer: float) -> str:
    spec = SPECS[task]
    if spec.is_regression:
        low, high = spec.label_range or (float("-inf"), float("inf"))
        return f"{min(max(answer, low), high):.3f}"
    return spec.labels[int(answer)]
