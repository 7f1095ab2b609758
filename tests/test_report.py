"""Claims about steps/report.py and steps/page.py: what pages say, and what they never let through."""

import re
import xml.etree.ElementTree
from html.parser import HTMLParser
from typing import Any

import pytest
from toy_costs import cost_of
from toy_scores import HELDOUT, candidate, scores_of, statistics, task_row

from steps import cards, charts, page, report
from steps.closing_table import closing_table

NASTY = '<script>alert("x")</script>'


def page_of(*rows: dict[str, Any], suite_name: str = "GLUE") -> str:
    return report.glue_page(scores_of(*rows), suite_name, run="EvaluateFlow/1")


def training_rows(count: int = 10) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "loss": 1.0 / step,
            "temperature": 1 + 1 / step,
            "replaced_fraction": 0.1,
            "recall_replaced": 0.5,
            "recall_original": 0.9,
            "learning_rate": 1e-4,
        }
        for step in range(1, count + 1)
    ]


MANIFEST = {
    "num_documents": 21_734,
    "num_characters": 9_876_543,
    "num_train_tokens": 90_000,
    "num_heldout_tokens": 10_000,
    "num_unknown": 50,
    "address": "pydocs",
}
EVERYTHING = {
    "title": "Fast-ELECTRA: fast-electra version 3",
    "subtitle": "PretrainFlow/7",
    "registered": {"name": "fast-electra", "version": "3", "aliases": ["champion"], "reason": "there was none"},
    "glue": {"scores": scores_of(task_row()), "suite_name": "sample tasks"},
    "training": {"rows": training_rows(), "config": {"num_steps": 10}, "heldout": [HELDOUT]},
    "cost": {"cost": cost_of(), "seconds": {"fine-tuning": 30.0}},
    "candidates": {"candidates": [candidate()], "chosen": [0], "rule": "lowest masked loss"},
    "text": MANIFEST,
    "lineage": {"corpus.digest": "abc"},
}


