"""Score any encoder on GLUE or on tasks of your own: the same hand for ours and for its rivals.

python flows/evaluate_flow.py run --model models:/fast-electra@champion --glue glue_data/
python flows/evaluate_flow.py run --model bert_folder/ --glue my_tasks/ --tasks rte,tickets --seeds 3
"""

from metaflow import FlowSpec, card, catch, current, retry, step
from metaflow.cards import Markdown

import steps  # noqa: F401 -- asks Metaflow to ship the project's packages
from fast_electra_core.config import EvaluateConfig
from links import link_run
from parameters import given_to, parameters_of
from profiles import on_profile, profile_config
from said import told


@on_profile(finetune="finetune")
class EvaluateFlow(parameters_of(EvaluateConfig), FlowSpec):
    """Fine-tune an encoder on every (task, seed) and report.

    1. start: fetch and check model and tasks; open the MLflow run
    2. finetune, in packs of about equal work
    3. a table, and the files for the leaderboard
    """

    profile = profile_config()

    @step
    def start(self):
        """Resolve and check the whole config, fetch the model, read the tasks, open the MLflow run."""
        from steps import planning, scoring

        with told():
            self.plan = planning.begin_evaluate(given_to(self), flow=current.flow_name, run_id=current.run_id)
            link_run(self.plan)
        self.packs = scoring.list_packs(self.plan)
        self.next(self.finetune, foreach="packs")

    @catch(var="lost")
    @retry(times=1, minutes_between_retries=0)
    @step
    def finetune(self):
        """Fine-tune on some tasks and seeds; what was done before a machine was lost is not done again."""
        from steps import scoring

        with told():
            self.results = scoring.finetune(self.plan, self.plan["model"]["key"], self.input, index=self.index)
        self.next(self.gather_scores)

    @card(type="blank")
    @step
    def gather_scores(self, inputs):
        """All scores as one table."""
        from steps import cards, scoring

        self.merge_artifacts(inputs, include=["plan"])
        with told():
            results = [result for each in inputs if not each.lost for result in each.results]
            lost = [each.lost for each in inputs if each.lost]
            self.scores, self.page = scoring.gather_scores(self.plan, results, lost)
            self.task_versions = scoring.register_task_models(self.plan, self.scores, pathspec=current.pathspec)
        current.card.append(Markdown(cards.as_card(self.page)))
        self.next(self.end)

    @step
    def end(self):
        """The closing table."""
        from steps import scoring

        with told():
            link_run(self.plan)
            print(scoring.close_evaluate(self.plan, self.scores, self.task_versions))


if __name__ == "__main__":
    EvaluateFlow()
