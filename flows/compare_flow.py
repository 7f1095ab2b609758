"""The paper's questions as an experiment: arms that differ in one thing, over seeds, scored alike, on one page.

python flows/compare_flow.py run --preset demo --comparison paper_main --pretrain_seeds 3
python flows/compare_flow.py run --preset laptop --corpus my_text/ --glue glue_data/ --comparison stability
python flows/compare_flow.py run --arms "electra; fast_electra; late: temperature_decay=0.5"
python flows/compare_flow.py resume
"""

from metaflow import FlowSpec, card, current, retry, step
from metaflow.cards import Markdown

import steps  # noqa: F401 -- asks Metaflow to ship the project's packages
from fast_electra_core.arms import CompareConfig
from links import link_run
from parameters import given_to, parameters_of
from profiles import on_profile, profile_config
from said import told


@on_profile(tokenize="tokenize", score_auxiliary="corrupt", run_arms="pretrain")
class CompareFlow(parameters_of(CompareConfig), FlowSpec):
    """Pre-train and score several arms on the same text, in the same order, with the same positions selected.

    1. start: check everything, every arm too, before anything costs; open the MLflow run
    2. tokenize, one task per shard of text
    3. score_auxiliary, one task per candidate; freeze_auxiliary chooses
    4. run_arms, one task per arm and seed: pre-training and its fine-tunings
    5. gather: statistics, paired tests, costs
    6. a page for readers who know no code
    """

    profile = profile_config()

    @step
    def start(self):
        """Resolve and check the whole config and every arm, list the text, open the MLflow run."""
        from steps import lifecycle, planning

        with told():
            self.plan = planning.begin_compare(given_to(self), flow=current.flow_name, run_id=current.run_id)
            link_run(self.plan)
        self.tokenizings = lifecycle.list_tokenizings(self.plan)
        self.next(self.tokenize, foreach="tokenizings")

    @step
    def tokenize(self):
        """Text to packed token shards."""
        from steps import lifecycle

        with told():
            self.manifests = lifecycle.tokenize(self.plan, self.input)
        self.next(self.gather_tokens)

    @step
    def gather_tokens(self, inputs):
        """Count the text and see that it is enough."""
        from steps import lifecycle

        self.plan = inputs[0].plan
        with told():
            self.text = lifecycle.gather_tokens(self.plan, [each.manifests for each in inputs])
        self.next(self.list_candidates)

    @step
    def list_candidates(self):
        """One task per candidate for the auxiliary."""
        self.candidates = self.plan["candidates"]
        self.next(self.score_auxiliary, foreach="candidates")

    @step
    def score_auxiliary(self):
        """Score a candidate on held-out text and price it."""
        from steps import lifecycle

        with told():
            self.scored = lifecycle.score_candidate(self.plan, self.text, self.input, index=self.index)
        self.next(self.freeze_auxiliary)

    @card(type="blank")
    @step
    def freeze_auxiliary(self, inputs):
        """Choose the auxiliary of the arms that name none."""
        from steps import cards, lifecycle

        self.plan, self.text = inputs[0].plan, inputs[0].text
        with told():
            self.scored = [each.scored for each in inputs]
            self.frozen, page = lifecycle.freeze_auxiliary(self.plan, self.text, self.scored)
        current.card.append(Markdown(cards.as_card(page)))
        self.next(self.list_runs)

    @step
    def list_runs(self):
        """One task per arm and seed, as far as Metaflow allows so many tasks."""
        from steps import compare

        with told():
            self.runs = compare.list_runs(self.plan, self.scored, self.frozen)
        self.next(self.run_arms, foreach="runs")

    @retry(times=1, minutes_between_retries=0)
    @step
    def run_arms(self):
        """Pre-train and fine-tune; goes on where it was cut off."""
        from steps import compare

        with told():
            self.results = compare.run_arms(self.plan, self.text, self.input, index=self.index)
        self.next(self.gather)

    @card(type="blank")
    @step
    def gather(self, inputs):
        """All arms as one result."""
        from steps import cards, compare

        self.plan = inputs[0].plan
        with told():
            link_run(self.plan)
            results = [result for each in inputs for result in each.results]
            self.found, page, self.table = compare.gather(self.plan, results)
        current.card.append(Markdown(cards.as_card(page)))
        self.next(self.end)

    @step
    def end(self):
        """The table."""
        print(self.table)


if __name__ == "__main__":
    CompareFlow()