class Reader(HTMLParser):
    """What a browser would make of a page: its tags with their attributes, cells and headings."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: dict[str, list[str]] = {"td": [], "th": [], "h2": [], "b": [], "figcaption": [], "h1": []}
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in self.words:
            self._open = tag
            self.words[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._open:
            self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.words[self._open][-1] += data


def titles(page: str) -> list[str]:
    return Reader(page).words["figcaption"]


# All pages


def test_a_page_needs_nothing_from_outside() -> None:
    page = report.final_page(EVERYTHING)

    for tag, attributes in Reader(page).tags:
        assert tag not in ("script", "link", "img", "iframe", "object")
        assert "src" not in attributes
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert re.findall(r"url\((?!#)", page) == []
    assert "@import" not in page


def test_the_final_page_has_a_section_for_each_thing_given_and_no_other() -> None:
    assert Reader(report.final_page(EVERYTHING)).words["h2"] == [
        "Registered",
        "Sample tasks",
        "Training",
        "Cost",
        "Auxiliary",
        "Text",
        "Lineage",
    ]
    assert Reader(report.final_page({"text": MANIFEST})).words["h2"] == ["Text"]


@pytest.mark.parametrize(
    "page",
    [
        report.text_page({**MANIFEST, "address": NASTY, NASTY: "x"}),
        report.candidates_page([candidate(address=NASTY, reason=NASTY, digest=NASTY)], [], NASTY),
        report.glue_page(scores_of(task_row(NASTY, NASTY), subject=NASTY, protocol=NASTY), NASTY, run=NASTY),
        report.final_page({"title": NASTY, "subtitle": NASTY, "lineage": {NASTY: NASTY}}),
        report.final_page({"registered": {"name": NASTY, "version": NASTY, "aliases": [NASTY], "reason": NASTY}}),
    ],
)
def test_words_from_outside_are_escaped(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_charts_are_well_formed_and_small() -> None:
    page = report.training_page(training_rows(20_000), {"num_steps": 20_000})
    charts = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)

    assert len(charts) == 3
    for chart in charts:
        xml.etree.ElementTree.fromstring(chart)
    assert len(page) < 200_000


def test_every_chart_is_one_picture_with_its_title_as_its_name() -> None:
    reader = Reader(report.final_page(EVERYTHING))
    pictures = [attributes for tag, attributes in reader.tags if tag == "svg"]

    assert [picture["role"] for picture in pictures] == ["img"] * len(pictures)
    assert [picture["aria-label"] for picture in pictures] == reader.words["figcaption"]
    chart = charts.curves([{"step": 1, "loss": 1.0}], 1, NASTY, {"loss": "loss"})
    assert chart is not None
    assert NASTY not in chart.svg


def test_the_point_of_a_single_step_at_the_edge_of_a_chart_is_drawn_whole() -> None:
    chart = charts.curves([{"step": 1, "loss": 1.0}], 1, "Loss", {"loss": "loss"})
    assert chart is not None
    (line,) = chart.figure().axes[0].get_lines()
    assert list(line.get_xdata()) == [1.0]
    assert not line.get_clip_on()


def test_a_card_is_one_line_of_markdown_whatever_lines_its_words_have() -> None:
    page = 'first\r\rsecond\r\n\r\n"third"\n\nlast'
    card = cards.as_card(page)
    assert "\n" not in card and "\r" not in card
    assert [attributes["srcdoc"] for tag, attributes in Reader(card).tags if tag == "iframe"] == [page]


def test_the_same_run_gives_the_same_page() -> None:
    assert report.final_page(EVERYTHING) == report.final_page(EVERYTHING)


# Text and candidates


def test_the_text_page_counts_and_gives_the_share_of_unknown_tokens() -> None:
    reader = Reader(report.text_page(MANIFEST))

    assert reader.words["b"] == ["21,734", "9,876,543", "90,000", "10,000", "50", "0.050 %"]
    assert reader.words["td"] == ["address", "pydocs"]
    more = Reader(report.text_page({"num_bytes": 123456789, "unknown_fraction": 50 / 9.1e6}))
    assert more.words["td"] == ["num_bytes", "123,456,789", "unknown_fraction", "5.49e-06"]


def test_the_candidates_page_marks_the_chosen_one_and_says_why_others_lost() -> None:
    loser = candidate(address="other", ok=False, reason="too dear", masked_loss=None, masked_accuracy=None)
    page = report.candidates_page([loser, candidate()], [1], "lowest masked loss")

    marked = re.findall(r'<tr class="marked">(.*?)</tr>', page)
    assert len(marked) == 2
    assert all("models:/fast-electra-auxiliary@champion" in row for row in marked)
    assert "<td>chosen</td>" in marked[1]
    assert "Rule: lowest masked loss" in page
    cells = Reader(page).words["td"]
    assert cells[7:9] == ["– / 6.6200", "– / 0.0460"]
    assert cells[10:18] == [
        "2",
        "128",
        "1,543,680",
        "1,200,000",
        "0.3100",
        "0.0213",
        "4.4100 / 6.6200",
        "0.2510 / 0.0460",
    ]
    assert cells[18:21] == ["other", "refused", "too dear"]


# Training


def test_the_training_page_of_a_discriminator_shows_the_curriculum_and_the_detection() -> None:
    page = report.training_page(training_rows(), {"num_steps": 10}, [HELDOUT])

    assert titles(page) == [
        "Loss, temperature and replaced share",
        "Accuracy by class",
        "Detection on held-out text (dashes: AUC by chance)",
        "Learning rate",
    ]
    for words in ("temperature", "replaced share", "replaced tokens", "original tokens", "AUC", "recall"):
        assert f">{words}</text>" in page
    assert Reader(page).words["b"] == ["10", "0.1000", "0.8700"]


def test_the_training_page_of_a_masked_model_shows_its_accuracy_and_no_empty_chart() -> None:
    rows = [{"step": step, "loss": 5.0, "masked_accuracy": 0.1 * step} for step in (1, 2)]
    heldout = [{"step": 2, "heldout_masked_accuracy": 0.2, "heldout_unigram_accuracy": 0.05}]

    assert titles(report.training_page(rows, {}, heldout)) == ["Loss", "Masked accuracy"]


def test_the_training_page_ends_with_the_cost_where_it_is_known() -> None:
    page = Reader(report.training_page(training_rows(), {"num_steps": 10}, cost=cost_of()))

    assert page.words["h2"] == ["Training", "Cost"]
    assert page.words["b"][2:] == ["1.400e+09", "20.0 s", "1.00e+08", "5.0 MB"]
    assert page.words["th"] == ["operations", "FLOPs", "per token", "of joint", "", "planned", "measured"]
    cells = page.words["td"]
    assert cells[8:12] == ["this run, per step", "1.400e+09", "1.400e+06", "0.778"]
    assert cells[cells.index("memory: peak") :][:3] == ["memory: peak", "4.4 MB", "5.0 MB"]


def test_a_run_without_rows_still_has_a_page() -> None:
    assert titles(report.training_page([], {})) == []


def test_points_are_over_progress_finite_one_per_step_and_end_with_the_last() -> None:
    rows = [{"step": 2, "a": 2.0}, {"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}, {"step": 3, "a": float("nan")}]
    many = [{"step": step, "a": float(step)} for step in range(1, 1001)]

    assert charts._points(rows, "a", 4) == [(0.25, 1.0), (0.5, 2.0)]
    thinned = charts._points(many, "a", 1000)
    assert len(thinned) <= 400
    assert thinned[-1] == (1.0, 1000.0)


# Tasks


def test_only_real_glue_is_called_glue() -> None:
    assert report.suite_name("sample", ["rte"]) == "sample tasks"
    assert report.suite_name("hub:nyu-mll/glue", ["rte"]) == "GLUE"
    assert report.suite_name("/data/glue", ["rte", "ax"]) == "GLUE"
    assert report.suite_name("tasks", ["rte", "mood"]) == "tasks, of which mood not of GLUE"
    assert report.suite_name("tasks", ["mood"]) == "own tasks"
    assert "GLUE" not in page_of(task_row(), suite_name=report.suite_name("sample", ["rte"]))


def test_the_task_table_gives_mean_deviation_margin_and_interval() -> None:
    page = page_of(task_row())

    scores = ["sst2", "accuracy", "3", "0.7500 ± 0.0100", "0.7400 to 0.7600", "0.7500", "0.7600", "0.5000"]
    scores += ["0.0003", "10"]
    margin = ["sst2", "accuracy", "0.7500 ± 0.0100", "0.6250 ± 0.0200", "+0.1250", "+0.0625 to +0.1875"]
    assert Reader(page).words["td"] == [*scores, *margin]


def test_what_flatters_and_what_is_missing_is_said_on_the_page_and_in_the_terminal() -> None:
    scores = scores_of(
        task_row(),
        averages={"electra": {"value": 0.75, "tasks": ["sst2", "rte"], "is_complete": False}},
        failures=[{"task": "rte", "seed": 1, "untrained": True, "rate": None, "reason": "no memory"}],
        optimism=["best epoch on dev"],
        submission={"files": ["RTE.tsv"], "missing": ["CoLA.tsv", "AX.tsv"], "seeds": {"rte": 0}},
    )
    page = report.glue_page(scores, "GLUE", run="EvaluateFlow/1")
    table = closing_table(auxiliary=None, scores=scores)
    for words in ("failed and left out: rte seed 1 untrained (no memory)", "the scores flatter: best epoch on dev"):
        assert words in table
        assert words[1:] in page
    assert "submission.zip, 1 of 11 files; for the leaderboard it lacks CoLA.tsv, AX.tsv" in table
    assert re.search(r"average, as electra's +0\.750 +over 2 tasks, incomplete", table)


def test_seeds_that_collapsed_to_one_class_are_counted_by_start_on_the_page_and_in_the_terminal() -> None:
    row = task_row(pretrained=statistics(0.5, num_degenerate=2), untrained=statistics(0.5, num_degenerate=1))

    for text in (page_of(row), closing_table(auxiliary=None, scores=scores_of(row))):
        assert "ne class only is predicted by 2 of 3 fine-tunings of sst2, 1 of 3 untrained" in text


def test_a_page_of_scores_names_the_model_the_run_and_how_it_was_fine_tuned() -> None:
    page = page_of(task_row())

    assert Reader(page).words["h1"] == ["models:/fast-electra@champion"]
    for words in ("Scored by EvaluateFlow/1", "Recipe electra; seeds 0 to 2."):
        assert words in page


def test_without_a_baseline_nothing_speaks_of_one() -> None:
    row = task_row(untrained=None, is_outside_noise=None)

    for text in (page_of(row), closing_table(auxiliary=None, scores=scores_of(row))):
        assert "untrained" not in text


def test_broken_rows_that_were_left_out_are_counted() -> None:
    assert "broken rows left out: 3 of qqp" in closing_table(
        auxiliary=None, scores=scores_of(task_row("qqp"), skipped={"qqp": 3})
    )


def test_a_champion_that_differs_by_the_same_at_every_seed_has_no_interval_beside_it() -> None:
    values = {"0": 0.55, "1": 0.75, "2": 0.95}
    row = task_row(pretrained={**statistics(0.75), "values": values}, untrained=None)
    rival = {"name": "champion, version 1", "scores": {"sst2": {0: 0.5, 1: 0.7, 2: 0.9}}}
    cells = Reader(report.final_page({"glue": {"scores": scores_of(row), "suite_name": "GLUE", "rival": rival}}))

    assert cells.words["td"][-2:] == ["+0.0500", "–"]


def test_a_task_with_one_seed_and_no_baseline_has_dashes() -> None:
    nothing = dict.fromkeys(("untrained", "margin", "margin_low", "margin_high", "is_outside_noise"))
    page = page_of(task_row(pretrained=statistics(0.75, None), **nothing))
    recipe = ["0.0003", "10"]

    assert Reader(page).words["td"] == ["sst2", "accuracy", "3", "0.7500", "–", "0.7500", "0.7500", "0.5000", *recipe]


def test_bars_are_drawn_for_the_main_metrics_alone() -> None:
    page = page_of(task_row("stsb", "spearman"), task_row("stsb", "pearson", is_main=False))

    chart = page[page.index("<svg") : page.index("</svg>")]
    assert ">spearman<" in chart
    assert ">pearson<" not in chart


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (1_234_567, "1,234,567"),
        (1200000.0, "1,200,000"),
        (0.123456, "0.1235"),
        (0.0, "0.0000"),
        (-0.0, "0.0000"),
        (-1e-12, "0.0000"),
        (-1234, "-1,234"),
        (1.7e-17, "0.0000"),
        (3.14e-5, "3.14e-05"),
        (12.345, "12.35"),
        (float("nan"), "nan"),
        ("words", "words"),
    ],
)
def test_numbers_are_short_and_readable(value: Any, text: str) -> None:
    assert page.number(value) == text


def test_nothing_is_a_negative_zero() -> None:
    assert page.number(-0.0, signed=True) == "+0.0000"
    assert page.spread({"mean": -0.0, "std": 0.0}) == "0.0000 ± 0.0000"
    assert page.interval(-0.5, -0.0) == "-0.5000 to 0.0000"
