"""Make an auxiliary: train a masked language model on text and register it in MLflow.

python flows/auxiliary_flow.py run --preset demo
python flows/auxiliary_flow.py run --preset laptop --corpus my_text/ --vocab_size 16384
"""

from metaflow import FlowSpec, Parameter, card, current, step
from metaflow.cards import Markdown

import steps  # noqa: F401 -- asks Metaflow to ship the project's packages


class AuxiliaryFlow(FlowSpec):
    """Train the masked language model that later serves, frozen, as the auxiliary of Fast-ELECTRA.

    1. start: check everything, list the text, get a tokenizer, open the MLflow run
    2. tokenize, one task per shard of text
    3. train
    4. register: `fast-electra-auxiliary`, alias `champion` if it beats the unigram model
    """

    preset = Parameter("preset", type=str, help="tiny, demo, laptop, small, base, large; the rest override it [demo]")
    corpus = Parameter("corpus", type=str, help="pydocs, a file, folder, glob, s3:// prefix or hub:NAME[/CONFIG]")
    text_field = Parameter("text_field", type=str, help="field of .jsonl, .parquet and hub rows with the text")
    on_bad_text = Parameter("on_bad_text", type=str, help="bytes or lines that cannot be read: error, replace, skip")
    heldout_fraction = Parameter("heldout_fraction", type=float, help="share of the text kept for scoring, (0, 0.5]")
    shard_megabytes = Parameter("shard_megabytes", type=float, help="text per tokenizing task")
    tokenizer = Parameter("tokenizer", type=str, help="train, a vocab.txt, a folder with a tokenizer")
    vocab_size = Parameter("vocab_size", type=int, help="entries of a trained vocabulary, >= 256")
    sequence_length = Parameter("sequence_length", type=int, help="tokens per sequence, >= 8")
    architecture = Parameter("architecture", type=str, help="electra or modernbert")
    embedding_init = Parameter("embedding_init", type=str, help="random, or cooccurrence: past the plateau at once")
    num_layers = Parameter("num_layers", type=int, help="transformer layers")
    hidden_size = Parameter("hidden_size", type=int, help="width, a multiple of num_heads")
    embedding_size = Parameter("embedding_size", type=int, help="width of the embedding table")
    num_heads = Parameter("num_heads", type=int, help="attention heads")
    intermediate_size = Parameter("intermediate_size", type=int, help="width of the feed-forward layer")
    dropout = Parameter("dropout", type=float, help="[0, 1)")
    mask_fraction = Parameter("mask_fraction", type=float, help="share of the tokens that are masked, (0, 1)")
    num_steps = Parameter("num_steps", type=int, help="optimiser steps")
    batch_size = Parameter("batch_size", type=int, help="sequences per step")
    micro_batch_size = Parameter("micro_batch_size", type=int, help="sequences per forward pass; divides batch_size")
    learning_rate = Parameter("learning_rate", type=float, help="peak learning rate")
    warmup_fraction = Parameter("warmup_fraction", type=float, help="share of the steps with a rising rate, [0, 1)")
    weight_decay = Parameter("weight_decay", type=float, help="AdamW's, on matrices")
    max_gradient_norm = Parameter("max_gradient_norm", type=float, help="gradients are clipped to this norm")
    precision = Parameter("precision", type=str, help="auto, fp32, bf16")
    seed = Parameter("seed", type=int, help="of initialisation, order, masks")
    checkpoint_every_steps = Parameter("checkpoint_every_steps", type=int, help="steps between checkpoints and scores")
    log_every_steps = Parameter("log_every_steps", type=int, help="steps that a row of metrics is averaged over")
    store = Parameter("store", type=str, help="folder or s3:// prefix for shards, checkpoints and models")
    tracking_uri = Parameter("tracking_uri", type=str, help="MLflow server or database [sqlite:///mlflow.db]")
    experiment = Parameter("experiment", type=str, help="MLflow experiment [fast-electra]")

    @step
    def start(self):
        """Resolve and check the whole config, list the text, open the MLflow run."""
        from steps import console, lifecycle, planning

        with console.console():
            given = {name: getattr(self, name) for name in current.parameter_names}
            self.plan = planning.begin_auxiliary(given, flow=current.flow_name, run_id=current.run_id)
        self.tokenizings = lifecycle.list_tokenizings(self.plan)
        self.next(self.tokenize, foreach="tokenizings")

    @step
    def tokenize(self):
        """Text to packed token shards."""
        from steps import console, lifecycle

        with console.console():
            self.manifests = lifecycle.tokenize(self.plan, self.input)
        self.next(self.train)

    @card(type="blank")
    @step
    def train(self, inputs):
        """Train the masked language model; resumes from its newest checkpoint."""
        from steps import cards, console, lifecycle

        self.plan = inputs[0].plan
        with console.console():
            self.text = lifecycle.gather_tokens(self.plan, [each.manifests for each in inputs])
            self.trained, self.page = lifecycle.train_auxiliary(self.plan, self.text)
        current.card.append(Markdown(cards.as_card(self.page)))
        self.next(self.register)

    @step
    def register(self):
        """Register the model with its lineage."""
        from steps import console, lifecycle

        with console.console():
            self.version = lifecycle.register_auxiliary(self.plan, self.text, self.trained, pathspec=current.pathspec)
        self.next(self.end)

    @step
    def end(self):
        """Say what was made."""
        from steps import console, lifecycle

        with console.console():
            print(lifecycle.close_auxiliary(self.plan, self.trained, self.version))


if __name__ == "__main__":
    AuxiliaryFlow()
