"""The main job: raw text to a registered, scored, traceable text encoder, by Fast-ELECTRA.

python flows/pretrain_flow.py run --preset demo
python flows/pretrain_flow.py run --preset laptop --corpus my_text/ --glue glue_data/ --tasks cola,sst2 --seeds 3
python flows/pretrain_flow.py resume
"""

from metaflow import FlowSpec, card, catch, current, parallel, retry, step
from metaflow.cards import Markdown

import steps  # noqa: F401 -- asks Metaflow to ship the project's packages
from fast_electra_core.config import PretrainConfig
from links import link_run
from parameters import given_to, parameters_of
from profiles import on_profile, profile_config
from said import told


@on_profile(
    tokenize="tokenize", score_auxiliary="corrupt", corrupt="corrupt", pretrain="pretrain",
    pretrain_together="pretrain", finetune="finetune",
)  # fmt: skip
class PretrainFlow(parameters_of(PretrainConfig), FlowSpec):
    """Pre-train a text encoder by replaced token detection against a frozen auxiliary.

    1. start: check everything before anything costs, and say what it will; list the text; open the MLflow run
    2. tokenize, one task per shard of text
    3. score_auxiliary, one task per candidate; freeze_auxiliary chooses
    4. corrupt, one task per some ranges of steps; it does nothing with `--corruption online`
    5. pretrain, with checkpoints; or pretrain_together, on `--num_nodes` machines
    6. finetune on every (task, seed), in packs of about equal work
    7. register in MLflow, and a report
    """

    profile = profile_config()

    @step
    def start(self):
        """Resolve and check the whole config, fetch the candidates, list the text, open the MLflow run."""
        from steps import lifecycle, planning

        with told():
            self.plan = planning.begin_pretrain(given_to(self), flow=current.flow_name, run_id=current.run_id)
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

    @card(type="blank")
    @step
    def gather_tokens(self, inputs):
        """Count the text and see that it is enough."""
        from steps import cards, lifecycle

        self.plan = inputs[0].plan
        with told():
            self.text = lifecycle.gather_tokens(self.plan, [each.manifests for each in inputs])
            self.page = lifecycle.text_page(self.plan, self.text)
        current.card.append(Markdown(cards.as_card(self.page)))
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
        """Choose the auxiliary by the stated rule; from here on it does not change by a bit."""
        from steps import cards, lifecycle

        self.plan, self.text = inputs[0].plan, inputs[0].text
        with told():
            self.candidates = [each.scored for each in inputs]
            self.frozen, self.page = lifecycle.freeze_auxiliary(self.plan, self.text, self.candidates)
        current.card.append(Markdown(cards.as_card(self.page)))
        self.next(self.list_corruptions)

    @step
    def list_corruptions(self):
        """One task per some ranges of steps; one without steps with `--corruption online`."""
        from steps import lifecycle

        self.tasks_of_steps = lifecycle.list_corruptions(self.plan)
        self.next(self.corrupt, foreach="tasks_of_steps")

    @step
    def corrupt(self):
        """Draw the steps' replacements ahead of training, where no run has done so before."""
        from steps import lifecycle

        with told():
            self.drawn = lifecycle.corrupt(self.plan, self.text, self.frozen, self.input, index=self.index)
        self.next(self.gather_corruptions)

    @step
    def gather_corruptions(self, inputs):
        """How the text was corrupted, and at whose cost."""
        from steps import lifecycle

        self.merge_artifacts(inputs, include=["plan", "text", "candidates", "frozen"])
        with told():
            self.corrupted = lifecycle.gather_corruptions(
                self.plan, self.text, self.frozen, [each.drawn for each in inputs]
            )
        self.next(self.choose_machines)

    @step
    def choose_machines(self):
        """One machine trains, or several together."""
        self.machines = "one" if self.plan["config"]["num_nodes"] == 1 else "several"
        self.next({"one": self.pretrain, "several": self.form_group}, condition="machines")

    @card(type="blank")
    @step
    def pretrain(self):
        """Train the main model; resumes from its newest checkpoint."""
        from steps import cards, launch

        with told():
            link_run(self.plan)
            self.trained, self.page = launch.pretrain(self.plan, self.text, self.frozen, self.corrupted)
        current.card.append(Markdown(cards.as_card(self.page)))
        self.next(self.list_packs)

    @step
    def form_group(self):
        """One task per machine, all at once."""
        self.next(self.pretrain_together, num_parallel=self.plan["config"]["num_nodes"])

    @parallel
    @step
    def pretrain_together(self):
        """As pretrain, on this machine and the others; one of them has the result."""
        from steps import launch

        node, attempt = current.parallel, f"{current.run_id}-{current.retry_count}"
        machine = launch.Machine(node.node_index, node.num_nodes, node.main_ip, attempt)
        with told():
            self.trained, self.page = launch.pretrain(
                self.plan, self.text, self.frozen, self.corrupted, machine=machine
            )
        self.next(self.gather_machines)

    @card(type="blank")
    @step
    def gather_machines(self, inputs):
        """The result, from the machine that has it."""
        from steps import cards

        self.merge_artifacts(inputs, include=["plan", "text", "candidates", "frozen"])
        self.trained, self.page = next((each.trained, each.page) for each in inputs if each.trained)
        current.card.append(Markdown(cards.as_card(self.page)))
        self.next(self.list_packs)

    @step
    def list_packs(self):
        """One task per pack of fine-tunings."""
        from steps import scoring

        self.packs = scoring.list_packs(self.plan)
        self.next(self.finetune, foreach="packs")

    @catch(var="lost")
    @retry(times=1, minutes_between_retries=0)
    @step
    def finetune(self):
        """Fine-tune on some tasks and seeds; what was done before a machine was lost is not done again."""
        from steps import scoring

        with told():
            self.results = scoring.finetune(self.plan, self.trained["key"], self.input, index=self.index)
        self.next(self.gather_scores)

    @card(type="blank")
    @step
    def gather_scores(self, inputs):
        """All scores as one table."""
        from steps import cards, scoring

        self.merge_artifacts(inputs, include=["plan", "text", "candidates", "frozen", "trained"])
        with told():
            results = [result for each in inputs if not each.lost for result in each.results]
            lost = [each.lost for each in inputs if each.lost]
            self.scores, self.page = scoring.gather_scores(self.plan, results, lost)
        current.card.append(Markdown(cards.as_card(self.page)))
        self.next(self.register)

    @step
    def register(self):
        """Register the model with its lineage, then the model of each task; gates, and the champion's rule."""
        from steps import delivery, scoring

        with told():
            version = delivery.register_discriminator(
                self.plan, self.text, self.frozen, self.trained, self.scores, pathspec=current.pathspec
            )
            encoder = {**version, "digest": self.trained["digest"]}
            self.task_versions = scoring.register_task_models(
                self.plan, self.scores, encoder, pathspec=current.pathspec
            )
            self.version = delivery.promote(self.plan, self.scores, version)
        self.next(self.end)

    @card(type="blank")
    @step
    def end(self):
        """The report: curves, tables, cost."""
        from steps import cards, delivery

        with told():
            table, self.page = delivery.close_pretrain(
                self.plan,
                self.text,
                self.candidates,
                self.frozen,
                self.trained,
                self.scores,
                self.version,
                task_models=self.task_versions,
            )
            link_run(self.plan)
            print(table)
        current.card.append(Markdown(cards.as_card(self.page)))


if __name__ == "__main__":
    PretrainFlow()
