"""Look at a registered version's gates again, and make it champion if it beats the present one.

    fast-electra promote models:/fast-electra/7
    fast-electra promote models:/fast-electra/7 --corpus_licence "CC BY-SA 4.0"     # what a gate has asked for
    fast-electra promote models:/fast-electra/7 --waive_gates majority:rte         # and keep that with the version
    fast-electra promote models:/fast-electra/7 --force                            # whatever gates and test say

It becomes challenger if its gates pass, and champion if there is none or a paired test over the seeds says that it is
better by the margin. Where the two were not scored alike, the answer has the command that scores the champion so.
An auxiliary has no gates: it becomes champion if its held-out loss is below the unigram's; otherwise nothing changes.
Exit code 0: it is champion; 1: it is not; 2: something is to be mended. `fast-electra rollback` undoes a promotion.
"""

import argparse
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fast_electra_core.config import PretrainConfig
from fast_electra_core.errors import ConfigError, check_choice
from fast_electra_core.promotion import check_waivers
from steps.command import add_tracking_uri

if TYPE_CHECKING:
    from steps.score_sheet import Sheet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `fast-electra promote` takes."""
    parser.add_argument("address", help="models:/NAME/VERSION or models:/NAME@ALIAS")
    parser.add_argument("--force", action="store_true", help="champion without gates and test; kept with the version")
    parser.add_argument("--corpus_licence", help="licence of the text; `unstated` to waive it")
    parser.add_argument(
        "--waive_gates", default="", help="gates that may fail, as PretrainFlow's; besides those its run has waived"
    )
    parser.add_argument(
        "--promotion_margin", type=float,
        help=f"mean difference that a better one has at least [{PretrainConfig.promotion_margin:g}]",
    )  # fmt: skip
    add_tracking_uri(parser)


def run(arguments: argparse.Namespace) -> int:
    """Promote, print what was found and decided; 0 if the version is champion now, else 1.

    Raises:
        ConfigError, TrackingError: an argument that cannot be; no such version, or no permission.
    """
    from steps import promotion, tracking
    from steps.register import AUXILIARY_NAME

    given = [each.strip() for each in arguments.waive_gates.split(",") if each.strip()]
    check_waivers(given)
    if arguments.force and given:
        raise ConfigError("waive_gates has no effect with --force, which asks no gate; leave one of the two out")
    margin = PretrainConfig.promotion_margin if arguments.promotion_margin is None else arguments.promotion_margin
    if not margin >= 0:
        raise ConfigError(f"promotion_margin must be >= 0, got {margin}")
    if arguments.force and arguments.promotion_margin is not None:
        raise ConfigError("promotion_margin has no effect with --force, which compares none; leave one of the two out")
    if arguments.corpus_licence is not None and not arguments.corpus_licence.strip():
        raise ConfigError("corpus_licence must not be empty; `unstated` waives it")
    tracking.connect_existing(arguments.tracking_uri)
    version = tracking.model_version_info(arguments.address)
    if version["name"] == AUXILIARY_NAME and not arguments.force:
        return _promote_auxiliary(version, arguments)
    sheet = None if arguments.force else promotion.sheet_of(version)
    if sheet:
        for task in [each.partition(":")[2] for each in given if ":" in each]:
            check_choice("the task of majority in waive_gates", task, sheet["tasks"])
    if arguments.corpus_licence is not None:
        version = _with_licence(version, arguments.corpus_licence)
    settled = promotion.force(version) if arguments.force else _examined(version, sheet, given, margin)
    for gate in settled["gates"]:
        print(f"{gate['name']:<10} {gate['status']:<7} {gate['reason']}")
    print(f"{settled['name']} version {settled['version']}: {settled['reason']}")
    return 0 if tracking.CHAMPION in settled["aliases"] else 1


def _promote_auxiliary(version: dict[str, Any], arguments: argparse.Namespace) -> int:
    """By the rule of AuxiliaryFlow. One that does not keep it stays as it is, its tags too."""
    from steps import promotion, tracking
    from steps.register import judge_auxiliary
    from steps.replay import downloaded
    from steps.store import Store

    what = f"{version['name']} version {version['version']}"
    address = f"models:/{version['name']}/{version['version']}"
    if arguments.waive_gates:
        raise ConfigError(
            f"waive_gates is for main models, got {arguments.waive_gates!r}: an auxiliary has no gates. Leave it out, "
            f"or make it champion as it is: fast-electra promote {address} --force"
        )
    if arguments.promotion_margin is not None:
        raise ConfigError(
            f"promotion_margin is for main models, got {arguments.promotion_margin:g}: an auxiliary is compared with "
            "the unigram alone. Leave it out"
        )
    missing = [name for name in ("masked_loss", "unigram_loss") if name not in version["tags"]]
    if missing:
        raise ConfigError(
            f"{what} does not say its held-out loss: the tag {' and the tag '.join(missing)} is missing. Make one by "
            f"flows/auxiliary_flow.py, or make it champion as it is: fast-electra promote {address} --force"
        )
    loss, unigram = (float(version["tags"][name]) for name in ("masked_loss", "unigram_loss"))
    with tempfile.TemporaryDirectory() as scratch, downloaded(address, Store(scratch)) as folder:
        is_better, reason = judge_auxiliary(loss, unigram, folder)
    if not is_better:
        print(f"{what}: not promoted: {reason}. Or, as it is: fast-electra promote {address} --force")
        return 0 if tracking.CHAMPION in version["aliases"] else 1
    if arguments.corpus_licence is not None:
        version = _with_licence(version, arguments.corpus_licence)
    print(f"{what}: {promotion.crown(version, reason)['reason']}")
    return 0


def _with_licence(version: Mapping[str, Any], licence: str) -> dict[str, Any]:
    from steps import tracking
    from steps.model_card import with_licence
    from steps.trace import LICENCE_TAG

    tracking.set_version_tags(version["name"], version["version"], {LICENCE_TAG: licence})
    tracking.amend_texts(
        version, card=lambda text: with_licence(text, licence), description=lambda text: with_licence(text, licence)
    )
    return {**version, "tags": {**version["tags"], LICENCE_TAG: licence}}


def _examined(version: dict[str, Any], sheet: "Sheet | None", given: list[str], margin: float) -> dict[str, Any]:
    from steps import promotion, tracking
    from steps.gates import examine
    from steps.store import Store

    before = [each for each in version["tags"].get(promotion.WAIVED_TAG, "").split(",") if each]
    waived = list(dict.fromkeys([*before, *given]))
    if given:
        tags = {promotion.WAIVED_TAG: ",".join(waived)}
        tracking.set_version_tags(version["name"], version["version"], tags)
    with tempfile.TemporaryDirectory() as folder:
        gates = examine(version, sheet, waived=waived, store=Store(folder))
    return promotion.settle(version, gates, promotion.Rule("if_better", margin))
