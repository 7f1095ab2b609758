"""What a registered version must show before it may be challenger, each gate by its name, from the registry itself."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fast_electra_core.errors import FastElectraError, TrackingError
from fast_electra_core.promotion import GATES, UNSTATED
from steps import tracking
from steps.score_sheet import Sheet
from steps.store import Store
from steps.trace import LICENCE_TAG

LINEAGE_TAGS = (
    "metaflow.pathspec",
    "code.git_sha",
    "corpus.digest",
    "tokenizer.digest",
    "auxiliary.digest",
    "config.digest",
)
SCHEDULE_TAGS = ("schedule", "temperature_start", "temperature_decay", "temperature_end")
PASS, FAIL, WAIVED = "pass", "fail", "waived"


class Gate(NamedTuple):
    """What was found at one of promotion.GATES."""

    name: str
    status: str
    """pass, fail, or waived: it would have failed, or was not looked at, as was asked for."""
    reason: str

    @property
    def tag(self) -> str:
        """The value of the version's tag `gate.NAME`."""
        return f"{self.status}: {self.reason}"


def examine(version: Mapping[str, Any], sheet: Sheet | None, *, waived: Sequence[str], store: Store) -> list[Gate]:
    """All gates of a version (model_version_info), in order. It is downloaded once; the store is where it is replayed.

    Raises:
        TrackingError: the server does not answer, or refuses.
    """
    from steps.replay import downloaded, replay

    address = f"models:/{version['name']}/{version['version']}"
    with downloaded(address, store) as folder:
        found = {
            "finite": _finite(folder),
            "majority": _majority(sheet, waived),
            "signature": _signature(address),
            "lineage": _lineage(version["tags"]),
            "licence": _licence(version["tags"]),
        }
        if "replay" in waived:
            found["replay"] = Gate("replay", WAIVED, "not replayed (waive_gates)")
        else:
            found["replay"] = _guarded(replay, folder, version, sheet, store)
    return [_waive(found[name], waived) for name in GATES]


def _guarded(replay: Any, folder: Path, version: Mapping[str, Any], sheet: Sheet | None, store: Store) -> Gate:
    try:
        is_same, reason = replay(folder, version, sheet, store)
    except TrackingError:  # the step is done again when the server is back
        raise
    except FastElectraError as error:
        is_same, reason = False, f"cannot be replayed: {error}"
    return Gate("replay", PASS if is_same else FAIL, reason)


def _waive(gate: Gate, waived: Iterable[str]) -> Gate:
    if gate.status == FAIL and gate.name in waived:
        return gate._replace(status=WAIVED, reason=f"{gate.reason} (waive_gates)")
    return gate


def _finite(folder: Path) -> Gate:
    if is_finite(folder):
        return Gate("finite", PASS, "every weight is finite")
    return Gate("finite", FAIL, "weights are not finite")


def _majority(sheet: Sheet | None, waived: Iterable[str]) -> Gate:
    """Every task's mean over the seeds is above the majority class; tasks that are waived may fail."""
    if sheet is None:
        return Gate("majority", FAIL, "no scores are kept with the version")
    above: list[str] = []
    failed: list[str] = []
    forgiven: list[str] = []
    for task, each in sheet["tasks"].items():
        scores = list(each["values"].values())
        mean = sum(scores) / len(scores) if scores else float("nan")
        if scores and mean > each["majority"]:
            above.append(task)
            continue
        words = f"{task} {mean:.3f}, not above {each['majority']:.3f}" if scores else f"{task} has no score"
        (forgiven if f"majority:{task}" in waived else failed).append(words)
    known = [f"beats the majority class on {', '.join(above)}"] if above else []
    if failed:
        return Gate("majority", FAIL, "; ".join([*failed, *forgiven, *known]))
    if forgiven:
        return Gate("majority", WAIVED, "; ".join([f"{'; '.join(forgiven)} (waive_gates)", *known]))
    return Gate("majority", PASS, known[0])


def _signature(address: str) -> Gate:
    missing = tracking.missing_of_signature(address)
    if missing:
        return Gate("signature", FAIL, f"the version has no {', no '.join(missing)}")
    return Gate("signature", PASS, "inputs, outputs and an input example")


def _lineage(tags: Mapping[str, str]) -> Gate:
    missing = [name for name in LINEAGE_TAGS + SCHEDULE_TAGS if not tags.get(name, "").strip()]
    if missing:
        return Gate("lineage", FAIL, f"tags missing: {', '.join(missing)}")
    if tags["code.git_sha"] == "unknown" and not tags.get("code.digest"):
        return Gate("lineage", FAIL, "code.git_sha is unknown: run from a checkout, or set FAST_ELECTRA_GIT_SHA")
    return Gate("lineage", PASS, "every tag is given")


def _licence(tags: Mapping[str, str]) -> Gate:
    licence = tags.get(LICENCE_TAG, "").strip()
    if licence == UNSTATED:
        return Gate("licence", WAIVED, "the licence of the text is not known (corpus_licence unstated)")
    if licence:
        return Gate("licence", PASS, licence)
    return Gate("licence", FAIL, "the licence of the text is not stated: give --corpus_licence, `unstated` to waive it")


def is_finite(folder: Path) -> bool:
    """Whether every weight in the folder's safetensors files is finite; one tensor in memory at a time."""
    from safetensors import safe_open

    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  safe_open is no mapping
                tensor = tensors.get_tensor(name)
                if tensor.is_floating_point() and not tensor.isfinite().all():
                    return False
    return True
