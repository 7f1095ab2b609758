"""What RetrainFlow does: look whether there is new text, continue the champion on it, and say what came of it.

A plan of it has more than PretrainFlow's: `retrain` (the RetrainConfig, `config` being what is trained by), `way`
(nothing, scratch or continue), `reason`, `changes`, `champion`, `seen`, `old_shard_keys` and `replay_fraction`.
"""

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from fast_electra_core.config import PretrainConfig
from fast_electra_core.errors import FastElectraError, LockError, StoreError, TrackingError
from steps import tracking
from steps.config import resolve_retrain
from steps.lock import Lock
from steps.planning import find_corpus, open_run, open_training_run, plan_of, training_plan
from steps.store import Store
from steps.trace import Plain, attempt, connect, finish

if TYPE_CHECKING:
    from fast_electra_core.retraining import RetrainConfig
    from fast_electra_core.text_shards import Corpus
    from steps.retrain_news import Champion

NOTHING, SCRATCH, CONTINUE = "nothing", "scratch", "continue"
LOCK_NAME = "retrain"
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_logger = logging.getLogger(__name__)


def begin_retrain(given: Mapping[str, Any], *, flow: str, run_id: str, resumes: str | None = None) -> Plain:
    """Take the lock, look what is new, check all that there is to do, and open the MLflow run. Where there is nothing
    to do the run is over already, and the lock free. resumes: the id of the run that this one is a `resume` of.

    Raises:
        ConfigError, DataError, AuxiliaryError, TrackingError: as planning.begin_pretrain; the lock is free then, too.
        LockError: another run has taken it over meanwhile.
    """
    config = resolve_retrain(given)
    tracking.check_server(config.tracking_uri, config.experiment)
    lock = _lock_of(config, owner=f"{flow}/{run_id}", resumes=f"{flow}/{resumes}" if resumes else None)
    held = lock.acquire(wait_seconds=config.wait_for_lock_seconds)
    if held is not None:
        how = "if it was killed, `resume --origin-run-id` with its id goes on with it at once"
        plan = _nothing(config, f"another run is at work: {held}; {how}", flow=flow, run_id=run_id)
        return _begun(plan, given)
    try:
        with lock.holding():
            plan = _plan(config, flow=flow, run_id=run_id)
        plan = _begun(plan, given)
    except BaseException:
        lock.release()
        raise
    if plan["way"] == NOTHING:
        lock.release()
    return plan


def part(
    work: Callable[Concatenate[Plain, _Arguments], _Result],
    plan: Plain,
    /,
    *args: _Arguments.args,
    **kwargs: _Arguments.kwargs,
) -> _Result | None:
    """work(plan, ...) under the run's lock, which is renewed meanwhile; None where nothing is to be trained, for there
    are schedulers that go through every step all the same. Text or a model that is refused frees the lock; a server or
    a store that is away does not: the next attempt, or a resume, goes on.

    Raises:
        LockError: another run has taken it over.
    """
    if plan["way"] == NOTHING:
        return None
    lock = _lock_of_plan(plan)
    try:
        with lock.holding():
            return work(plan, *args, **kwargs)
    except FastElectraError as error:
        if not isinstance(error, LockError | StoreError | TrackingError):
            lock.release()
        raise


def _lock_of_plan(plan: Plain) -> Lock:
    from fast_electra_core.retraining import RetrainConfig

    return _lock_of(RetrainConfig.from_dict(plan["retrain"]), owner=plan["pathspec"])


def _lock_of(config: "RetrainConfig", *, owner: str, resumes: str | None = None) -> Lock:
    lifetime_seconds = 60 * config.lock_minutes
    return Lock(Store(config.store), LOCK_NAME, owner=owner, lifetime_seconds=lifetime_seconds, resumes=resumes)


