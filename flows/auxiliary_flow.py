"""Make an auxiliary: train a masked language model on text and register it in MLflow.

python flows/auxiliary_flow.py run --preset demo
python flows/auxiliary_flow.py run --preset laptop --corpus my_text/ --vocab_size 16384
"""

from metaflow import FlowSpec, card, current, step
from metaflow.cards import Markdown

import steps  # noqa: F401 -- asks Metaflow to ship the project's packages
from fast_electra_core.config import AuxiliaryConfig
from links import link_run
from parameters import given_to, parameters_of
from profiles import on_profile, profile_config
from said import told


@on_profile(tokenize="tokenize", train="pretrain")
class AuxiliaryFlow(parameters_of(AuxiliaryConfig), FlowSpec):
    """Train the masked language model that later serves, frozen, as the auxiliary of Fast-ELECTRA.

    1. start: check everything, list the text, get a tokenizer, open the MLflow run
    2. tokenize, one task per shard of text
    3. train
    4. register: `fast-electra-auxiliary`, alias `champion` if it beats the unigram model
    """

    profile = profile_config()

    @step
    def start(self):
        """Resolve and check the whole config, list the text, open the MLflow run."""
        from steps import lifecycle, planning

        with told():
            self.plan = planning.begin_auxiliary(given_to(self), flow=current.flow_name, run_id=current.run_id)
            link_run(self.plan)
        self.tokenizings = lifecycle.list_tokenizings(self.plan)
        self.next(self.tokenize, foreach="tokenizings")

    @step
    def tokenize(self):
        """Text to packed token shards."""
        from steps import lifecycle

        with told():
            self.manifests = lifecycle.tokenize(self.plan, self.input)
        self.next(self.train)

    @card(type="blank")
    @step
    def train(self, inputs):
        """Train the masked language model; resumes from its newest checkpoint."""
        from steps import cards, launch, lifecycle

        self.plan = inputs[0].plan
        with told():
            link_run(self.plan)
            self.text = lifecycle.gather_tokens(self.plan, [each.manifests for each in inputs])
            self.trained, self.page = launch.train_auxiliary(self.plan, self.text)
        current.card.append(Markdown(cards.as_card(self.page)))
        self.next(self.register)

    @step
    def register(self):
        """Register the model with its lineage."""
        from steps import delivery

        with told():
            self.version = delivery.register_auxiliary(self.plan, self.text, self.trained, pathspec=current.pathspec)
        self.next(self.end)

    @step
    def end(self):
        """Say what was made."""
        from steps import delivery

        with told():
            link_run(self.plan)
            print(delivery.close_auxiliary(self.plan, self.trained, self.version))


if __name__ == "__main__":
    AuxiliaryFlow()
