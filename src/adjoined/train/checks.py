"""What a config cannot mean, said before anything is read or trained."""

from dataclasses import asdict, fields, replace

from timm.optim import list_optimizers

from adjoined.data import check_augment
from adjoined.errors import AdjoinedError, did_you_mean
from adjoined.train.config import SEARCH_FLAGS, CompressConfig
from adjoined.train.ranges import check_ranges, check_types

__all__ = ["check_config"]


def check_config(config: CompressConfig) -> CompressConfig:
    """The config with the length of the base and the options of the loss filled in. Raises AdjoinedError for values that cannot be meant."""
    check_types(config)
    check_ranges(config)
    chosen = [
        f"--{n} {getattr(config, n)}"
        for n in ("alpha", "plan", "macs", "params")
        if getattr(config, n) is not None
    ]
    _check_sizes(config)
    if len(chosen) > 1:
        raise AdjoinedError(f"{' and '.join(chosen)} say two things about what to keep; give one of them")
    _check_search(config)
    _check_training(config)
    if config.pretrained and config.checkpoint:
        raise AdjoinedError("--pretrained and --checkpoint both give weights; give one of them")
    loss = config.loss_options
    base_epochs, base_steps = config.base_epochs, config.base_steps
    if base_epochs is None:
        base_epochs = config.epochs if config.needs_base else 0
        base_steps = base_steps or (config.steps if config.needs_base else None)
    return replace(config, base_epochs=base_epochs, base_steps=base_steps, **asdict(loss))


def _check_sizes(config: CompressConfig) -> None:
    """Raise AdjoinedError for factors or budgets given twice, and for what goes with one of them, or one kind, alone."""
    what, sizes = config.request
    for name in ("alpha", "macs", "params"):
        given = getattr(config, name)
        if isinstance(given, list) and len({*given}) != max(len(given), 1):
            raise AdjoinedError(
                f"--{name} {given}: give one {'factor' if name == 'alpha' else 'budget'}, or several that differ"
            )
        if isinstance(given, list) and config.search and name != "alpha":
            raise AdjoinedError(f"--{name} {given}: a search finds one network; give one number")
    if config.draw == "one" and len(sizes) < 2:
        raise AdjoinedError(
            "--draw one has no effect on one small network; give several factors or budgets: --alpha 2 4 8"
        )
    if config.allocation != "measured" and what not in ("macs", "params"):
        raise AdjoinedError(
            f"--allocation {config.allocation} shares out a budget; give --macs or --params, without --search"
        )
    if config.stream is not None and what not in ("alpha", "search"):
        raise AdjoinedError(
            f"--stream goes with --alpha or --search; --{what} {getattr(config, what)} says itself what is kept of the stream"
        )
    if config.relations and len(sizes) > 1:
        raise AdjoinedError(f"--relations compares two networks; give one --{what}")


def _check_training(config: CompressConfig) -> None:
    """Raise AdjoinedError for an optimizer, an augmentation or an average that cannot be."""
    names = [str(name) for name in list_optimizers()]
    check_augment(config.augment)
    if config.opt not in names:
        near = did_you_mean(config.opt, names)
        raise AdjoinedError(f"--opt {config.opt!r} is no optimizer of timm, as adamw, lamb or sgd are{near}")
    if (config.mixup or config.cutmix) and config.batch_size % 2:
        raise AdjoinedError(
            f"--mixup and --cutmix pair pictures; --batch-size {config.batch_size} must be even"
        )
    if config.repeats > 1 and config.augment == "none":
        raise AdjoinedError(
            f"--repeats {config.repeats} repeats pictures changed each time; --augment none changes none"
        )
    if config.ema_warmup and config.ema is None:
        raise AdjoinedError("--ema-warmup has no effect without --ema; add --ema 0.999, say")
    if config.streaming and config.cache in ("device", "memory"):
        raise AdjoinedError(
            f"--cache {config.cache} holds all pictures, --streaming never has them all; give one of the two"
        )
    if config.compile_mode != "default":
        told = f"--compile-mode {config.compile_mode}"
        if not config.compile:
            raise AdjoinedError(
                f"{told} has no effect without --compile; add it, or give --compile-mode default"
            )
        if config.accumulate > 1:
            raise AdjoinedError(
                f"{told} runs CUDA graphs, which overwrite gradients between parts; leave out --accumulate"
            )
    if config.channels_last and config.shard:
        raise AdjoinedError("--shard splits plain weights alone; leave out --channels-last")
    if config.accumulate > config.batch_size:
        raise AdjoinedError(
            f"--accumulate {config.accumulate} is more than --batch-size {config.batch_size}; lower it"
        )


def _check_search(config: CompressConfig) -> None:
    """Raise AdjoinedError for flags that a search contradicts; say which ones have no effect without one."""
    if not config.search:
        idle = [
            f"--{f.name.replace('_', '-')}"
            for f in fields(CompressConfig)
            if f.name in SEARCH_FLAGS and getattr(config, f.name) != f.default
        ]
        if idle:
            raise AdjoinedError(
                f"only a search reads {', '.join(idle)}; add --search, or use adjoined search"
            )
        return
    for name in ("alpha", "plan"):
        if (value := getattr(config, name)) is not None:
            raise AdjoinedError(f"--search finds the plan that --{name} {value} gives; give one of them")
    if config.accumulate > 1:
        raise AdjoinedError("--search steers its budget at each forward; leave out --accumulate")
    if config.scope != "inner":
        raise AdjoinedError(
            "--search chooses heads and hidden units; to cut the stream too, for all candidates alike, add --stream 2"
        )