def _plan(config: "RetrainConfig", *, flow: str, run_id: str) -> Plain:
    from steps import retrain_auxiliary, retrain_news
    from steps.text_check import check_text

    store = Store(config.store)
    champion = retrain_news.find_champion(store)
    corpus = find_corpus(config, store)
    changes = retrain_news.changes_of(corpus, champion)
    found = {"changes": retrain_news.names_of(changes), "champion": _described(champion)}
    if not changes.unseen:
        return _nothing(config, "no file holds text that the champion has not seen", flow=flow, run_id=run_id, **found)
    unseen = retrain_news.unseen_part(corpus, changes, config)
    check_text(unseen, text_field=config.text_field, on_bad_text=config.on_bad_text, store=store)
    what: Plain = {"flow": flow, "run_id": run_id, "corpus": unseen}
    if champion is None:
        plan = training_plan(PretrainConfig.part_of(config.to_dict()), **what)
        plan["trial"] = retrain_news.first_trial_of(plan, config)
        reason = _too_little(config, unseen, plan["tokenizer_key"], store) or _untaken(plan["trial"])
        if reason:
            return _nothing(config, reason, flow=flow, run_id=run_id, **found)
        return {**plan, **found, **_way(config, SCRATCH, "there is no champion yet")}
    trial = retrain_news.trial_of(champion, unseen.to_dict(), config)
    candidates = retrain_auxiliary.fetch(config, champion, store)
    tokenizer_key = f"tokenizers/{candidates[0]['tokenizer_digest']}"
    reason = _too_little(config, unseen, tokenizer_key, store) or _not_better(trial)
    if reason:
        return _nothing(config, reason, flow=flow, run_id=run_id, **found)
    continued = config.continued(champion=champion.address, generation=champion.generation + 1)
    plan = training_plan(continued, **what, candidates=candidates)
    plan |= {"seen": champion.record, "old_shard_keys": champion.shard_keys, "trial": trial}
    reason = f"there is text that version {champion.info['version']} has not seen"
    return {**plan, **found, **_way(config, CONTINUE, reason), "replay_fraction": config.replay_fraction}


def _too_little(config: "RetrainConfig", unseen: "Corpus", tokenizer_key: str, store: Store) -> str:
    """That the new text is too short to be trained on, or to be held out from; empty if it is not."""
    from steps.tokenization import count_tokens

    body = config.sequence_length - 2
    batch = config.batch_size * body

    def lacks(train: int, heldout: int) -> str:
        count = train + heldout
        if count < config.min_new_tokens:
            return f"{count:,} new tokens, fewer than {config.min_new_tokens:,} (min_new_tokens)"
        if train < batch:
            return (
                f"{train:,} new tokens to train on, fewer than the {batch:,} of one batch (batch_size, sequence_length)"
            )
        if heldout < body:
            return (
                f"of {count:,} new tokens {heldout:,} are held out (heldout_fraction {config.heldout_fraction:g}), "
                f"fewer than the {body:,} of one sequence"
            )
        return ""

    counted = count_tokens(
        unseen.shards, config.to_dict(), tokenizer_key=tokenizer_key, store=store,
        is_enough=lambda train, heldout: not lacks(train, heldout), about=max(config.min_new_tokens, batch),
    )  # fmt: skip
    return lacks(*counted)


def _untaken(trial: str) -> str:
    """That the same first model was trained before, and is not champion; empty if it was not."""
    from steps.retrain_news import earlier_trial

    version = earlier_trial(trial)
    if version is None:
        return ""
    return (
        f"version {version['version']} was trained on this very text with these parameters and is not champion "
        f"({version['tags']['promotion.reason']}); promote it (`fast-electra promote models:/{version['name']}/"
        f"{version['version']}`), mend what failed, or give other text or parameters"
    )


def _not_better(trial: str) -> str:
    """That the champion was continued likewise before, and kept its place; empty if it was not."""
    from steps.retrain_news import earlier_trial

    version = earlier_trial(trial)
    if version is None:
        return ""
    return (
        f"version {version['version']} was trained on this very text from this champion, with these parameters, and "
        f"did not take its place ({version['tags']['promotion.reason']})"
    )


def _way(config: "RetrainConfig", way: str, reason: str) -> Plain:
    defaults: Plain = {"old_shard_keys": [], "replay_fraction": 0.0}
    return {"retrain": config.to_dict(), "way": way, "reason": reason, **({} if way == CONTINUE else defaults)}


def _nothing(config: "RetrainConfig", reason: str, *, flow: str, run_id: str, **found: Any) -> Plain:
    plan = plan_of(PretrainConfig.part_of(config.to_dict()), flow=flow, run_id=run_id)
    return {**plan, "changes": {}, "champion": None, **found, **_way(config, NOTHING, reason)}


def _described(champion: "Champion | None") -> Plain | None:
    if champion is None:
        return None
    return {name: champion.info[name] for name in ("name", "version")} | {"generation": champion.generation}


