"""Make the champion before the present one champion again, its task models too.

    fast-electra rollback
    fast-electra rollback fast-electra-auxiliary

The version that was champion stays registered, and says why it is not champion any more. Another rollback goes back one
further; what was rolled back is not come back to, but `fast-electra promote models:/NAME/VERSION --force` can do that.
Each task model that moves is named; of a task that the champion has no model for the alias stays where it was.
"""

import argparse

from steps.command import add_tracking_uri


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `fast-electra rollback` takes."""
    parser.add_argument("name", nargs="?", default="fast-electra", help="the registered model [%(default)s]")
    add_tracking_uri(parser)


def run(arguments: argparse.Namespace) -> int:
    """Roll back and say so; 0.

    Raises:
        TrackingError: there is nothing to go back to; no such model, or no permission.
    """
    from steps import promotion, tracking

    tracking.connect_existing(arguments.tracking_uri)
    gone, back = promotion.rollback(arguments.name)
    print(f"{arguments.name}: version {back} is champion again, version {gone} is not")
    return 0
