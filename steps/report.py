"""The pages a person reads: text, candidates, curves, task scores, and all of a run together.

Each is one HTML file with nothing outside it (steps.page), shown on a Metaflow card and kept as an MLflow artifact.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fast_electra_core.comparison import paired
from fast_electra_core.glue import SPECS
from steps import cost_words, run_charts
from steps.charts import Row, curves
from steps.page import Section, Table, interval, number, prose_table, render, spread
from steps.scores import average_hint, notes, statistics_of

_ABOUT = {
    "num_documents": "documents",
    "num_characters": "characters",
    "num_train_tokens": "training tokens",
    "num_heldout_tokens": "held-out tokens",
    "num_unknown": "unknown tokens",
    "tokenizing_seconds": "seconds of tokenizing",
}


def text_page(manifest: Row) -> str:
    """What text was read: counts, unknown tokens, and whatever else the manifest says."""
    return render("Text", [_text_section(manifest)])


def candidates_page(candidates: Sequence[Row], chosen: Sequence[int], rule: str) -> str:
    """The auxiliary candidates side by side, the chosen ones (indices) highlighted, the rule in words."""
    return render("Auxiliary candidates", [_candidates_section(candidates, chosen, rule)])


def training_page(rows: Sequence[Row], config: Row, heldout: Sequence[Row] = (), *, cost: Row | None = None) -> str:
    """Curves of training (rows, by step) and of held-out text; a curve that no row has is left out. Below them the cost
    (ledger.account), if it is given."""
    sections = [_training_section(rows, config, heldout)]
    return render("Training", sections if cost is None else [*sections, _cost_section(cost, {})])


def glue_page(scores: Row, suite_name: str, *, run: str) -> str:
    """Scores per task (scoring.gather_scores): pre-trained, untrained and majority class; run is the flow's."""
    return render(scores["subject"], [_glue_section(scores, suite_name)], f"Scored by {run}")


def suite_name(glue: str, tasks: Iterable[str]) -> str:
    """What tasks from a `--glue` source may be called: `GLUE` if they are GLUE's, all of them."""
    if glue == "sample":
        return "sample tasks"
    tasks = list(tasks)
    own = [task for task in tasks if task not in SPECS]
    if len(own) == len(tasks):
        return "own tasks"
    return f"tasks, of which {', '.join(own)} not of GLUE" if own else "GLUE"


def final_page(everything: Mapping[str, Any]) -> str:
    """All of a run on one page. Optional keys: title, subtitle, link (the run's page in MLflow), first (Sections that
    the page begins with), and one per section: registered and lineage (dicts), glue {scores, suite_name, rival},
    training {rows, config, heldout}, cost {cost: ledger.account, seconds: of other work}, candidates {candidates,
    chosen, rule}, text (a manifest)."""
    makers: dict[str, Callable[[Any], Section]] = {
        "registered": _registered_section,
        "glue": lambda given: _glue_section(**given),
        "training": lambda given: _training_section(**given),
        "cost": lambda given: _cost_section(**given),
        "candidates": lambda given: _candidates_section(**given),
        "text": _text_section,
        "lineage": lambda given: Section("Lineage", tables=[prose_table("Made from", given)]),
    }
    sections = [make(everything[key]) for key, make in makers.items() if everything.get(key) is not None]
    sections = [*everything.get("first", ()), *sections]
    words = (str(everything.get(key, "")) for key in ("subtitle", "link"))
    return render(str(everything.get("title", "Fast-ELECTRA")), sections, *words)


# Sections


def _text_section(manifest: Row) -> Section:
    facts = [(label, number(manifest[key])) for key, label in _ABOUT.items() if key in manifest]
    total = manifest.get("num_train_tokens", 0) + manifest.get("num_heldout_tokens", 0)
    if total and "num_unknown" in manifest:
        facts.append(("unknown share", f"{100 * manifest['num_unknown'] / total:.3f} %"))
    rest = {k: number(v) for k, v in manifest.items() if k not in _ABOUT and isinstance(v, str | int | float)}
    return Section("Text", facts=facts, tables=[prose_table("More", rest)] if rest else [])


def _candidates_section(candidates: Sequence[Row], chosen: Sequence[int], rule: str) -> Section:
    columns = {
        "num_layers": "layers",
        "hidden_size": "width",
        "num_parameters": "parameters",
        "flops_per_token": "FLOPs/token",
        "flops_fraction": "of main model",
        "seconds_per_1k_tokens": "s / 1k tokens",
    }
    pairs = {"loss": "masked loss / unigram", "accuracy": "accuracy / unigram"}
    prices = [
        [str(row["address"]), *(number(row.get(key)) for key in columns)]
        + [f"{number(row.get(f'masked_{key}'))} / {number(row.get(f'unigram_{key}'))}" for key in pairs]
        for row in candidates
    ]
    verdicts = [
        [
            str(row["address"]),
            "chosen" if index in chosen else "usable" if row["ok"] else "refused",
            str(row.get("reason") or ""),
            str(row.get("digest") or "–"),
        ]
        for index, row in enumerate(candidates)
    ]
    tables = [
        Table(["candidate", *columns.values(), *pairs.values()], prices, chosen),
        Table(["candidate", "verdict", "reason", "digest"], verdicts, chosen, is_prose=True),
    ]
    return Section("Auxiliary", f"Rule: {rule}", tables=tables)