def _begun(plan: Plain, given: Mapping[str, Any]) -> Plain:
    """The plan with its MLflow run; that of a run with nothing to do is finished, with its page."""
    from steps import retrain_report

    _logger.info("%s: %s", plan["pathspec"], plan["reason"])
    if plan["way"] != NOTHING:
        open_training_run(plan, given, params=plan["retrain"])
        return plan
    open_run(plan, given, params=plan["retrain"])
    plan["outcome"] = retrain_report.outcome_of(plan)
    retrain_report.log(plan, plan["outcome"])
    tracking.log_text(plan["mlflow_run_id"], retrain_report.page(plan), "report.html")
    finish(plan)
    return plan


@attempt
def freeze_auxiliary(plan: Plain, text: Plain, scored: list[Plain]) -> tuple[list[Plain], Plain, str]:
    """Keep the champion's auxiliary or choose another; the candidates with what is said of each, what was chosen, and
    their page.

    Raises:
        AuxiliaryError: the text is too strange to all of them.
    """
    from steps import lifecycle
    from steps.retrain_auxiliary import keep_or_replace

    candidates = keep_or_replace(plan, scored)
    return candidates, *lifecycle.freeze_auxiliary(plan, text, candidates)


@attempt
def pretrain(plan: Plain, text: Plain, frozen: Plain) -> tuple[Plain, str]:
    """Train the main model; what came of it, where a champion was continued with `forgetting` (forgetting.detection's),
    and its page."""
    from steps import forgetting, launch, lifecycle
    from steps.training_run import training_run

    corrupted = lifecycle.gather_corruptions(plan, text, frozen, [{}])
    trained, page = launch.pretrain(plan, text, frozen, corrupted)
    trained["forgetting"] = []
    if plan["way"] == CONTINUE:
        trained["forgetting"] = forgetting.detection(
            PretrainConfig.from_dict(plan["config"]),
            training_run(plan, text, plan["mlflow_run_id"]),
            auxiliary=frozen,
            initial_model=plan["initial_model"],
            key=trained["key"],
        )
        tracking.log_metrics(plan["mlflow_run_id"], [{"step": 0, **forgetting.as_metrics(trained["forgetting"])}])
    return trained, page


@attempt
def register(plan: Plain, made: Plain, *, pathspec: str) -> Plain:
    """Register the main model and its task models; gates, and the champion's rule. made: text, candidates, frozen,
    trained and scores. Returns made with version, and tasks: their scores before and after."""
    from steps import delivery, forgetting, scoring
    from steps.retrain_news import GENERATION_TAG, TRIAL_TAG

    parts = [made[name] for name in ("text", "frozen", "trained", "scores")]
    version = delivery.register_discriminator(plan, *parts, pathspec=pathspec)
    tags = {TRIAL_TAG: plan["trial"]}
    if plan["way"] == CONTINUE:
        tags[GENERATION_TAG] = plan["champion"]["generation"] + 1
    tracking.set_version_tags(version["name"], version["version"], tags)
    encoder = {**version, "digest": made["trained"]["digest"]}
    scoring.register_task_models(plan, made["scores"], encoder, pathspec=pathspec)
    rows = []
    if plan["way"] == CONTINUE:
        champion = tracking.model_version_info("models:/{name}/{version}".format(**plan["champion"]))
        rows = forgetting.tasks(champion, made["scores"]["sheet"])
    return {**made, "tasks": rows, "version": delivery.promote(plan, made["scores"], version)}


def close(plan: Plain, made: Plain | None) -> tuple[Plain, str, str]:
    """What came of it (retrain_report.outcome_of), the closing words and the page; ends the MLflow run and frees
    the lock. made is register's, None where nothing was trained."""
    from steps import retrain_report

    if made is None:
        return plan["outcome"], plan["outcome"]["words"], retrain_report.page(plan)
    lock = _lock_of_plan(plan)
    with lock.holding():
        closed = _close(plan, made)
    lock.release()
    return closed


@attempt
def _close(plan: Plain, made: Plain) -> tuple[Plain, str, str]:
    from steps import delivery, retrain_report

    connect(plan)
    outcome = retrain_report.outcome_of(plan, made)
    retrain_report.log(plan, outcome)
    names = ("text", "candidates", "frozen", "trained", "scores", "version")
    first = retrain_report.sections(plan, outcome, made)
    table, page = delivery.close_pretrain(plan, *(made[name] for name in names), first=first)
    return outcome, f"{table}\n{outcome['words']}", page
