"""adjoined push: the exported folder of a run to the Hugging Face hub."""

from typing import Any

from jsonargparse import ActionYesNo, ArgumentParser
from rich.console import Console

__all__ = ["HELP", "add_flags", "run"]

HELP = "upload what was exported of a run, with its model card, to the Hugging Face hub"


def add_flags(parser: ArgumentParser) -> None:
    parser.add_argument(
        "run", type=str | None, nargs="?", default=None, help="folder of the run; null: the last one"
    )
    parser.add_argument("--to", type=str, required=True, help="name on the hub, such as user/name")
    parser.add_argument(
        "--private",
        action=ActionYesNo(yes_prefix="", no_prefix="no-"),
        default=False,
        help="make a private repository",
    )
    parser.add_argument("--license", type=str, default="unknown", help="of the weights, for the model card")


def run(given: dict[str, Any]) -> None:
    from adjoined.train.folder import latest_run
    from adjoined.train.handover import push_run

    folder = given.pop("run", None) or latest_run()
    if "license" in given:
        given["licence"] = given.pop("license")
    with Console(stderr=True).status("uploading"):
        print(push_run(folder, **given))
