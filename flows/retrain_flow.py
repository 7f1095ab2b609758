"""Scheduled retraining: is there new text? Then continue the champion on it, score it, and promote it or not.

python flows/retrain_flow.py run --preset laptop --corpus my_text/ --corpus_licence "CC BY-SA 4.0" \\
    --glue glue_data/ --tasks cola,sst2 --seeds 5
fast-electra deploy flows/retrain_flow.py --to argo-workflows --profile infra/profiles/kubernetes.json \\
    --defaults weekly.json --config_value deployment '{"cron": "0 3 * * 1"}'
fast-electra deploy flows/retrain_flow.py --to step-functions --defaults weekly.json
"""

from metaflow import FlowSpec, card, catch, current, retry, step
from metaflow.cards import Markdown

import steps  # noqa: F401 -- asks Metaflow to ship the project's packages
from deployment import ON_STEP_FUNCTIONS, deployment_config, on_deployment
from fast_electra_core.retraining import RetrainConfig
from links import link_run
from parameters import given_to, parameters_of
from profiles import on_profile, profile_config
from said import told
from steps.retrain_hook import tell_failure, tell_success  # noqa: F401 -- Argo looks for them here


@on_deployment(hooks="steps.retrain_hook", on_success="tell_success", on_error="tell_failure")
@on_profile(tokenize="tokenize", score_auxiliary="corrupt", pretrain="pretrain", finetune="finetune")
class RetrainFlow(parameters_of(RetrainConfig), FlowSpec):
    """Look for text that the champion has not seen; if there is enough, train on, score, and promote what is better.

    1. start: take the lock, compare the text by content, check everything; where nothing is new the run is over
    2. tokenize the new text, one task per shard
    3. score_auxiliary on new and old text; freeze_auxiliary keeps the champion's, or chooses another
    4. pretrain: from the champion's weights, new text mixed with old
    5. finetune on every (task, seed), in packs of about equal work
    6. register in MLflow, and a page on what happened and why
    """

    profile = profile_config()
    deployment = deployment_config()

    @step
    def start(self):
        """Take the lock, look what is new, resolve and check the whole config, open the MLflow run."""
        from steps import retrain

        with told():
            self.plan = retrain.begin_retrain(
                given_to(self), flow=current.flow_name, run_id=current.run_id, resumes=current.origin_run_id
            )
            link_run(self.plan)
        self.way = "nothing" if self.plan["way"] == "nothing" else "train"
        self.made = None
        self.next(self.choose)

    # AWS Step Functions knows no choice: it goes through every step, and those find nothing to do.
    if ON_STEP_FUNCTIONS:

        @step
        def choose(self):
            """On to the next step."""
            self.next(self.list_texts)

    else:

        @step
        def choose(self):
            """Where nothing is new, the end."""
            self.next({"nothing": self.end, "train": self.list_texts}, condition="way")

    @step
    def list_texts(self):
        """One task per shard of new text."""
        from steps import lifecycle, retrain

        with told():
            self.tokenizings = retrain.part(lifecycle.list_tokenizings, self.plan) or [[]]
        self.next(self.tokenize, foreach="tokenizings")

    @step
    def tokenize(self):
        """Text to packed token shards."""
        from steps import lifecycle, retrain

        with told():
            self.manifests = retrain.part(lifecycle.tokenize, self.plan, self.input)
        self.next(self.gather_tokens)

    @step
    def gather_tokens(self, inputs):
        """Count the text and see that it is enough."""
        from steps import lifecycle, retrain

        self.plan = inputs[0].plan
        with told():
            self.text = retrain.part(lifecycle.gather_tokens, self.plan, [each.manifests for each in inputs])
        self.next(self.list_candidates)

    @step
    def list_candidates(self):
        """One task per candidate for the auxiliary."""
        self.candidates = self.plan.get("candidates") or [None]
        self.next(self.score_auxiliary, foreach="candidates")

    @step
    def score_auxiliary(self):
        """Score a candidate on held-out text, new and old, and price it."""
        from steps import retrain, retrain_auxiliary

        with told():
            self.scored = retrain.part(retrain_auxiliary.score, self.plan, self.text, self.input, index=self.index)
        self.next(self.freeze_auxiliary)

    @card(type="blank")
    @step
    def freeze_auxiliary(self, inputs):
        """Keep the champion's auxiliary, or choose another; from here on it does not change by a bit."""
        from steps import cards, retrain

        self.plan, self.text = inputs[0].plan, inputs[0].text
        with told():
            scored = [each.scored for each in inputs]
            chosen = retrain.part(retrain.freeze_auxiliary, self.plan, self.text, scored)
            self.candidates, self.frozen, page = chosen or (None, None, "")
        current.card.append(Markdown(cards.as_card(page)))
        self.next(self.pretrain)

    @card(type="blank")
    @step
    def pretrain(self):
        """Train the main model on; resumes from its newest checkpoint."""
        from steps import cards, retrain, scoring

        with told():
            trained = retrain.part(retrain.pretrain, self.plan, self.text, self.frozen)
            self.trained, page = trained or (None, "")
            self.packs = retrain.part(scoring.list_packs, self.plan) or [[]]
        current.card.append(Markdown(cards.as_card(page)))
        self.next(self.finetune, foreach="packs")

    @catch(var="lost")
    @retry(times=1, minutes_between_retries=0)
    @step
    def finetune(self):
        """Fine-tune on some tasks and seeds; what was done before a machine was lost is not done again."""
        from steps import retrain, scoring

        with told():
            key = self.trained and self.trained["key"]
            self.results = retrain.part(scoring.finetune, self.plan, key, self.input, index=self.index) or []
        self.next(self.gather_scores)

    @card(type="blank")
    @step
    def gather_scores(self, inputs):
        """All scores as one table."""
        from steps import cards, retrain, scoring

        self.merge_artifacts(inputs, include=["plan", "text", "candidates", "frozen", "trained"])
        with told():
            results = [result for each in inputs if not each.lost for result in each.results]
            lost = [each.lost for each in inputs if each.lost]
            gathered = retrain.part(scoring.gather_scores, self.plan, results, lost)
            self.scores, page = gathered or (None, "")
        current.card.append(Markdown(cards.as_card(page)))
        self.next(self.register)

    @step
    def register(self):
        """Register the model with its lineage, then the model of each task; gates, and the champion's rule."""
        from steps import retrain

        made = {name: getattr(self, name) for name in ("text", "candidates", "frozen", "trained", "scores")}
        with told():
            self.made = retrain.part(retrain.register, self.plan, made, pathspec=current.pathspec)
        self.next(self.end)

    @card(type="blank")
    @step
    def end(self):
        """The page: what happened, and why."""
        from steps import cards, retrain

        with told():
            self.outcome, words, page = retrain.close(self.plan, self.made)
            link_run(self.plan)
            print(words)
        current.card.append(Markdown(cards.as_card(page)))


if __name__ == "__main__":
    RetrainFlow()
