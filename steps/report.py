"""The pages a person reads: text, candidates, curves, task scores; and the table that ends a run.

Each page is one HTML file with nothing outside it, fit for a Metaflow card and for an MLflow artifact. Charts
are inline SVG; every word from outside is escaped by jinja2.
"""

import functools
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fast_electra_core.glue import SPECS
from steps import cost_words
from steps.charts import Chart, Row, bars, curves
from steps.scores import notes

_TERMINAL = 100  # columns
_ABOUT = {
    "num_documents": "documents",
    "num_characters": "characters",
    "num_train_tokens": "training tokens",
    "num_heldout_tokens": "held-out tokens",
    "num_unknown": "unknown tokens",
}


class Table(NamedTuple):
    """Cells are text already; marked are the indices of the rows to highlight, is_prose aligns to the left."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: Sequence[int] = ()
    is_prose: bool = False


class Section(NamedTuple):
    """One part of a page: facts are (label, value) tiles."""

    heading: str
    note: str = ""
    facts: Sequence[tuple[str, str]] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()


def text_page(manifest: Row) -> str:
    """What text was read: counts, unknown tokens, and whatever else the manifest says."""
    return _page("Text", [_text_section(manifest)])


def candidates_page(candidates: Sequence[Row], chosen: Sequence[int], rule: str) -> str:
    """The auxiliary candidates side by side, the chosen ones (indices) highlighted, the rule in words."""
    return _page("Auxiliary candidates", [_candidates_section(candidates, chosen, rule)])


def training_page(rows: Sequence[Row], config: Row, heldout: Sequence[Row] = (), *, cost: Row | None = None) -> str:
    """Curves of training (rows, by step) and of held-out text; a curve that no row has is left out. Below them the cost
    (ledger.account), if it is given."""
    sections = [_training_section(rows, config, heldout)]
    return _page("Training", sections if cost is None else [*sections, _cost_section(cost)])


def glue_page(scores: Row, suite_name: str, *, run: str) -> str:
    """Scores per task (scoring.gather_scores): pre-trained, untrained and majority class; run is the flow's."""
    return _page(scores["subject"], [_glue_section(scores, suite_name)], f"Scored by {run}")


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
    """All of a run on one page. Optional keys: title, subtitle, link (the run's page in MLflow), and one per section:
    registered and lineage (dicts), glue {scores, suite_name}, training {rows, config, heldout}, cost (ledger.account),
    candidates {candidates, chosen, rule}, text (a manifest)."""
    makers: dict[str, Callable[[Any], Section]] = {
        "registered": _registered_section,
        "glue": lambda given: _glue_section(**given),
        "training": lambda given: _training_section(**given),
        "cost": _cost_section,
        "candidates": lambda given: _candidates_section(**given),
        "text": _text_section,
        "lineage": lambda given: Section("Lineage", tables=[_prose_table("Made from", given)]),
    }
    sections = [make(everything[key]) for key, make in makers.items() if everything.get(key) is not None]
    words = (str(everything.get(key, "")) for key in ("subtitle", "link"))
    return _page(str(everything.get("title", "Fast-ELECTRA")), sections, *words)


def closing_table(
    *,
    auxiliary: Row | None,
    heldout: Row | None = None,
    scores: Row | None = None,
    suite_name: str = "sample tasks",
    cost: Row | None = None,
    registered: Row | None = None,
) -> str:
    """What the terminal shows at the end, at most 100 columns wide.

    auxiliary: the chosen candidate's dict; heldout: the last held-out row; scores: scoring.gather_scores; cost:
    ledger.account_*; registered: what register_* returned. What is None is left out.
    """
    lines: list[tuple[str, str, str]] = []
    if auxiliary is not None:
        lines += [
            ("auxiliary: held-out masked loss", *_pair(auxiliary, "masked_loss", "unigram_loss", "unigram")),
            ("auxiliary: masked accuracy", *_pair(auxiliary, "masked_accuracy", "unigram_accuracy", "unigram")),
        ]
    if heldout is not None and "heldout_masked_loss" in heldout:
        lines += [
            ("main model: held-out masked loss", *_pair(heldout, *_masked("loss"), "unigram")),
            ("main model: masked accuracy", *_pair(heldout, *_masked("accuracy"), "unigram")),
        ]
    elif heldout is not None:
        rtd = _pair(heldout, "heldout_rtd_loss", "heldout_majority_loss", "majority class")
        lines += [
            ("main model: held-out RTD loss", *rtd),
            ("main model: AUC, replaced tokens", _number(heldout.get("heldout_auc")), "chance 0.5"),
            ("main model: recall, replaced", _number(heldout.get("heldout_recall_replaced")), ""),
            ("main model: precision, replaced", _number(heldout.get("heldout_precision_replaced")), ""),
        ]
    main = [row for row in scores["rows"] if row["is_main"]] if scores else []
    lines += [_task_line(row) for row in main]
    lines += [
        (f"average, as {name}'s", f"{average['value']:.3f}", _average_hint(average))
        for name, average in (scores["averages"] if scores else {}).items()
        if len(average["tasks"]) > 1
    ]
    lines += cost_words.closing_lines(cost) if cost is not None else []
    if registered is not None:
        known = " ".join(f"@{alias}" for alias in registered.get("aliases", ())) or "no alias"
        lines.append(("registered", f"{registered['name']} {registered['version']}", known))
        lines += _gate_lines(registered.get("gates", ()))
    remarks = []
    if scores and main:
        star = "; * differs from the untrained encoder (95 %)" if any(row["untrained"] for row in main) else ""
        remarks = [f"{suite_name}: mean ± std over seeds{star}", f"{scores['subject']}: {scores['protocol']}"]
        remarks += notes(scores)
    if registered is not None and registered.get("gates"):
        open_gates = [each for each in registered["gates"] if each["status"] != "pass"]
        remarks += [f"gate {each['name']} {each['status']}: {each['reason']}" for each in open_gates]
        remarks.append(str(registered["reason"]))
    return _aligned(lines, [*remarks, "browse runs and lineage: make ui"])


