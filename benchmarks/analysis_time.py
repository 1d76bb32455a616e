"""What finding the axes costs: the growth with depth, and some models of full size.

    python -m benchmarks.analysis_time [--depths 6 12 24 48] [--models NAME …]

CPU seconds of this process on one thread, the imports and a first small capture left out; the capture by
torch.export (in eval and in train mode) apart from our own walk over its graphs. Writes
benchmarks/results/analysis_time.json. About ten minutes.
"""

import argparse
import resource
import time
from typing import Any

import timm
import torch
from torch import nn

import adjoined
from adjoined.core import axes as analysis
from benchmarks.common import write

MODELS = ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "swin_base_patch4_window7_224"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--depths", nargs="*", type=int, default=[6, 12, 24, 48])
    parser.add_argument("--models", nargs="*", default=MODELS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    measure(timm.create_model("test_vit"))
    rows = [
        {"model": "vit_tiny_patch16_224", "depth": depth, **measure(_vit(depth))} for depth in args.depths
    ]
    rows += [{"model": name, **measure(timm.create_model(name))} for name in args.models]
    for row in rows:
        print(row, flush=True)
    write("analysis_time", rows)


def _vit(depth: int) -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", depth=depth)


def measure(model: nn.Module) -> dict[str, Any]:
    """Seconds of the capture and of the rest, nodes of both graphs, and memory beside the model's own."""
    size = model.pretrained_cfg["input_size"]  # type: ignore[index]
    example = torch.randn(2, *size)  # type: ignore[misc]
    spent: list[float] = []
    capture = analysis.capture

    def timed(*given: Any) -> Any:
        start = time.process_time()
        try:
            return capture(*given)
        finally:
            spent.append(time.process_time() - start)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    analysis.capture = timed
    try:
        axes = adjoined.find_axes(model.eval(), example)
    finally:
        analysis.capture = capture
    total = time.process_time() - start
    nodes = [len(graph.fx.nodes) for graph in axes.capture.graphs.values()]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    held = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    return {
        "nodes": sum(nodes),
        "capture_seconds": round(spent[0], 2),
        "walk_seconds": round(total - spent[0], 2),
        "milliseconds_per_node": round(1000 * total / sum(nodes), 2),
        "model_bytes": held,
        "peak_growth_bytes": grown,
    }


if __name__ == "__main__":
    main()
