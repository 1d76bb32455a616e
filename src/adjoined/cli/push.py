"""adjoined push: the exported folder of a run to the Hugging Face hub."""

from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console

from adjoined.cli.flags import add_license, add_run, add_switch

__all__ = ["add_flags", "run"]


def add_flags(parser: ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--to", type=str, required=True, help="name on the hub, such as user/name")
    add_switch(parser, "--private", "make a private repository")
    add_license(parser)


def run(given: dict[str, Any]) -> None:
    from adjoined.train.folder import latest_run
    from adjoined.train.handover import push_run

    folder = given.pop("run", None) or latest_run()
    if "license" in given:
        given["licence"] = given.pop("license")
    with Console(stderr=True).status("uploading"):
        print(push_run(folder, **given))
