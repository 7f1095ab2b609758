"""Who is champion: gates, the paired test against the present champion, and the way back.

A version that passes its gates is `challenger`; it is `champion` too if there is none, or if it beats the present one
by promotion.judge. Whatever was decided is in the version's tags `gate.NAME` and `promotion.reason`.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fast_electra_core.errors import TrackingError
from fast_electra_core.promotion import GATES, LEVEL, judge
from steps import score_sheet, task_models, tracking
from steps.gates import FAIL, Gate
from steps.model_card import describe_gates, with_gates
from steps.score_sheet import Sheet

CHALLENGER = "challenger"
REASON_TAG = "promotion.reason"
AGAINST_TAG = "promotion.against"
"""The number of the champion that a version was judged against."""
WAIVED_TAG = "gates.waived"
"""What PretrainFlow's waive_gates was, for those who look at the gates again."""
_PARENT_TAG = "mlflow.parent_run_id"
_logger = logging.getLogger(__name__)
Plain = dict[str, Any]


class Rule(NamedTuple):
    """How the alias champion is given: the fields `promote` and `promotion_margin` of PretrainConfig."""

    promote: str
    margin: float


def decided(version: Mapping[str, Any]) -> Plain | None:
    """What `settle` returned of a version (model_version_info) when it was decided; None if it has not been."""
    tags = version["tags"]
    if REASON_TAG not in tags:
        return None
    return {**version, "reason": tags[REASON_TAG], "gates": [gate._asdict() for gate in _gates_of(tags)]}


def settle(version: Plain, gates: Sequence[Gate], rule: Rule) -> Plain:
    """The version (model_version_info) has the aliases and tags that its gates and the champion's rule give it;
    returns it as it is then, with reason and gates.

    Several may do so at once: each decides anew when another has become champion meanwhile, and says so.

    Raises:
        TrackingError: the server does not answer, or refuses.
    """
    name, number = version["name"], str(version["version"])
    tracking.set_version_tags(name, number, {f"gate.{gate.name}": gate.tag for gate in gates})
    tracking.amend_texts(
        version, card=lambda text: with_gates(text, gates), description=lambda text: describe_gates(text, gates)
    )
    failed = [gate for gate in gates if gate.status == FAIL]
    if failed:
        how_to = f"To go on: fast-electra promote models:/{name}/{number} {_next_move(failed)}"
        kept = sorted(alias for alias, holder in tracking.aliases(name).items() if holder == number)
        standing = f"still {' and '.join(kept)}, against its gates" if kept else "no alias"
        reason = f"{standing}: {'; '.join(f'gate {gate.name}: {gate.reason}' for gate in failed)}. {how_to}"
    else:
        tracking.set_alias(name, CHALLENGER, number)
        reason = _contend(version, rule)
    return _settled(version, reason, gates)


def force(version: Plain) -> Plain:
    """The version is champion, whatever its gates and the test say; likewise returned. What its gates showed stays."""
    name, number = version["name"], str(version["version"])
    gates = _gates_of(version["tags"])
    failed = [gate.name for gate in gates if gate.status == FAIL]
    before = _crown(name, number)
    against = f", against the gates {', '.join(failed)}" if failed else ""
    after = f", after version {before}" if before not in (None, number) else ""
    return _settled(version, f"{tracking.CHAMPION}: by force{against}{after}", gates)


def crown(version: Plain, reason: str) -> Plain:
    """The version is champion for that reason; likewise returned. For models that have no gates."""
    _crown(version["name"], str(version["version"]))
    return _settled(version, reason, [])


def _crown(name: str, number: str) -> str | None:
    """The version is champion; returns the number of the one before, its own where it was champion already."""
    while True:
        seen = tracking.throne(name)
        if seen.champion == number:
            return number
        if tracking.claim(seen, number, "promoted"):
            _followed(name, seen.champion, number)
            return seen.champion


