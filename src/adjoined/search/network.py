"""The search network: the large one, and beside it the mix of all candidates as one soft mask (docs/identities.md, 3).

With the stream kept, heads add up and hidden units add up, so the mix of candidates in equation 3.5 is the large
network with its consumer's weights scaled:

    Σ_i g_i · MSA_{α_i}(x) = Σ_h m_h · head_h(x) · W_O^h + b,    m_h = Σ_i g_i · [h < H/α_i]

One forward gives it, whatever the number of candidates. The stream may be cut beforehand, for all candidates alike
(`within`): then both sides are those of the network with the narrower stream. Where what sums over an axis is not added to the stream at
once (talking heads, convolutional stems) the candidates are mixed there, at the consumer's output.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from adjoined.core.axes import Axes
from adjoined.core.dims import Atom
from adjoined.core.plan import Plan
from adjoined.core.slicing import scale
from adjoined.errors import AdjoinedError, did_you_mean
from adjoined.network.twin import Adjoined
from adjoined.search.gates import Gate, check_same

__all__ = ["NOISES", "Noise", "SearchNetwork"]

Noise = Literal["gumbel", "normal", "none"]
NOISES: tuple[Noise, ...] = get_args(Noise)


class SearchNetwork(nn.Module):
    """`network(weights, x)` → (large output, mixed output); both train the model's parameters and the gates η.

    `eta` is (gates, choices), 0 at the start; entries beyond a gate's number of factors stay unused. Statistics that
    a forward changes (batch norm) the mixed network has of its own. `within`: a plan that all candidates share, which
    leaves the axes of the gates whole; nothing is cut if left out.
    """

    valid: Tensor

    def __init__(self, model: nn.Module, axes: Axes, gates: Sequence[Gate], within: Plan | None = None):
        super().__init__()
        self.axes, self.gates = axes, tuple(gates)
        self.within = within if within is not None else axes.plan(kept={})
        self.twin = Adjoined(model, self.within, axes=axes, check=False)
        self._kept = axes.kept(self.within)
        choices = max(len(gate.factors) for gate in gates)
        first = next(p for p in model.parameters() if p.is_floating_point())
        self.eta = nn.Parameter(torch.zeros(len(gates), choices, dtype=first.dtype, device=first.device))
        valid = torch.tensor([[j < len(gate.factors) for j in range(choices)] for gate in gates])
        self.register_buffer("valid", valid.to(first.device), persistent=False)
        self.register_load_state_dict_pre_hook(self._check_gates)
        self._ladders: list[tuple[int, Atom, str]] = []
        self._uses: dict[str, dict[int, list[Atom]]] = {}
        for i, gate in enumerate(gates):
            for axis in gate.axes:
                self._add_axis(i, gate, axis.atom, axis.uses, choices)

    @property
    def large(self) -> nn.Module:
        return self.twin.large

    def forward(self, weights: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return self.large(*args, **kwargs), self.mixed(weights, *args, **kwargs)

    def mixed(self, weights: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Output of the mix of candidates with `weights` (gates, choices), rows that add up to 1."""
        return self.twin.run(self.mixed_tensors(weights), args, kwargs)

    def mixed_tensors(self, weights: Tensor) -> dict[str, Tensor]:
        """Name → tensor of the mixed network: that of `within`, the weights of consumers masked."""
        masks = {atom: weights[i] @ getattr(self, name).to(weights) for i, atom, name in self._ladders}
        whole = {atom: weights.new_ones(n) for atom, n in self._kept.items()}
        out = self.twin.small_tensors()
        for name, tensor in out.items():
            key = self.axes.aliases.get(name, name)
            for at, atoms in self._uses.get(key, {}).items():
                values = {a: v.to(tensor.dtype) for a, v in (whole | {a: masks[a] for a in atoms}).items()}
                out[name] = tensor = scale(tensor, at, self.axes.stored[key][at], values)
        return out

    def draw(self, temperature: float, noise: str = "gumbel") -> Tensor:
        """g of equation 3.6, (gates, choices): softmax((η + ε) / τ), ε drawn afresh, Gumbel(0, 1) or N(0, 1)."""
        eta = self.eta
        if noise == "gumbel":
            eta = eta - torch.empty_like(eta).exponential_().log()
        elif noise == "normal":
            eta = eta + torch.randn_like(eta)
        elif noise != "none":
            raise AdjoinedError(
                f"noise {noise!r} is unknown; legal are {', '.join(NOISES)}{did_you_mean(noise, NOISES)}"
            )
        return (eta / temperature).masked_fill(~self.valid, -torch.inf).softmax(-1)

    def probabilities(self) -> Tensor:
        """softmax(η): how often each factor is the largest of a draw with Gumbel noise, at any temperature."""
        return self.draw(1.0, "none")

    def one_hot(self, choices: Sequence[int]) -> Tensor:
        """The weights with which the mix is the small network of `choices`."""
        picked = torch.tensor(tuple(choices), device=self.eta.device)
        return nn.functional.one_hot(picked, self.eta.shape[1]).to(self.eta)

    def get_extra_state(self) -> dict[str, list[int]]:
        return {gate.name: list(gate.factors) for gate in self.gates}

    def set_extra_state(self, state: dict[str, list[int]]) -> None:
        check_same(state, self.get_extra_state())

    def _check_gates(self, _module: Any, state_dict: Mapping[str, Any], prefix: str, *_rest: Any) -> None:
        """Say that the candidates differ before torch finds that the shapes do."""
        if (extra := state_dict.get(f"{prefix}_extra_state")) is not None:
            self.set_extra_state(extra)

    def _add_axis(
        self, i: int, gate: Gate, atom: Atom, uses: Sequence[tuple[str, int]], choices: int
    ) -> None:
        """Note where `atom` is summed over, and its ladder [h < H/α_j], (choices, H)."""
        kept = torch.tensor([atom.size // f for f in gate.factors] + [0] * (choices - len(gate.factors)))
        ladder = torch.arange(atom.size)[None] < kept[:, None]
        name = f"ladder_{len(self._ladders)}"
        self.register_buffer(name, ladder.to(self.eta.device), persistent=False)
        self._ladders.append((i, atom, name))
        for key, at in uses:
            self._uses.setdefault(key, {}).setdefault(at, []).append(atom)
