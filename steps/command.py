"""The console command `fast-electra`: what is asked of the registry and the cloud, beside the flows.

    fast-electra lineage models:/fast-electra@champion
    fast-electra export models:/fast-electra@champion folder/
    fast-electra promote models:/fast-electra/7
    fast-electra rollback
    fast-electra metaflow-config infra/terraform
    fast-electra preflight
    fast-electra deploy flows/retrain_flow.py --to argo-workflows --defaults weekly.json
    fast-electra lineage --help

Flows are started with `python flows/pretrain_flow.py run` and its like.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from fast_electra_core.config import RunConfig
from fast_electra_core.errors import FastElectraError
from steps.console import show_log_lines
from steps.metaflow_settings import setting

COMMANDS = {
    "lineage": ("steps.lineage", "what a registered version was made from, checked; how to make it again"),
    "export": ("steps.export", "a registered version as a folder for transformers and the Hugging Face hub"),
    "promote": ("steps.promote", "look at a version's gates again, and make it champion if it may be; or by force"),
    "rollback": ("steps.rollback", "the champion before the present one is champion again"),
    "metaflow-config": ("steps.metaflow_config", "Metaflow's config file out of terraform's outputs"),
    "deploy": ("steps.deploy", "put a flow on Argo Workflows or AWS Step Functions, whole or not at all"),
    "preflight": ("steps.preflight", "would flows run on the cluster? Each thing that is missing, with its remedy"),
}
"""Command -> its module and one line for the list. The module's docstring is the command's help, examples included;
its `add_arguments(parser)` adds what the command takes, its `run(arguments)` does the work and returns the exit code.
Only the module of the command that is asked for is imported, and that imports nothing heavy before `run`."""


def main(words: Sequence[str] | None = None) -> int:
    """Run the command in words (sys.argv by default); returns its exit code: 2 where the user has something to mend,
    which is then said in one line on standard error."""
    words = sys.argv[1:] if words is None else list(words)
    show_log_lines()
    try:
        arguments, unknown = _parser(words[0] if words else "").parse_known_args(words)
        if unknown:
            arguments.refuse(f"unrecognized arguments: {' '.join(unknown)}")
        return int(importlib.import_module(COMMANDS[arguments.command][0]).run(arguments))
    except FastElectraError as error:
        print(f"fast-electra {words[0]}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def add_tracking_uri(parser: argparse.ArgumentParser) -> None:
    """`--tracking_uri`, by the flows' name and default."""
    parser.add_argument(
        "--tracking_uri",
        default=setting("MLFLOW_TRACKING_URI", RunConfig.tracking_uri),
        help="the MLflow server, or the database file that the flows wrote to [%(default)s]",
    )


def _parser(command: str) -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("fast-electra", description=__doc__, formatter_class=form)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, formatter_class=form)
        if name == command:
            wanted = importlib.import_module(module)
            subparser.description = wanted.__doc__
            wanted.add_arguments(subparser)
            subparser.set_defaults(refuse=subparser.error)  # with the usage of this command, not of all
    return parser


if __name__ == "__main__":
    sys.exit(main())
