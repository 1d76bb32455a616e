"""Milliseconds of the small network as a tree of modules against its flat graph, and of making, saving and loading it.

    python -m benchmarks.tree_cost [--rounds 60] [--threads 1]

Both run the same operators; the tree adds a call of each module. Networks take turns, medians are compared; target ≤ 1.03.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn

import adjoined
from adjoined.network.modules import Network
from benchmarks.common import interleaved, spread, write

NETWORKS = ("vit_small_patch16_224", "swin_tiny_patch4_window7_224")


class Flat(nn.Module):
    """The same operators as one graph over a list of tensors, which the small network was before it had modules."""

    def __init__(self, net: Network):
        super().__init__()
        self.program, places = net.program, (n.rpartition(".") for n in net.program.tensors["eval"])
        self.places = [(net.get_submodule(path), leaf) for path, _, leaf in places]

    def forward(self, *args: Any) -> Any:
        tensors = [getattr(owner, leaf) for owner, leaf in self.places]
        return self.program.run(False, tensors, self.program.signature.flatten(args, {}))


def seconds(do: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    out = do()
    return time.perf_counter() - start, out


def rows_of(name: str, rounds: int) -> list[dict[str, Any]]:
    model, x = timm.create_model(name).eval(), torch.randn(8, 3, 224, 224)
    axes = adjoined.find_axes(model, x[:2])
    twin = adjoined.Adjoined(model, axes.plan(alpha=2), axes=axes, check=False).eval()
    made, net = seconds(twin.small)
    with tempfile.TemporaryDirectory() as folder:
        saved, _ = seconds(lambda: adjoined.save(net, folder))
        loaded, _ = seconds(lambda: adjoined.load(folder))
    nets: dict[str, nn.Module] = {"tree": net.eval(), "flat": Flat(net)}
    out = []
    for batch in (1, 8):
        with torch.inference_mode():
            assert torch.equal(nets["tree"](x[:batch]), nets["flat"](x[:batch]))
            steps = {key: lambda net=net, batch=batch: net(x[:batch]) for key, net in nets.items()}
            times = interleaved(steps, rounds if batch == 1 else rounds // 3, clock=time.process_time)
        row = {key: spread(values) for key, values in times.items()}
        ratio = row["tree"]["median"] / row["flat"]["median"]
        out.append({"model": name, "batch": batch, "seconds": row, "ratio": ratio})
        print(f"{name:<30} batch {batch}: tree {1e3 * row['tree']['median']:.1f} ms, ratio {ratio:.3f}")
    out.append({"model": name, "small_s": made, "save_s": saved, "load_s": loaded})
    print(f"{name:<30} small() {made:.2f} s, save {saved:.2f} s, load {loaded:.2f} s")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [row for name in NETWORKS for row in rows_of(name, args.rounds)]
    print(write("tree_cost_cpu", rows).name)


if __name__ == "__main__":
    main()