def _gate_lines(gates: Sequence[Row]) -> list[tuple[str, str, str]]:
    """One line: how many pass, and which do not."""
    if not gates:
        return []
    others = [f"{each['name']} {each['status']}" for each in gates if each["status"] != "pass"]
    return [("gates", f"{len(gates) - len(others)} of {len(gates)} pass", ", ".join(others))]


def _masked(score: str) -> tuple[str, str]:
    return f"heldout_masked_{score}", f"heldout_unigram_{score}"


def _average_hint(average: Row) -> str:
    return f"over {len(average['tasks'])} tasks{'' if average['is_complete'] else ', incomplete'}"


def _aligned(lines: Sequence[tuple[str, str, str]], remarks: Sequence[str]) -> str:
    width = max((len(name) for name, _, _ in lines), default=0)
    middle = max((len(value) for _, value, _ in lines), default=0)
    body = [f"  {name:<{width}}  {value:>{middle}}  {hint}".rstrip() for name, value, hint in lines]
    under = [wrapped for note in remarks for wrapped in textwrap.wrap(note, _TERMINAL - 2, subsequent_indent="  ")]
    body = [line if len(line) <= _TERMINAL else line[: _TERMINAL - 1] + "…" for line in body]
    rule = "-" * max((len(line) for line in body), default=0)
    return "\n".join([rule, *body, rule, *(f"  {note}" for note in under)])


def _pair(row: Row, key: str, baseline: str, name: str) -> tuple[str, str]:
    return _number(row.get(key)), f"{name} {_number(row.get(baseline))}"


def _task_line(row: Row) -> tuple[str, str, str]:
    star = " *" if row.get("is_outside_noise") else ""
    untrained = f"untrained {_spread(row['untrained'], 3)}, " if row.get("untrained") else ""
    metric = str(row["metric"]).replace("_correlation", "")
    return (
        f"{row['task']}: {metric}",
        _spread(row.get("pretrained"), 3) + star,
        f"{untrained}majority {row['majority']:.3f}",
    )


def _spread(statistics: Row | None, digits: int = 4) -> str:
    """mean ± standard deviation; the mean alone of a single seed."""
    if not statistics:
        return "–"
    mean, std = statistics["mean"], statistics.get("std")
    return f"{mean:.{digits}f}" if std is None else f"{mean:.{digits}f} ± {std:.{digits}f}"


def _interval(low: float | None, high: float | None, *, signed: bool = False) -> str:
    return "–" if low is None or high is None else f"{_number(low, signed=signed)} to {_number(high, signed=signed)}"


# Sections


