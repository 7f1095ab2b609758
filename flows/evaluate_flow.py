"""Score any encoder on GLUE or on tasks of your own: the same hand for ours and for its rivals.

python flows/evaluate_flow.py run --model models:/fast-electra@champion --glue glue_data/
python flows/evaluate_flow.py run --model bert_folder/ --glue my_tasks/ --tasks rte,tickets --seeds 3
"""

from metaflow import FlowSpec, Parameter, card, catch, current, retry, step
from metaflow.cards import Markdown

import steps  # noqa: F401 -- asks Metaflow to ship the project's packages


class EvaluateFlow(FlowSpec):
    """Fine-tune an encoder on every (task, seed) and report.

    1. start: fetch and check model and tasks; open the MLflow run
    2. finetune, in packs of about equal work
    3. a table, and the files for the leaderboard
    """

    preset = Parameter("preset", type=str, help="size of the model: tiny, demo, laptop, small, base, large [small]")
    model = Parameter("model", type=str, help="models:/NAME@alias, a folder, s3:// prefix or hub:NAME")
    on_bad_text = Parameter("on_bad_text", type=str, help="broken rows of task files: error or skip")
    glue = Parameter("glue", type=str, help="sample, a folder or s3:// prefix with a folder per task, hub:nyu-mll/glue")
    tasks = Parameter("tasks", type=str, help="of cola,sst2,mrpc,stsb,qqp,mnli,qnli,rte,wnli,ax, and the folder's own")
    seeds = Parameter("seeds", type=int, help="fine-tunings per task")
    untrained_baseline = Parameter(
        "untrained_baseline",
        type=bool,
        default=None,
        help="also fine-tune the same encoder without pre-training",
    )
    finetune_recipe = Parameter("finetune_recipe", type=str, help="electra or modernbert; the rest override it")
    finetune_learning_rate = Parameter("finetune_learning_rate", type=float, help="peak learning rate of fine-tuning")
    finetune_grid = Parameter(
        "finetune_grid", type=str, help="learning rates to choose from by the dev score: 1e-4,3e-4"
    )
    finetune_batch_size = Parameter("finetune_batch_size", type=int, help="examples per step of fine-tuning")
    finetune_epochs = Parameter("finetune_epochs", type=float, help="passes over a task's training set")
    finetune_max_length = Parameter("finetune_max_length", type=int, help="tokens per example, 8..512")
    finetune_max_examples = Parameter("finetune_max_examples", type=int, help="training examples used per task")
    layer_decay = Parameter("layer_decay", type=float, help="learning-rate factor per layer below the head, (0, 1]")
    best_epoch = Parameter("best_epoch", type=bool, default=None, help="score the best epoch on dev, not the last")
    mnli_transfer = Parameter("mnli_transfer", type=bool, default=None, help="start mrpc, stsb and rte from mnli")
    test_predictions = Parameter(
        "test_predictions", type=bool, default=None, help="also answer the test sets, as files for the leaderboard"
    )
    store = Parameter("store", type=str, help="folder or s3:// prefix for the model and what is tokenized")
    tracking_uri = Parameter("tracking_uri", type=str, help="MLflow server or database [sqlite:///mlflow.db]")
    experiment = Parameter("experiment", type=str, help="MLflow experiment [fast-electra]")

    @step
    def start(self):
        """Resolve and check the whole config, fetch the model, read the tasks, open the MLflow run."""
        from steps import console, planning, scoring

        with console.console():
            given = {name: getattr(self, name) for name in current.parameter_names}
            self.plan = planning.begin_evaluate(given, flow=current.flow_name, run_id=current.run_id)
        self.packs = scoring.list_packs(self.plan)
        self.next(self.finetune, foreach="packs")

    @catch(var="lost")
    @retry(times=1, minutes_between_retries=0)
    @step
    def finetune(self):
        """Fine-tune on some tasks and seeds; what was done before a machine was lost is not done again."""
        from steps import console, scoring

        with console.console():
            self.results = scoring.finetune(self.plan, self.plan["model"]["key"], self.input)
        self.next(self.gather_scores)

    @card(type="blank")
    @step
    def gather_scores(self, inputs):
        """All scores as one table."""
        from steps import cards, console, scoring

        self.merge_artifacts(inputs, include=["plan"])
        with console.console():
            results = [result for each in inputs if not each.lost for result in each.results]
            self.scores, self.page = scoring.gather_scores(self.plan, results)
        current.card.append(Markdown(cards.as_card(self.page)))
        self.next(self.end)

    @step
    def end(self):
        """The closing table."""
        from steps import console, scoring

        with console.console():
            print(scoring.close_evaluate(self.plan, self.scores))


if __name__ == "__main__":
    EvaluateFlow()
