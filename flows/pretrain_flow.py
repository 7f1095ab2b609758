"""The main job: raw text to a registered, scored, traceable text encoder, by Fast-ELECTRA.

python flows/pretrain_flow.py run --preset demo
python flows/pretrain_flow.py run --preset laptop --corpus my_text/ --glue glue_data/ --tasks cola,sst2 --seeds 3
python flows/pretrain_flow.py resume
"""

from metaflow import FlowSpec, Parameter, card, catch, current, retry, step
from metaflow.cards import Markdown

import steps  # noqa: F401 -- asks Metaflow to ship the project's packages


class PretrainFlow(FlowSpec):
    """Pre-train a text encoder by replaced token detection against a frozen auxiliary.

    1. start: check everything before anything costs; list the text; open the MLflow run
    2. tokenize, one task per shard of text
    3. score_auxiliary, one task per candidate; freeze_auxiliary chooses
    4. corrupt, one task per some ranges of steps; it does nothing with `--corruption online`
    5. pretrain, with checkpoints
    6. finetune on every (task, seed), in packs of about equal work
    7. register in MLflow, and a report
    """

    preset = Parameter("preset", type=str, help="tiny, demo, laptop, small, base, large; the rest override it [demo]")
    corpus = Parameter("corpus", type=str, help="pydocs, a file, folder, glob, s3:// prefix or hub:NAME[/CONFIG]")
    text_field = Parameter("text_field", type=str, help="field of .jsonl, .parquet and hub rows with the text")
    on_bad_text = Parameter("on_bad_text", type=str, help="bytes or lines that cannot be read: error, replace, skip")
    heldout_fraction = Parameter("heldout_fraction", type=float, help="share of the text kept for scoring, (0, 0.5]")
    shard_megabytes = Parameter("shard_megabytes", type=float, help="text per tokenizing task")
    sequence_length = Parameter("sequence_length", type=int, help="tokens per sequence, >= 8")
    method = Parameter("method", type=str, help="fast_electra, or electra: the joint baseline")
    corruption = Parameter("corruption", type=str, help="replacements are drawn online, or offline: ahead of training")
    num_nodes = Parameter("num_nodes", type=int, help="machines that train together; only 1 in this version")
    auxiliary = Parameter(
        "auxiliary",
        type=str,
        help="candidates A[,B...]: models:/NAME@alias, a folder, s3:// prefix or hub:NAME",
    )
    max_auxiliary_fraction = Parameter(
        "max_auxiliary_fraction",
        type=float,
        help="dearest auxiliary, as a share of the main model's forward FLOPs",
    )
    schedule = Parameter(
        "schedule",
        type=str,
        help="of the temperature: exponential, exponential_exact, linear, polynomial, cosine, step, constant",
    )
    temperature_start = Parameter("temperature_start", type=float, help="temperature at the beginning, > 0")
    temperature_decay = Parameter("temperature_decay", type=float, help="decay of the schedule, > 0")
    temperature_end = Parameter("temperature_end", type=float, help="temperature that it descends to, > 0")
    rtd_weight = Parameter("rtd_weight", type=float, help="weight of the replaced-token-detection loss")
    architecture = Parameter("architecture", type=str, help="electra or modernbert")
    warm_start = Parameter("warm_start", type=str, help="taken over from the auxiliary: none, embeddings, layers")
    num_layers = Parameter("num_layers", type=int, help="transformer layers")
    hidden_size = Parameter("hidden_size", type=int, help="width, a multiple of num_heads")
    embedding_size = Parameter("embedding_size", type=int, help="width of the embedding table")
    num_heads = Parameter("num_heads", type=int, help="attention heads")
    intermediate_size = Parameter("intermediate_size", type=int, help="width of the feed-forward layer")
    dropout = Parameter("dropout", type=float, help="[0, 1)")
    mask_fraction = Parameter("mask_fraction", type=float, help="share of the tokens chosen to be replaced, (0, 1)")
    num_steps = Parameter("num_steps", type=int, help="optimiser steps")
    batch_size = Parameter("batch_size", type=int, help="sequences per step")
    micro_batch_size = Parameter("micro_batch_size", type=int, help="sequences per forward pass; divides batch_size")
    learning_rate = Parameter("learning_rate", type=float, help="peak learning rate")
    warmup_fraction = Parameter("warmup_fraction", type=float, help="share of the steps with a rising rate, [0, 1)")
    weight_decay = Parameter("weight_decay", type=float, help="AdamW's, on matrices")
    max_gradient_norm = Parameter("max_gradient_norm", type=float, help="gradients are clipped to this norm")
    precision = Parameter("precision", type=str, help="auto, fp32, bf16")
    seed = Parameter("seed", type=int, help="of initialisation, order, masks and samples")
    checkpoint_every_steps = Parameter("checkpoint_every_steps", type=int, help="steps between checkpoints and scores")
    log_every_steps = Parameter("log_every_steps", type=int, help="steps that a row of metrics is averaged over")
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
    store = Parameter("store", type=str, help="folder or s3:// prefix for shards, checkpoints and models")
    tracking_uri = Parameter("tracking_uri", type=str, help="MLflow server or database [sqlite:///mlflow.db]")
    experiment = Parameter("experiment", type=str, help="MLflow experiment [fast-electra]")

    @step
    def start(self):
        """Resolve and check the whole config, fetch the candidates, list the text, open the MLflow run."""
        from steps import console, lifecycle, planning

        with console.console():
            given = {name: getattr(self, name) for name in current.parameter_names}
            self.plan = planning.begin_pretrain(given, flow=current.flow_name, run_id=current.run_id)
        self.tokenizings = lifecycle.list_tokenizings(self.plan)
        self.next(self.tokenize, foreach="tokenizings")

    @step
    def tokenize(self):
        """Text to packed token shards."""
        from steps import console, lifecycle

        with console.console():
            self.manifests = lifecycle.tokenize(self.plan, self.input)
        self.next(self.gather_tokens)

    @card(type="blank")
    @step
    def gather_tokens(self, inputs):
        """Count the text and see that it is enough."""
        from steps import cards, console, lifecycle

        self.plan = inputs[0].plan
        with console.console():
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
        from steps import console, lifecycle

        with console.console():
            self.scored = lifecycle.score_candidate(self.plan, self.text, self.input)
        self.next(self.freeze_auxiliary)

    @card(type="blank")
    @step
    def freeze_auxiliary(self, inputs):
        """Choose the auxiliary by the stated rule; from here on it does not change by a bit."""
        from steps import cards, console, lifecycle

        self.plan, self.text = inputs[0].plan, inputs[0].text
        with console.console():
            self.candidates = [each.scored for each in inputs]
            self.frozen, self.page = lifecycle.freeze_auxiliary(self.plan, self.candidates)
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
        from steps import console, lifecycle

        with console.console():
            self.drawn = lifecycle.corrupt(self.plan, self.text, self.frozen, self.input)
        self.next(self.gather_corruptions)

    @step
    def gather_corruptions(self, inputs):
        """How the text was corrupted, and at whose cost."""
        from steps import console, lifecycle

        self.merge_artifacts(inputs, include=["plan", "text", "candidates", "frozen"])
        with console.console():
            self.corrupted = lifecycle.gather_corruptions(
                self.plan, self.text, self.frozen, [each.drawn for each in inputs]
            )
        self.next(self.pretrain)

    @card(type="blank")
    @step
    def pretrain(self):
        """Train the main model; resumes from its newest checkpoint."""
        from steps import cards, console, lifecycle, scoring

        with console.console():
            self.trained, self.page = lifecycle.pretrain(self.plan, self.text, self.frozen, self.corrupted)
        current.card.append(Markdown(cards.as_card(self.page)))
        self.packs = scoring.list_packs(self.plan)
        self.next(self.finetune, foreach="packs")

    @catch(var="lost")
    @retry(times=1, minutes_between_retries=0)
    @step
    def finetune(self):
        """Fine-tune on some tasks and seeds; what was done before a machine was lost is not done again."""
        from steps import console, scoring

        with console.console():
            self.results = scoring.finetune(self.plan, self.trained["key"], self.input)
        self.next(self.gather_scores)

    @card(type="blank")
    @step
    def gather_scores(self, inputs):
        """All scores as one table."""
        from steps import cards, console, scoring

        self.merge_artifacts(inputs, include=["plan", "text", "candidates", "frozen", "trained"])
        with console.console():
            results = [result for each in inputs if not each.lost for result in each.results]
            self.scores, self.page = scoring.gather_scores(self.plan, results)
        current.card.append(Markdown(cards.as_card(self.page)))
        self.next(self.register)

    @step
    def register(self):
        """Register the model with its lineage; gates and the champion's rule."""
        from steps import console, lifecycle

        with console.console():
            self.version = lifecycle.register_discriminator(
                self.plan, self.text, self.frozen, self.trained, self.scores, pathspec=current.pathspec
            )
        self.next(self.end)

    @card(type="blank")
    @step
    def end(self):
        """The report: curves, tables, cost."""
        from steps import cards, console, lifecycle

        with console.console():
            table, self.page = lifecycle.close_pretrain(
                self.plan, self.text, self.candidates, self.frozen, self.trained, self.scores, self.version
            )
            print(table)
        current.card.append(Markdown(cards.as_card(self.page)))


if __name__ == "__main__":
    PretrainFlow()