def _training_section(rows: Sequence[Row], config: Row, heldout: Sequence[Row] = ()) -> Section:
    joined = [*rows, *heldout]
    num_steps = int(config.get("num_steps") or max((row["step"] for row in joined), default=1))
    draw = functools.partial(curves, joined, num_steps)
    masked = {"masked_accuracy": "training", "heldout_masked_accuracy": "held-out"}
    masked |= {"heldout_unigram_accuracy": "unigram"}
    recalls = {"recall_replaced": "replaced tokens", "recall_original": "original tokens"}
    detection = {"heldout_auc": "AUC", "heldout_recall_replaced": "recall", "heldout_precision_replaced": "precision"}
    charts = [
        run_charts.progress(joined, num_steps),
        draw("Generator's loss", {"generator_loss": "masked tokens"}),
        draw("Accuracy by class", recalls, limits=(0.0, 1.02)),
        draw("Masked accuracy", masked),
        draw("Detection on held-out text (dashes: AUC by chance)", detection, limits=(0.0, 1.02), level=0.5),
        draw("Learning rate", {"learning_rate": "learning rate", "generator_learning_rate": "of the generator"}),
        draw("Speed, tokens per second", {"tokens_per_second": "tokens/s"}),
    ]
    last = {key: row[key] for row in sorted(joined, key=lambda row: int(row["step"])) for key in row}
    shown = {"step": "steps done", "loss": "last training loss", "heldout_auc": "held-out AUC"}
    shown |= {"heldout_masked_accuracy": "held-out masked accuracy"}
    facts = [(label, number(last[key])) for key, label in shown.items() if key in last]
    return Section(
        "Training", f"Over progress, {num_steps:,} steps in all.", facts, [chart for chart in charts if chart]
    )


def _cost_section(cost: Row, seconds: Mapping[str, float]) -> Section:
    split = run_charts.cost_split(cost, seconds)
    tables = [
        Table(["operations", "FLOPs", "per token", "of joint"], cost_words.accounting_rows(cost)),
        Table(["", "planned", "measured"], cost_words.measured_rows(cost)),
    ]
    return Section(
        "Cost",
        cost_words.NOTE,
        [(label, value) for label, value, _ in cost_words.facts(cost)],
        charts=[split] if split else [],
        tables=tables,
    )


def _glue_section(scores: Row, suite_name: str, rival: Row | None = None) -> Section:
    columns = ["task", "metric", "n", "mean", "95 %", "median", "best", "majority", "rate", "epochs"]
    rows, margins = [], []
    for row in scores["rows"]:
        trained = row["pretrained"] or {}
        names = [row["task"], row["metric"]]
        rows.append(
            [
                *names,
                number(trained.get("n")),
                spread(trained),
                interval(trained.get("low"), trained.get("high")),
                *(number(trained.get(name)) for name in ("median", "best")),
                number(row["majority"]),
                *(f"{trained[name]:g}" if trained else "–" for name in ("learning_rate", "epochs")),
            ]
        )
        if row["untrained"]:
            means = [spread(trained), spread(row["untrained"]), number(row["margin"], signed=True)]
            margins.append([*names, *means, interval(row["margin_low"], row["margin_high"], signed=True)])
    note = f"{scores['protocol'][0].upper()}{scores['protocol'][1:]}. "
    note += "Mean ± standard deviation over seeds, with the mean's 95 % interval (Student's)"
    note += "; margin is pre-trained less untrained, with its own (Welch's)." if margins else "."
    note += "".join(f" {each[0].upper()}{each[1:]}." for each in notes(scores))
    tables = [Table(columns, rows)]
    if margins:
        tables.append(Table(["task", "metric", "pre-trained", "untrained", "margin", "95 %"], margins))
    main = [row for row in scores["rows"] if row["is_main"]]
    if rival:
        tables.append(_rival_table(main, rival))
    facts = [
        (f"average as {name}'s, {average_hint(average)}", f"{average['value']:.4f}")
        for name, average in scores["averages"].items()
        if len(average["tasks"]) > 1
    ]
    heading = suite_name[0].upper() + suite_name[1:]
    return Section(heading, note, facts, charts=[run_charts.scores(main, rival)] if main else [], tables=tables)


def _rival_table(rows: Sequence[Row], rival: Row) -> Table:
    """This version beside the champion that it was judged against, seed by seed on the same data."""
    found = []
    for row in rows:
        theirs = rival["scores"][row["task"]]
        ours = {int(seed): value for seed, value in row["pretrained"]["values"].items()} if row["pretrained"] else {}
        margin = paired(ours, theirs)
        means = [spread(row["pretrained"]), spread(statistics_of(list(theirs.values())))]
        ends = (margin.low, margin.high) if margin else (None, None)
        difference = number(margin.mean if margin else None, signed=True)
        found.append([row["task"], row["metric"], *means, difference, interval(*ends, signed=True)])
    return Table(["task", "metric", "this version", rival["name"], "seed by seed", "95 %"], found)


def _registered_section(registered: Row) -> Section:
    aliases = ", ".join(registered.get("aliases", ())) or "none"
    facts = [
        ("model", str(registered["name"])),
        ("version", str(registered["version"])),
        ("aliases", aliases),
    ]
    rows = [[each["name"], each["status"], each["reason"]] for each in registered.get("gates", ())]
    tables = [Table(["gate", "", "what was found"], rows, is_prose=True)] if rows else []
    return Section("Registered", str(registered.get("reason", "")), facts, tables=tables)
