"""The plans of a run, one for each small network: as they are asked for, and as RUN holds them."""

from collections.abc import Sequence
from pathlib import Path

from adjoined.core.axes import Axes
from adjoined.core.plan import Plan
from adjoined.errors import PlanError
from adjoined.train.config import CompressConfig
from adjoined.train.folder import write_plan

__all__ = ["SMALL", "choose_plans", "size_names", "write_plans"]

SMALL = "small"


def size_names(config: CompressConfig) -> list[str]:
    """Names of the small networks, and of their folders in RUN: small, then small-ALPHA or small-BUDGET."""
    others = config.request[1][1:]
    return [SMALL, *(f"{SMALL}-{size:.12g}".replace(".", "_") for size in others)]


def choose_plans(axes: Axes, config: CompressConfig, resumed: Path | None = None) -> list[Plan]:
    """The plans that the config asks for, or those of the resumed run. Raises PlanError if one does not fit."""
    written = _paths(resumed, config) if resumed else []
    if written and all(path.is_file() for path in written):  # else killed before they were
        return [_fitting(path, axes) for path in written]
    what, sizes = config.request
    if what == "plan":
        assert config.plan is not None
        return [_fitting(Path(config.plan), axes)]
    if what == "alpha":
        return [axes.plan(size, scope=config.scope, stream=config.stream) for size in sizes]
    if what == "macs":
        return [axes.plan(macs=size, scope=config.scope) for size in sizes]
    return [axes.plan(params=size, scope=config.scope) for size in sizes]


def write_plans(plans: Sequence[Plan], folder: Path, config: CompressConfig) -> None:
    """RUN/plan.json, and plan-ALPHA.json or plan-BUDGET.json of further small networks; each whole or not at all."""
    for plan, path in zip(plans, _paths(folder, config), strict=True):
        write_plan(plan, path)


def _paths(folder: Path, config: CompressConfig) -> list[Path]:
    return [folder / f"{name.replace(SMALL, 'plan')}.json" for name in size_names(config)]


def _fitting(path: Path, axes: Axes) -> Plan:
    if not path.is_file():
        raise PlanError(f"no plan at {str(path)!r}; a run writes one as RUN/plan.json")
    plan = Plan.load(path)
    axes.cost(plan)  # says which axes differ if it is another model's
    return plan
