"""A finished run as its files tell it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from adjoined.core.axes import find_axes
from adjoined.data import ImageData, InputSpec, load_data
from adjoined.errors import AdjoinedError
from adjoined.files import parsed, read_mapping
from adjoined.models.build import build_model
from adjoined.network.modules import Network
from adjoined.network.serialize import load
from adjoined.network.twin import Adjoined
from adjoined.train.config import CompressConfig, load_config

__all__ = ["LARGE", "WEIGHTS", "Finished", "checked", "finished_run", "read_result", "whole_network"]

# Of the trained large network in RUN.
LARGE, WEIGHTS = "large", "model.safetensors"


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
    if not (run / "result.json").exists() or not small.is_dir():
        raise AdjoinedError(f"{run} is not finished; go on with: adjoined compress --resume --out {run}")
    inputs = checked(small / "inputs.json", _check_inputs)
    result = read_result(run)
    if small.name == LARGE and not (small / "program.json").exists():
        return _finished_large(run, small, inputs, result)
    net = load(small)
    if own := [row for row in result.get("sizes", ()) if row["folder"] == small.name]:
        result |= {"small": own[0], "plan": net.plan.note if net.plan else ""}
    return Finished(run, small, load_config(run / "config.yaml"), net, inputs, result)


def _finished_large(run: Path, folder: Path, inputs: dict[str, Any], result: dict[str, Any]) -> Finished:
    """The trained large network in the place of the small one."""
    config = load_config(run / "config.yaml")
    result |= {"small": result["large"], "plan": "the large network, whole"}
    told = Finished(run, folder, config, None, inputs, result)  # pyright: ignore[reportArgumentType] — made below
    model = told.large()
    state = parsed(folder / WEIGHTS, load_file)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise AdjoinedError(
            f"{folder / WEIGHTS} does not fit {config.model}: {str(error).splitlines()[-1].strip()}"
        ) from error
    return replace(told, net=whole_network(model, told.picture))


def whole_network(model: nn.Module, picture: Tensor) -> Network:
    """`model` as a network of ours, nothing cut."""
    axes = find_axes(model, torch.cat([picture, picture]))
    return Adjoined(model, axes.plan(alpha=1), axes=axes, check=False).small().eval()


def read_result(run: Path) -> dict[str, Any]:
    """What RUN/result.json holds, with where it lies now. Raises AdjoinedError when it is broken."""
    return checked(run / "result.json", _check_result) | {"out": str(run)}


def checked(path: Path, check: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The mapping of a JSON file, which `check` has gone through. Raises AdjoinedError where that fails."""
    found = read_mapping(path)
    try:
        check(found)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise AdjoinedError(
            f"{path} is not as this version writes it ({error!r:.80}); copy it again, or upgrade adjoined"
        ) from error
    return found


def _check_inputs(inputs: dict[str, Any]) -> None:
    spec = InputSpec.from_dict(inputs["inputs"])
    numbers = (*spec.size, spec.channels, *spec.mean, *spec.std, spec.crop)
    if not all(isinstance(n, (int, float)) for n in numbers) or len(spec.size) != 2:
        raise ValueError("inputs hold no numbers")
    if not isinstance(inputs["classes"], list) or not all(isinstance(c, str) for c in inputs["classes"]):
        raise ValueError("classes is no list of names")


def _check_result(result: dict[str, Any]) -> None:
    sizes = result.get("sizes", [])
    for row in (*(result[name] for name in ("base", "large", "small")), *sizes):
        if not all(isinstance(row[k], (int, float)) and row[k] >= 0 for k in ("top1", "params", "macs")):
            raise ValueError("a network without numbers")
    if not all(isinstance(row["folder"], str) for row in sizes):
        raise ValueError("a size without a folder")
    if not all(isinstance(result[k], str) for k in ("model", "data", "plan")):
        raise ValueError("model, data and plan are no texts")
    _ = result["seconds"] + 0.0
