"""A finished run as its files tell it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adjoined.data import ImageData, InputSpec, load_data
from adjoined.errors import AdjoinedError
from adjoined.files import read_mapping
from adjoined.models.build import build_model
from adjoined.network.modules import Network
from adjoined.network.serialize import load
from adjoined.train.config import CompressConfig, load_config

__all__ = ["Finished", "finished_run"]


@dataclass(frozen=True, eq=False)
class Finished:
    """A finished run as its files tell it, with one of its small networks.

    inputs: what inputs.json holds. small: where the network lies; out: where what is made of it goes.
    """

    folder: Path
    small: Path
    config: CompressConfig
    net: Network
    inputs: dict[str, Any]
    result: dict[str, Any]

    @property
    def out(self) -> Path:
        return self.folder if self.small.name == "small" else self.small

    @property
    def spec(self) -> InputSpec:
        return InputSpec.from_dict(self.inputs["inputs"])

    @property
    def picture(self) -> Tensor:
        """One input of zeros, (1, channels, height, width)."""
        return torch.zeros(1, self.spec.channels, *self.spec.size)

    def pictures(self, data: str | None = None) -> ImageData:
        """What `data` names; None: what the run was trained on, streamed if it was so then."""
        config = self.config
        same = data in (None, config.data)
        return load_data(config.data if data is None else data, streaming=config.streaming and same)

    def large(self) -> nn.Module:
        """The network that the small one was cut from, as it is built, with weights of its own."""
        config = self.config
        return build_model(
            config.model,
            num_classes=len(self.inputs["classes"]),
            img_size=config.img_size,
            model_args=config.model_args,
        ).eval()


def finished_run(folder: Path | str) -> Finished:
    """Read a run with RUN/small, or with the small network whose folder in a run is given.

    Raises AdjoinedError when there is none, or it is not finished.
    """
    run = small = Path(folder)
    if (small / "inputs.json").exists() and not (small / "config.yaml").exists():
        run = small.parent
    else:
        small = run / "small"
    if not (run / "config.yaml").exists():
        raise AdjoinedError(
            f"no run at {str(folder)!r}: looked for config.yaml; adjoined compress --out RUN makes one"
        )
    if not (run / "result.json").exists() or not (small / "inputs.json").exists():
        raise AdjoinedError(f"{run} is not finished; go on with: adjoined compress --resume --out {run}")
    inputs, result = (read_mapping(p) for p in (small / "inputs.json", run / "result.json"))
    result |= {"out": str(run)}  # it may have been moved
    net = load(small)
    if own := [row for row in result.get("sizes", ()) if row["folder"] == small.name]:
        result |= {"small": own[0], "plan": net.plan.note if net.plan else ""}
    return Finished(run, small, load_config(run / "config.yaml"), net, inputs, result)