def rollback(name: str) -> tuple[str, str]:
    """The champion before the present one is champion again; returns the numbers of the version that went and of the
    one that came.

    Raises:
        TrackingError: there is no champion, or none before it, or that one has been deleted.
    """
    while True:
        seen = tracking.throne(name)
        gone, back = seen.champion, seen.before()
        if gone is None:
            raise TrackingError(f"{name} has no champion to go back from; `fast-electra promote` makes one")
        if back is None:
            raise TrackingError(
                f"{name} had no champion before version {gone}. To put another in its place: "
                f"fast-electra promote models:/{name}/VERSION --force"
            )
        try:
            tracking.model_version_info(f"models:/{name}/{back}")
        except TrackingError as error:
            raise TrackingError(
                f"version {back} of {name}, champion before version {gone}, is gone ({error}); put another in its "
                f"place: fast-electra promote models:/{name}/VERSION --force"
            ) from error
        if tracking.claim(seen, back, "restored"):
            break
        _logger.info("another champion was made meanwhile; looking again")
    tracking.set_version_tags(name, gone, {REASON_TAG: f"rolled back: version {back} is champion again"})
    tracking.set_version_tags(name, back, {REASON_TAG: f"champion again: version {gone} was rolled back"})
    task_models.follow(name)
    return gone, back


def sheet_of(version: Mapping[str, Any]) -> Sheet | None:
    """The version's own scores, those of the run that made it; failing that, any that EvaluateFlow has added; None
    where there are none, or they went with their run."""
    runs, own = _sheet_runs(version["tags"]), version["tags"].get(_PARENT_TAG)
    in_order = sorted(runs.items(), key=lambda each: (each[1] != own, each[0]))
    return next((sheet for _, run_id in in_order if (sheet := _read(run_id))), None)


def compare(version: Mapping[str, Any], champion: Mapping[str, Any], margin: float) -> tuple[bool, str]:
    """Whether the version beats the champion, and why, in words with the numbers."""
    number = champion["version"]
    sheets = _shared_sheets(version, champion)
    if sheets:
        verdict = judge(*(score_sheet.values_of(each) for each in sheets), margin=margin)
        wanted = "" if verdict.is_better else f"; needed: p < {LEVEL:g} and at least {margin:+g}"
        return verdict.is_better, f"against version {number}: {verdict.reason}{wanted}"
    return False, f"not comparable with version {number}: {_why_not(version, champion)}"


def rival_of(version: Mapping[str, Any]) -> Plain | None:
    """The champion that a settled version was judged against: its name and its scores {task: {seed: score}}; None where
    there was none, or the two were not scored alike, or its scores are gone.

    Raises:
        TrackingError: the champion is gone, or the server does not answer.
    """
    number = version["tags"].get(AGAINST_TAG)
    if number is None:
        return None
    champion = tracking.model_version_info(f"models:/{version['name']}/{number}")
    sheets = _shared_sheets(version, champion)
    if sheets is None:
        return None
    return {"name": f"champion, version {number}", "scores": score_sheet.values_of(sheets[1])}


def _shared_sheets(version: Mapping[str, Any], champion: Mapping[str, Any]) -> tuple[Sheet, Sheet] | None:
    """Both sides' scores that were made alike: the version's own, if those are among them."""
    ours, theirs = _sheet_runs(version["tags"]), _sheet_runs(champion["tags"])
    for key in sorted(set(ours) & set(theirs), key=lambda key: (ours[key] != version["tags"].get(_PARENT_TAG), key)):
        sheets = _read(ours[key]), _read(theirs[key])
        if sheets[0] and sheets[1]:
            return sheets[0], sheets[1]
    return None


def _why_not(version: Mapping[str, Any], champion: Mapping[str, Any]) -> str:
    """Why two versions share no scores, and the commands after which they do."""
    ours, theirs = sheet_of(version), sheet_of(champion)
    again = f"fast-electra promote models:/{version['name']}/{version['version']}"
    if ours is None:
        return f"this version has no scores; score both by flows/evaluate_flow.py, then: {again}"
    # Where a fine-tuning failed, no scoring of the other side gives it a partner: the whole is what both must have.
    wanted = score_sheet.key_of(score_sheet.whole(ours))
    runs = [_sheet_runs(each["tags"]).get(wanted) for each in (version, champion)]
    commands = [
        score_sheet.evaluation_command(ours, f"models:/{each['name']}/{each['version']}")
        for each, run_id in zip((version, champion), runs, strict=True)
        if run_id is None or _read(run_id) is None
    ]
    return f"{_difference(ours, theirs, champion)}. To compare: {'; '.join(commands)}; then: {again}"


