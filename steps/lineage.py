"""What a registered version was made from, whether that is still what it was, and how to make it again.

    fast-electra lineage models:/fast-electra@champion              the tree, every digest checked
    fast-electra lineage models:/fast-electra/3 --json              the same for programs
    fast-electra lineage models:/fast-electra-auxiliary@champion    of an auxiliary, with the models that use it
    fast-electra lineage models:/fast-electra@champion --reproduce  the command lines that make it again

Each digest is marked ok, differs, or gone: what it was taken of is no longer there, or out of reach. Exit code: 0; 1 if
something differs or tags of lineage are missing; 2 if there is no such version.
"""

import argparse
import json
from dataclasses import asdict

from fast_electra_core.errors import ConfigError
from steps import tracking
from steps.command import add_tracking_uri


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `fast-electra lineage` takes."""
    parser.add_argument("address", help="models:/NAME@ALIAS or models:/NAME/VERSION")
    add_tracking_uri(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the tree")
    parser.add_argument(
        "--no_checks", action="store_true", help="say what is recorded; fetch no weights, read no text, run no git"
    )
    parser.add_argument(
        "--expect_weights", metavar="DIGEST", help="also compare the version's weights with this digest"
    )
    parser.add_argument("--reproduce", action="store_true", help="print a shell script that makes the version again")


def run(arguments: argparse.Namespace) -> int:
    """`fast-electra lineage`.

    Raises:
        ConfigError, TrackingError: options that exclude each other; no such version.
    """
    _check_all_read(arguments)
    tracking.connect_existing(arguments.tracking_uri)
    if arguments.reproduce:
        from steps.reproduce import script

        print(script(arguments.address))
        return 0
    from steps.lineage_checks import compare
    from steps.lineage_tree import differences, tree_of
    from steps.lineage_words import as_text

    tree = tree_of(arguments.address, checking=not arguments.no_checks)
    if arguments.expect_weights is not None:
        known = {check.what: check.recorded for check in tree.checks}
        found = known.get("weights.digest", "not recorded")
        tree.checks.insert(0, compare("weights as expected", arguments.expect_weights, lambda: found))
    print(json.dumps(asdict(tree), indent=2) if arguments.json else as_text(tree))
    return 1 if differences(tree) or any(node.missing for node in tree.everything()) else 0


def _check_all_read(arguments: argparse.Namespace) -> None:
    for name in ("json", "no_checks", "expect_weights"):
        if arguments.reproduce and getattr(arguments, name):
            raise ConfigError(f"{name} has no effect with --reproduce, which prints a script; leave one of the two out")
    if arguments.expect_weights == "":  # a shell's variable that was never set: no comparison would pass for a good one
        raise ConfigError("expect_weights must be a digest, as weights.digest has it, got ''")
    if arguments.no_checks and arguments.expect_weights:
        raise ConfigError("expect_weights has no effect with --no_checks, which reads none; leave one of the two out")
