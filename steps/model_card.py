"""The model card: what a model is, what it was made from, how good it is and how sure that is, its cost, its limits.

One text, written when a version is registered: README.md of its files, and so of what `fast-electra export` hands out.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from fast_electra_core.promotion import UNSTATED
from steps.report import suite_name
from steps.scores import as_markdown
from steps.trace import LICENCE_TAG

Plain = Mapping[str, Any]
FEW_SEEDS = 5
_GATES, _LINEAGE = "## Gates", "## Made from"
_NO_LICENCE = "The licence of its text is not stated; whoever hands the model on must know it."
_LAST_LIMIT = "Not examined for bias, for harmful content, or on text unlike its own."
_DESCRIPTION_LENGTH = 4500  # characters; databases hold 5000
_ELSEWHERE = {
    "store", "tracking_uri", "experiment", "preset", "corpus", "auxiliary", "glue", "model", "initial_model",
}  # fmt: skip
"""Parameters that say where something lay on the machine of that run."""
_COST = {
    "seconds": "seconds of training",
    "tokens_per_second": "tokens per second",
    "num_parameters": "parameters",
    "peak_memory_megabytes": "peak memory, MB",
    "total": "floating-point operations",
    "total_flops": "floating-point operations",
    "auxiliary": "of which the auxiliary's",
    "joint_total": "the same with the auxiliary trained alongside",
}
_USES = {
    "fill-mask": ("AutoModelForMaskedLM", ""),
    "text-classification": ("AutoModelForSequenceClassification", ""),
    "electra": ("AutoModelForPreTraining", "one logit per token: above 0, the token looks replaced"),
    # transformers has no ForPreTraining class for it.
    "modernbert": ("AutoModelForTokenClassification", "one logit per token: above 0, the token looks replaced"),
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a model when it is registered; what is not known is left out of the card."""

    summary: str
    """What it is, in a sentence or two."""
    task: str
    """The transformers pipeline that it is for."""
    tags: Plain
    """Lineage: the version's tags."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    datasets: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """What metrics were measured on: metric -> name and digest of the data, as MLflow knows them."""
    config: Plain = field(default_factory=dict)
    """Every parameter of the run."""
    scores: Plain | None = None
    """Of the fine-tunings: scoring.gather_scores."""
    cost: Plain = field(default_factory=dict)


def model_card(name: str, facts: Facts) -> str:
    """The card as Markdown with a head that the Hugging Face hub reads; the same facts give the same text."""
    sections = [
        ["---", "library_name: transformers", f"pipeline_tag: {facts.task}", "tags: [electra, fast-electra]", "---"],
        [f"# {name}", "", facts.summary],
        _use(name, facts),
        _data(facts),
        _method(facts),
        _scores(facts),
        _cost(facts),
        _limits(facts),
        _lineage(facts),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def description(facts: Facts) -> str:
    """The card's heart, short enough for the description of a version in MLflow (5000 characters)."""
    parts = [facts.summary, "\n".join(_scores(facts)), "\n".join(_limits(facts))]
    text = "\n\n".join(part for part in parts if part)
    return text if len(text) <= _DESCRIPTION_LENGTH else f"{text[:_DESCRIPTION_LENGTH]}…"


def with_gates(card: str, gates: Sequence[tuple[str, str, str]]) -> str:
    """The card with what was found at the gates (name, status, reason), before its lineage; in place of an earlier such
    section, if it has one."""
    section = "\n".join(_table(_GATES, {name: f"{status}: {reason}" for name, status, reason in gates}))
    start, found, rest = card.partition(f"{_GATES}\n")
    if found:
        return f"{start}{section}\n{_next_section(rest)}"
    before, heading, after = card.partition(f"{_LINEAGE}\n")
    return f"{before}{section}\n\n{heading}{after}" if heading else f"{card.rstrip()}\n\n{section}\n"


def with_licence(card: str, licence: str) -> str:
    """The card, or the description, with that licence of the text, in place of what it said of it."""
    rows = {"licence of the text": _licence({LICENCE_TAG: licence}) or "not stated", LICENCE_TAG: licence}
    for key, value in rows.items():
        row = f"| {key} | {_cell(value)} |".replace("\\", r"\\")
        card = re.sub(rf"^\| {re.escape(key)} \|.*$", row, card, flags=re.MULTILINE)
    card = card.replace(f"- {_NO_LICENCE}\n", "")
    return card.replace(_LAST_LIMIT, f"{_NO_LICENCE}\n- {_LAST_LIMIT}") if licence == UNSTATED else card


def _next_section(text: str) -> str:
    found = text.find("\n## ")
    return text[found:] if found >= 0 else ""


def describe_gates(text: str, gates: Sequence[tuple[str, str, str]]) -> str:
    """The description with one line on the gates at its end, in place of an earlier such line."""
    line = f"Gates: {', '.join(f'{name} {status}' for name, status, _ in gates)}."
    return f"{text.partition('Gates: ')[0].rstrip()}\n\n{line}".lstrip()


def _use(name: str, facts: Facts) -> list[str]:
    architecture = str(facts.config.get("architecture", ""))
    is_encoder = facts.task == "feature-extraction"
    loader, what = _USES.get(architecture if is_encoder else facts.task, ("AutoModel", ""))
    lines = [
        f"from transformers import {', '.join(dict.fromkeys(['AutoTokenizer', loader]))}",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        f'model = {loader}.from_pretrained("FOLDER"){f"  # {what}" if what else ""}',
    ]
    if is_encoder:
        # The head of a ModernBERT detector has the name of the classifier's, and another width.
        more = ", ignore_mismatched_sizes=True" if architecture == "modernbert" else ""
        lines += [
            "",
            'encoder = AutoModel.from_pretrained("FOLDER")  # hidden states',
            f'classifier = AutoModelForSequenceClassification.from_pretrained("FOLDER", num_labels=2{more})'
            "  # to be fine-tuned",
        ]
        lines[0] = f"from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, {loader}"
    mlflow = ["import mlflow", "", f'pipeline = mlflow.transformers.load_model("models:/{name}/VERSION")']
    return ["## Use", "", "```python", *lines, "```", "", "Out of the registry:", "", "```python", *mlflow, "```"]