def _difference(ours: Sheet, theirs: Sheet | None, champion: Mapping[str, Any]) -> str:
    if theirs is not None:
        return score_sheet.difference(ours, theirs)
    gone = ", ".join(_sheet_runs(champion["tags"]).values())
    return f"the scores of that one are gone with the MLflow run {gone}" if gone else "that one has no scores"


def _contend(version: Plain, rule: Rule) -> str:
    """The version is champion if it may be; the reason starts with what it is."""
    name, number = version["name"], str(version["version"])
    if rule.promote == "never":
        return f"{CHALLENGER}: promote never"
    lost = ""
    while True:
        seen = tracking.throne(name)
        if seen.champion == number:
            before = version["tags"].get(REASON_TAG, "")
            return before if before.startswith(tracking.CHAMPION) else f"{tracking.CHAMPION}: it is already"
        if seen.champion is None:
            wins, why = True, "there was none"
        else:
            champion = tracking.model_version_info(f"models:/{name}/{seen.champion}")
            wins, why = compare(version, champion, rule.margin)
            tracking.set_version_tags(name, number, {AGAINST_TAG: seen.champion})
            if rule.promote == "always":
                wins, why = True, f"promote always; {why}"
        if not wins:
            return f"{CHALLENGER}: {lost}{why}"
        if tracking.claim(seen, number, "promoted"):
            _followed(name, seen.champion, number)
            return f"{tracking.CHAMPION}: {lost}{why}"
        lost = f"another run made its model champion at the same moment ({why}); decided again: "
        _logger.warning("version %s of %s: %s", number, name, lost)


def _followed(name: str, before: str | None, number: str) -> None:
    """The champion before says of itself that it is no longer, beside why it was."""
    if before is None:
        return
    tags = tracking.model_version_info(f"models:/{name}/{before}")["tags"]
    why = tags.get(REASON_TAG, "set by hand").removeprefix(f"{tracking.CHAMPION}: ")
    tracking.set_version_tags(name, before, {REASON_TAG: f"{tracking.CHAMPION} until version {number}: {why}"})


def _settled(version: Plain, reason: str, gates: Sequence[Gate]) -> Plain:
    name, number = version["name"], str(version["version"])
    tracking.set_version_tags(name, number, {REASON_TAG: reason})
    task_models.follow(name)
    now = tracking.model_version_info(f"models:/{name}/{number}")
    return {**version, **now, "reason": reason, "gates": [gate._asdict() for gate in gates]}


def _next_move(failed: Sequence[Gate]) -> str:
    """What `promote` is to be given: a licence is rather stated than waived."""
    words = ["--corpus_licence LICENCE"] if "licence" in [gate.name for gate in failed] else []
    others = [gate.name for gate in failed if gate.name != "licence"]
    return " ".join([*words, *([f"--waive_gates {','.join(others)}"] if others else [])])


def _gates_of(tags: Mapping[str, str]) -> list[Gate]:
    return [Gate(name, *tags[f"gate.{name}"].split(": ", 1)) for name in GATES if f"gate.{name}" in tags]


def _sheet_runs(tags: Mapping[str, str]) -> dict[str, str]:
    """Key of a sheet -> the run that holds it."""
    return {tag.removeprefix(score_sheet.TAG): run for tag, run in tags.items() if tag.startswith(score_sheet.TAG)}


def _read(run_id: str) -> Sheet | None:
    """The run's score sheet; None where the run, or its scores, are gone."""
    found = tracking.load_dict(run_id, "scores.json")
    return found.get("sheet") if found else None