def _text_section(manifest: Row) -> Section:
    facts = [(label, _number(manifest[key])) for key, label in _ABOUT.items() if key in manifest]
    total = manifest.get("num_train_tokens", 0) + manifest.get("num_heldout_tokens", 0)
    if total and "num_unknown" in manifest:
        facts.append(("unknown share", f"{100 * manifest['num_unknown'] / total:.3f} %"))
    rest = {k: v for k, v in manifest.items() if k not in _ABOUT and isinstance(v, str | int | float)}
    return Section("Text", facts=facts, tables=[_prose_table("More", rest)] if rest else [])


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
        [str(row["address"]), *(_number(row.get(key)) for key in columns)]
        + [f"{_number(row.get(f'masked_{key}'))} / {_number(row.get(f'unigram_{key}'))}" for key in pairs]
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
    losses = {"loss": "training", "heldout_rtd_loss": "held-out", "heldout_masked_loss": "held-out"}
    losses |= {"heldout_majority_loss": "always the majority class", "heldout_unigram_loss": "unigram"}
    masked = {"masked_accuracy": "training", "heldout_masked_accuracy": "held-out"}
    masked |= {"heldout_unigram_accuracy": "unigram"}
    recalls = {"recall_replaced": "replaced tokens", "recall_original": "original tokens"}
    detection = {"heldout_auc": "AUC", "heldout_recall_replaced": "recall", "heldout_precision_replaced": "precision"}
    charts = [
        draw("Loss", losses),
        draw("Generator's loss", {"generator_loss": "masked tokens"}),
        draw("Curriculum", {"temperature": "temperature"}, right={"replaced_fraction": "replaced share"}),
        draw("Accuracy by class", recalls, limits=(0.0, 1.02)),
        draw("Masked accuracy", masked),
        draw("Detection on held-out text (dashes: AUC by chance)", detection, limits=(0.0, 1.02), level=0.5),
        draw("Learning rate", {"learning_rate": "learning rate", "generator_learning_rate": "of the generator"}),
        draw("Speed, tokens per second", {"tokens_per_second": "tokens/s"}),
    ]
    last = {key: row[key] for row in sorted(joined, key=lambda row: int(row["step"])) for key in row}
    shown = {"step": "steps done", "loss": "last training loss", "heldout_auc": "held-out AUC"}
    shown |= {"heldout_masked_accuracy": "held-out masked accuracy"}
    facts = [(label, _number(last[key])) for key, label in shown.items() if key in last]
    return Section(
        "Training", f"Over progress, {num_steps:,} steps in all.", facts, [chart for chart in charts if chart]
    )


def _cost_section(cost: Row) -> Section:
    tables = [
        Table(["operations", "FLOPs", "per token", "of joint"], cost_words.accounting_rows(cost)),
        Table(["", "planned", "measured"], cost_words.measured_rows(cost)),
    ]
    return Section(
        "Cost", cost_words.NOTE, [(label, value) for label, value, _ in cost_words.facts(cost)], tables=tables
    )


def _glue_section(scores: Row, suite_name: str) -> Section:
    columns = ["task", "metric", "n", "mean", "95 %", "median", "best", "majority", "rate", "epochs"]
    rows, margins = [], []
    for row in scores["rows"]:
        trained = row["pretrained"] or {}
        names = [row["task"], row["metric"]]
        rows.append(
            [
                *names,
                _number(trained.get("n")),
                _spread(trained),
                _interval(trained.get("low"), trained.get("high")),
                *(_number(trained.get(name)) for name in ("median", "best")),
                _number(row["majority"]),
                *(f"{trained[name]:g}" if trained else "–" for name in ("learning_rate", "epochs")),
            ]
        )
        if row["untrained"]:
            interval = _interval(row["margin_low"], row["margin_high"], signed=True)
            margin = _number(row["margin"], signed=True)
            margins.append([*names, _spread(trained), _spread(row["untrained"]), margin, interval])
    note = f"{scores['protocol'][0].upper()}{scores['protocol'][1:]}. "
    note += "Mean ± standard deviation over seeds, with the mean's 95 % interval (Student's)"
    note += "; margin is pre-trained less untrained, with its own (Welch's)." if margins else "."
    note += "".join(f" {each[0].upper()}{each[1:]}." for each in notes(scores))
    tables = [Table(columns, rows)]
    if margins:
        tables.append(Table(["task", "metric", "pre-trained", "untrained", "margin", "95 %"], margins))
    main = [row for row in scores["rows"] if row["is_main"]]
    facts = [
        (f"average as {name}'s, {_average_hint(average)}", f"{average['value']:.4f}")
        for name, average in scores["averages"].items()
        if len(average["tasks"]) > 1
    ]
    heading = suite_name[0].upper() + suite_name[1:]
    return Section(heading, note, facts, charts=[bars(main)] if main else [], tables=tables)


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


# Pages


def _page(title: str, sections: Iterable[Section], subtitle: str = "", link: str = "") -> str:
    import jinja2

    template = Path(__file__).with_name("report_template.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(template).render(title=title, subtitle=subtitle, link=link, sections=list(sections))


def _prose_table(head: str, rows: Mapping[str, Any]) -> Table:
    return Table([head, ""], [[str(key), str(value)] for key, value in rows.items()], is_prose=True)


def _number(value: Any, *, signed: bool = False) -> str:
    """1234567 -> 1,234,567; 0.123456 -> 0.1235; 3.1e-05 -> 3.1e-05; None -> –."""
    if value is None:
        return "–"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str | bool):
        return str(value)
    sign = "+" if signed else ""
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{value:{sign},.0f}"
    if 1e-9 < abs(value) < 0.001:
        return f"{value:{sign}.2e}"
    if abs(value) >= 1000:
        return f"{value:{sign},.0f}"
    return f"{value:{sign}.4f}" if abs(value) < 10 else f"{value:{sign}.2f}"
