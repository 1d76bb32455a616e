"""Everything that decides a compress run, as one frozen record; the command line is made from it."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from adjoined.errors import AdjoinedError, did_you_mean
from adjoined.losses import LossName, LossOptions, loss_options
from adjoined.network.nested import Draw
from adjoined.network.twin import Own
from adjoined.train.checkpoint import written_aside
from adjoined.train.ranges import check_types

__all__ = ["FREE_ON_RESUME", "GROUPS", "SEARCH_FLAGS", "CompressConfig", "load_config", "save_config"]

# What a resumed run may change: where and how fast it runs, never what it computes.
FREE_ON_RESUME = frozenset(
    (
        "out device workers cache shard compile compile_mode log_seconds track resume checkpoint_steps "
        "keep_checkpoints"
    ).split()
)


Allocation = Literal["measured", "uniform"]
Cache = Literal["auto", "device", "memory", "none"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
Device = Literal["auto", "cpu", "cuda"]
Backend = Literal["eager", "onnxruntime", "openvino"]
Noise = Literal["gumbel", "normal", "none"]
Order = Literal["auto", "activation", "obs", "taylor", "magnitude", "none"]
Per = Literal["block", "axis"]
Precision = Literal["auto", "fp32", "tf32", "bf16"]
Schedule = Literal["cosine", "constant"]
Scope = Literal["inner", "full"]
Tracker = Literal["tensorboard", "wandb", "trackio"]
# What only a search reads.
SEARCH_FLAGS = frozenset(
    (
        "search_only search_epochs search_steps candidates per gamma latency_ms gate_lr noise temperature freeze_gates"
    ).split()
    + ["subset_classes", "subset_images", "latency_backend"]
)


# Title in --help → fields, in the order of the record.
GROUPS = {
    "model": "model model_args img_size pretrained checkpoint",
    "data": "data data_fingerprint augment repeats cache streaming workers",
    "size of the small network": "alpha draw plan macs params allocation scope stream",
    "search": "search search_only search_epochs search_steps candidates per gamma latency_ms latency_backend gate_lr noise "
    "temperature freeze_gates subset_classes subset_images",
    "length": "epochs base_epochs steps base_steps max_steps",
    "optimisation": "batch_size lr base_lr schedule warmup_epochs opt weight_decay layer_decay accumulate clip_grad",
    "preparation": "order rotate",
    "loss": "loss detach_large small_ce kl_weight ramp relations own freeze_large label_smoothing",
    "regularisation": "mixup cutmix erasing ema ema_warmup",
    "runtime": "seed device precision shard compile compile_mode channels_last",
    "folder, checkpoints, logging": "log_seconds track checkpoint_steps keep_checkpoints out resume",
}


@dataclass(frozen=True)
class CompressConfig:
    """Each field is a flag of `adjoined compress`, annotated with its help."""

    model: Annotated[str, "network: a timm name, a local name (t2t_vit_14) or package.module:callable"] = (
        "digits_vit"
    )
    model_args: Annotated[
        dict[str, Any], "more arguments of the model's constructor, e.g. drop_path_rate"
    ] = field(default_factory=dict)
    img_size: Annotated[int | None, "height and width of the pictures, pixels; null: the model's own"] = None
    pretrained: Annotated[bool, "start from timm's pretrained weights (needs the hub)"] = False
    checkpoint: Annotated[str | None, "start from the weights in this file (PyTorch or safetensors)"] = None

    data: Annotated[str, "digits, a folder, hf:NAME, wds:PATTERN or torchvision:NAME"] = "digits"
    data_fingerprint: Annotated[
        str | None, "refuse data with another fingerprint; every run notes its own"
    ] = None
    augment: Annotated[str, "auto (by the data), none, light, affine, or a timm policy (rand-m9-mstd0.5)"] = (
        "auto"
    )
    repeats: Annotated[int, "augmented copies of each image per epoch; epochs keep their length"] = 1
    cache: Annotated[
        Cache,
        "hold decoded pictures: in memory, or on the device; auto: small ones in memory, up to 1 GiB a split",
    ] = "auto"
    streaming: Annotated[
        bool,
        "fetch pictures of hf: or of a folder or URL of parquet as they are needed; the cache is bounded",
    ] = False
    workers: Annotated[int, "processes that decode pictures"] = 2

    alpha: Annotated[
        float | list[float] | None,
        "compression factor, size / kept of each width in scope; several (2 4 8): nested small networks; null: 4",
    ] = None
    draw: Annotated[Draw, "of several small networks, at each step: train all, or one drawn at random"] = (
        "all"
    )
    plan: Annotated[str | None, "keep what this file (RUN/plan.json) says, instead of alpha"] = None
    macs: Annotated[
        float | list[float] | None,
        "budget: multiply-adds a picture, as a number or a fraction of the large's; several: nested small networks",
    ] = None
    params: Annotated[
        float | list[float] | None,
        "budget: parameters, as a number or a fraction of the large network's; several: nested small networks",
    ] = None
    allocation: Annotated[
        Allocation,
        "how a budget is allocated: by what each cut does to the outputs (measured), or the same factor for all (uniform)",
    ] = "measured"
    scope: Annotated[Scope, "what is cut: inner (heads, hidden units) or full (the stream too)"] = "inner"

    stream: Annotated[
        float | None,
        "factor of the residual stream, beside that of alpha; in a search, of all candidates alike",
    ] = None

    search: Annotated[bool, "find each block's factor (DAN), to the budget if there is one, then train"] = (
        False
    )
    search_only: Annotated[bool, "end with the network of the plan found, as it stands"] = False
    search_epochs: Annotated[int | None, "epochs of the search; null: epochs"] = None
    search_steps: Annotated[int | None, "steps of the search, in place of search_epochs"] = None
    candidates: Annotated[
        list[int] | None, "factors to choose from; null: 1, 2, 4, 8, or 1, 2, 3 where more of these divide"
    ] = None
    per: Annotated[Per, "one factor for heads and hidden units of a block, or one for each axis"] = "block"
    gamma: Annotated[
        float | None, "weight of the expected multiply-adds, instead of a budget; null: 1e-12"
    ] = None
    latency_ms: Annotated[
        float | None, "budget of a search: milliseconds a picture on this device, measured first"
    ] = None
    latency_backend: Annotated[
        Backend, "what is timed: eager (PyTorch), or onnxruntime or openvino (CPU)"
    ] = "eager"
    gate_lr: Annotated[float, "peak learning rate of the gates"] = 0.02
    noise: Annotated[Noise, "of the gates: gumbel, normal (the thesis to the letter) or none"] = "gumbel"
    temperature: Annotated[
        float | Literal["annealed"], "of the gates: a number, or annealed (15 · 0.956^epoch)"
    ] = 1.0
    freeze_gates: Annotated[
        float, "share of the search in which the gates wait and the weights alone learn"
    ] = 0.1
    subset_classes: Annotated[float, "share of the classes to search on"] = 1.0
    subset_images: Annotated[float, "share of the training pictures to search on"] = 1.0

    epochs: Annotated[int, "epochs of adjoined training"] = 40
    base_epochs: Annotated[
        int | None, "epochs of the large network alone first; null: epochs, 0 with weights"
    ] = None
    steps: Annotated[int | None, "steps of adjoined training, in place of epochs"] = None
    base_steps: Annotated[int | None, "steps of the large network alone, in place of base_epochs"] = None
    max_steps: Annotated[int | None, "steps after which each phase stops, for trying out"] = None
    batch_size: Annotated[int, "pictures a step"] = 64
    lr: Annotated[float | None, "peak learning rate; null: 0.128 / width, a tenth with given weights"] = None
    base_lr: Annotated[float | None, "that of the large network alone; null: lr"] = None
    schedule: Annotated[Schedule, "learning rate: cosine (falls to 0 at the end) or constant"] = "cosine"
    warmup_epochs: Annotated[float, "epochs in which the rate rises from 0; at most a quarter of a phase"] = (
        2.0
    )
    opt: Annotated[str, "optimizer, by timm's name: adamw, lamb, muon, sgd …"] = "adamw"
    weight_decay: Annotated[float, "decay of weight matrices; biases and norms have none"] = 0.05
    layer_decay: Annotated[
        float | None, "factor of the learning rate from a layer to the one before it; null: 1"
    ] = None
    accumulate: Annotated[
        int, "parts in which a step's batch passes, one after the other: less memory, same step"
    ] = 1
    clip_grad: Annotated[float | None, "largest norm of the gradient; null: any"] = 1.0

    order: Annotated[
        Order,
        "what is cut last: by weight (magnitude), by what all that is cut adds to sums (activation), by what the rest cannot "
        "predict (obs), by the loss's gradient (taylor), or as it comes (none); auto: hidden units by activation, heads and stream by magnitude",
    ] = "auto"
    rotate: Annotated[
        bool, "rotate a stream that is cut to its principal directions first, where its LayerNorms allow that"
    ] = True
    loss: Annotated[
        LossName, "options of the loss: default, or thesis (its equations); those of the next five given win"
    ] = "default"
    detach_large: Annotated[
        bool | None,
        "stop the gradient of the KL term at the large network; null: as --loss has it (true; thesis: false)",
    ] = None
    small_ce: Annotated[
        float | None, "weight of a label term for the small network; null: as --loss has it (0.5; thesis: 0)"
    ] = None
    kl_weight: Annotated[
        float | None, "weight of the KL term, beside its schedule λ(t); null: as --loss has it (1)"
    ] = None
    ramp: Annotated[
        float | None,
        "share of training in which λ(t) = min((t / ramp)², 1) rises; null: as --loss has it (0: 1 from the start; "
        "thesis: 0.5)",
    ] = None
    relations: Annotated[
        float, "weight of a KL term between the two networks' relations of tokens in the last self-attention"
    ] = 0.0
    own: Annotated[
        Own,
        "parameters that the small network does not share: none, norms, vectors (biases and gains too) or all",
    ] = "none"
    freeze_large: Annotated[
        float, "share of training in which the large network teaches alone: it gets no gradient itself"
    ] = 0.0
    label_smoothing: Annotated[
        float | None, "share of the target given to all classes alike, 0 to 1; null: as --loss has it (0)"
    ] = None

    mixup: Annotated[float, "α of mixup's Beta(α, α): two pictures are blended; 0: off"] = 0.0
    cutmix: Annotated[float, "α of cutmix's: a rectangle comes from another picture; 0: off"] = 0.0
    erasing: Annotated[float, "share of the pictures in which a random rectangle becomes noise"] = 0.0
    ema: Annotated[
        float | None,
        "decay per step of a moving average of the weights; the average is evaluated, and a phase ends with it",
    ] = None
    ema_warmup: Annotated[bool, "let that decay rise from 0: min(ema, 1 - (1 + step)^-2/3)"] = False

    seed: Annotated[int, "seed of the weights, the order of the data and augmentation"] = 0
    device: Annotated[Device, "where to train; auto: the accelerator if there is one"] = "auto"
    precision: Annotated[
        Precision, "auto: bf16 where the device has it, fp32 on CPU; tf32: fp32 with short products on a GPU"
    ] = "auto"
    shard: Annotated[
        bool, "of several processes each keeps a part of weights and optimizer state (FSDP2)"
    ] = False
    compile: Annotated[bool, "run the networks of each training step by torch.compile"] = False
    compile_mode: Annotated[
        CompileMode, "torch.compile's; reduce-overhead: CUDA graphs, for small inputs on a GPU"
    ] = "default"
    channels_last: Annotated[
        bool, "keep 4-d weights and pictures channels-last in memory: faster where there are convolutions"
    ] = False
    log_seconds: Annotated[float, "seconds between lines of progress where the output is no terminal"] = 20.0
    track: Annotated[
        list[Tracker],
        "send the metrics to these too: tensorboard (RUN/logs), wandb, trackio; none given: off",
    ] = field(default_factory=list)

    checkpoint_steps: Annotated[
        int | None,
        "steps between checkpoints within an epoch; null: after each epoch, and at SIGTERM or Ctrl-C",
    ] = None
    keep_checkpoints: Annotated[int, "how many of the last checkpoints stay, beside the best"] = 2
    out: Annotated[str | None, "folder of the run; null: runs/MODEL-DATA, numbered if that exists"] = None
    resume: Annotated[bool, "go on with the run in out (null: the last one)"] = False

    @property
    def needs_base(self) -> bool:
        """Whether no weights are given, so that the large network is to be trained alone first."""
        return not (self.pretrained or self.checkpoint)

    def length(self, phase: Literal["base", "search", "adjoined"]) -> tuple[int, int | None]:
        """How long a phase is: its epochs, and the steps that stand in their place if there are some."""
        if phase == "base":
            return self.base_epochs or 0, self.base_steps
        if phase == "search" and (self.search_epochs or self.search_steps):
            return self.search_epochs or self.epochs, self.search_steps
        return self.epochs, self.steps

    @property
    def measures(self) -> bool:
        """Whether the plan waits for the trained large network: a budget that measurements share out."""
        return self.allocation == "measured" and self.request[0] in ("macs", "params")

    @property
    def request(self) -> tuple[Literal["alpha", "macs", "params", "plan", "search"], list[float]]:
        """What says how much is kept, and the factor or budget of each small network, that of RUN/small first."""
        if self.search:
            return "search", []
        if self.plan is not None:
            return "plan", []
        for what in ("macs", "params"):
            if budgets := self.budgets(what):
                return what, budgets
        return "alpha", _as_list(self.alpha) or [4.0]

    def budgets(self, what: Literal["macs", "params"]) -> list[float]:
        """The budgets given of one kind, if any."""
        return _as_list(getattr(self, what))

    @property
    def loss_options(self) -> LossOptions:
        """The options of the adjoined loss."""
        return loss_options(self.loss, **{f.name: getattr(self, f.name) for f in fields(LossOptions)})


def _as_list(value: float | list[float] | None) -> list[float]:
    return list(value) if isinstance(value, list) else [] if value is None else [value]


def save_config(config: CompressConfig, path: Path) -> None:
    """Write as YAML what `adjoined compress --config` reads; `resume` is no part of it."""
    values = {k: v for k, v in asdict(config).items() if k != "resume"}
    with written_aside(path) as file:
        file.write(yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())


def load_config(path: Path) -> CompressConfig:
    """Read what `save_config` wrote. Raises AdjoinedError for no such file, or an unknown field in it."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise AdjoinedError(f"{path} is no config of a run: {str(error).splitlines()[0]}") from error
    names = [f.name for f in fields(CompressConfig)]
    strange = [k for k in values if k not in names] if isinstance(values, dict) else ["(no mapping)"]
    if strange:
        raise AdjoinedError(f"{path} has an unknown field {strange[0]!r}{did_you_mean(strange[0], names)}")
    config = CompressConfig(**values)
    try:
        check_types(config)
    except AdjoinedError as error:
        raise AdjoinedError(f"{path} is no config of a run: {error}") from None
    return config
