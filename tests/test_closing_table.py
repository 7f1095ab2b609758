"""Claims about steps/closing_table.py: what ends a flow in the terminal."""

import re

from toy_costs import cost_of
from toy_scores import HELDOUT, candidate, scores_of, task_row

from steps.closing_table import closing_table
from steps.trace import how_to_browse


def test_the_closing_table_says_each_score_beside_its_baseline() -> None:
    table = closing_table(
        auxiliary=candidate(),
        heldout=HELDOUT,
        scores=scores_of(task_row(), task_row("cola", "matthews_correlation", is_outside_noise=False, majority=0.0)),
        suite_name="sample tasks",
        cost=cost_of(),
        registered={"name": "fast-electra", "version": "3", "aliases": ["champion", "challenger"]},
        task_models=[{"name": "fast-electra-sst2", "version": "3"}, {"name": "fast-electra-cola", "version": "2"}],
    )

    lines = [re.sub(" {2,}", "  ", line.strip()) for line in table.splitlines()]
    assert lines[1:-5] == [
        "auxiliary: held-out masked loss  4.4100  unigram 6.6200",
        "auxiliary: masked accuracy  0.2510  unigram 0.0460",
        "main model: held-out RTD loss  0.2100  majority class 0.3400",
        "main model: AUC, replaced tokens  0.8700  chance 0.5",
        "main model: recall, replaced  0.6000",
        "main model: precision, replaced  0.7200",
        "sst2: accuracy  0.750 ± 0.010 *  untrained 0.625 ± 0.020, majority 0.500",
        "cola: matthews  0.750 ± 0.010  untrained 0.625 ± 0.020, majority 0.000",
        "cost: FLOPs of this run  1.400e+09  1.40e+06 per token; auxiliary 2.000e+08, 14 %",
        "cost: FLOPs, auxiliary charged  1.650e+09  its training 1.000e+09, shared by 4 runs",
        "cost: FLOPs of joint ELECTRA  1.800e+09  this run 22 % less; charged 8 % less",
        "cost: time in training steps  14.0 s  71 tokens/s; 1.00e+08 FLOP/s, 62 % of peak",
        "cost: time of them for batches  0.5 s",
        "cost: time beside them  6.0 s  scores 3.0 s, checkpoints 1.0 s, start-up 2.0 s",
        "cost: memory, measured  5.0 MB  planned 4.4 MB",
        "registered  fast-electra 3  @champion @challenger",
    ]
    assert lines[-2] == "task models: fast-electra-sst2 3, fast-electra-cola 2"
    assert lines[-3] == "models:/fast-electra@champion: recipe electra; seeds 0 to 2"
    assert lines[-1] == "browse runs and lineage: make ui"
    assert "sample tasks: mean ± std over seeds" in lines[-4]
    assert "GLUE" not in table


def test_the_closing_table_of_a_main_model_that_fills_masks_speaks_of_no_detection() -> None:
    heldout = {"heldout_masked_loss": 3.25, "heldout_unigram_loss": 6.5, "heldout_masked_accuracy": 0.375}
    table = closing_table(auxiliary=None, heldout=heldout | {"heldout_unigram_accuracy": 0.0625})

    lines = [re.sub(" {2,}", "  ", line.strip()) for line in table.splitlines()]
    assert lines[1:-2] == [
        "main model: held-out masked loss  3.2500  unigram 6.5000",
        "main model: masked accuracy  0.3750  unigram 0.0625",
    ]


def test_the_closing_table_of_an_auxiliary_leaves_the_rest_out() -> None:
    reason = "no alias: held-out masked loss 6.7500 is not below the unigram's 6.5000"
    registered = {"name": "fast-electra-auxiliary", "version": "1", "aliases": [], "reason": reason}
    table = closing_table(auxiliary=candidate(), registered=registered)

    assert "main model" not in table
    assert "mean ± std" not in table
    assert f"\n  {reason}\n" in table


def test_the_closing_table_is_at_most_100_columns_wide() -> None:
    registered = {"name": "n" * 60, "version": "3", "aliases": ["a" * 60]}
    table = closing_table(auxiliary=None, scores=scores_of(task_row()), registered=registered)

    assert max(len(line) for line in table.splitlines()) == 100


def test_a_task_with_a_very_long_name_hides_no_score() -> None:
    table = closing_table(auxiliary=None, scores=scores_of(task_row("t" * 120)))

    assert re.search(r"  t+…t+: accuracy +0\.750 ± 0\.010 \*  untrained 0\.625 ± 0\.020, majority 0\.500\n", table)


def test_the_last_line_says_where_the_run_is_to_be_seen() -> None:
    plan = {
        "mlflow_url": "http://mlflow:5000/#/experiments/1/runs/ab",
        "config": {"tracking_uri": "http://mlflow:5000"},
    }
    assert closing_table(auxiliary=None, browse=how_to_browse(plan)).endswith(f": {plan['mlflow_url']}")
    plan["config"] = {"tracking_uri": "sqlite:///mlflow.db"}
    assert closing_table(auxiliary=None, browse=how_to_browse(plan)).endswith(": make ui")


def test_a_command_in_a_remark_is_not_broken_within_a_word() -> None:
    """So that it can be pasted back together."""
    reason = f"no alias: gate licence: {'x' * 65}: fast-electra promote models:/fast-electra/2"
    table = closing_table(
        auxiliary=None, registered={"name": "fast-electra", "version": "2", "aliases": [], "reason": reason}
    )
    assert reason in " ".join(table.split())


def test_the_address_of_a_run_is_not_broken() -> None:
    """So that it can be clicked on, however long a server's name is."""
    browse = (
        f"browse runs and lineage: http://127.0.0.1:5000/#/experiments/1/runs/{'f' * 32}?workflowType=machine_learning"
    )
    table = closing_table(auxiliary=None, browse=browse)
    assert browse.rpartition(" ")[2] in table.split()