def _data(facts: Facts) -> list[str]:
    tags, config = facts.tags, facts.config
    rows = {
        "text": _base_name(tags.get("corpus.address")),
        "digest of the text": tags.get("corpus.digest"),
        "licence of the text": _licence(tags) or ("not stated" if "corpus.digest" in tags else None),
        "tokens of the text": _count(tags.get("corpus.num_tokens")),
        "digest of the tokenizer": tags.get("tokenizer.digest"),
        "task": tags.get("task"),
        "digest of the task's data": tags.get("task.digest"),
    }
    if {"num_steps", "batch_size", "sequence_length"} <= set(config) and "task" not in tags:
        rows["tokens trained on"] = _count(config["num_steps"] * config["batch_size"] * config["sequence_length"])
    return _table("## Data", rows)


def _method(facts: Facts) -> list[str]:
    tags = facts.tags
    rows: dict[str, Any] = {
        "auxiliary": tags.get("auxiliary.version"),
        "digest of the auxiliary": tags.get("auxiliary.digest") if "auxiliary.version" in tags else None,
        "pre-trained model": tags.get("pretrained.version"),
        "digest of the pre-trained model": tags.get("pretrained.digest"),
    }
    rows |= {name: value for name, value in facts.config.items() if name not in _ELSEWHERE}
    return _table("## Method", rows)


def _scores(facts: Facts) -> list[str]:
    parts = []
    if facts.scores is not None:
        # Without a config, a card must not call tasks GLUE.
        suite = suite_name(facts.config.get("glue", "sample"), [row["task"] for row in facts.scores["rows"]])
        public = {**facts.scores, "subject": _base_name(facts.scores["subject"])}
        parts.append(f"#{as_markdown(public, heading=f'Scores on {suite}')}".strip())
    if facts.metrics:
        rows = {name: f"{value:z.4f}" for name, value in facts.metrics.items()}
        parts.append("\n".join(_table("## Measured", rows)))
    return ["\n\n".join(parts)] if parts else []


def _cost(facts: Facts) -> list[str]:
    rows = {label: _count(facts.cost[name]) for name, label in _COST.items() if name in facts.cost}
    return _table("## Cost", {**rows, "device": facts.cost.get("device")})


def _limits(facts: Facts) -> list[str]:
    config, tags, scores = facts.config, facts.tags, facts.scores
    found = []
    if scores is not None:
        if scores.get("suite") == "sample":
            found.append("The sample tasks show that the pipeline works, not how good the model is; they are not GLUE.")
        counts = [row["pretrained"]["n"] for row in scores["rows"] if row["pretrained"]]
        if counts and min(counts) == 1:
            found.append("Scores are of one seed: nothing says how much of a difference is noise.")
        elif counts and min(counts) < FEW_SEEDS:
            found.append(f"Scores are over {min(counts)} seeds: differences within the intervals say nothing.")
        found.append("Scores are on the dev sets, and speak of one pre-training: another seed of it differs too.")
    if "sequence_length" in config and "task" not in tags:
        found.append(f"Pre-trained on sequences of {config['sequence_length']} tokens; longer ones are new to it.")
    if "score.rule" in tags:
        found.append(f"Chosen as {tags['score.rule']}: its own score flatters, the mean over seeds does not.")
    if str(tags.get("code.git_sha", "")).endswith("-dirty"):
        found.append("The code that made it had changes that no commit has.")
    if "corpus.digest" in tags and not _licence(tags):
        found.append(_NO_LICENCE)
    found.append(_LAST_LIMIT)
    return ["## Limits", "", *(f"- {each}" for each in found)]


def _licence(tags: Plain) -> str:
    licence = str(tags.get(LICENCE_TAG, ""))
    return "" if licence == UNSTATED else licence


def _lineage(facts: Facts) -> list[str]:
    rows = {key: _base_name(value) for key, value in sorted(facts.tags.items()) if key not in facts.metrics}
    return _table(_LINEAGE, rows)


def _table(heading: str, rows: Plain) -> list[str]:
    """Lines of a section with two columns; none where nothing is known."""
    cells = [f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items() if value not in (None, "")]
    return [heading, "", "| | |", "|---|---|", *cells] if cells else []


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _base_name(address: Any) -> Any:
    """What begins with a path on somebody's machine, from its last part on; anything else as it is."""
    return PurePosixPath(address).name if isinstance(address, str) and address.startswith("/") else address


def _count(value: Any) -> str | None:
    """1234567 as 1,234,567; from 1e15 on as 1.23e+15; None as None."""
    if value is None:
        return None
    number = float(value)
    return f"{number:.3g}" if number >= 1e15 else f"{number:,.0f}"


def rows_of(scores: Plain, task: str) -> dict[str, Any]:
    """The scores of one task alone, in the same form."""
    return {
        **scores,
        "rows": [row for row in scores["rows"] if row["task"] == task],
        "averages": {},
        "failures": [each for each in scores["failures"] if each["task"] == task],
        "skipped": {name: count for name, count in scores["skipped"].items() if name == task},
        "submission": {"files": [], "missing": []},
        "own_answers": [],
    }
