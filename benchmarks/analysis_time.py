"""What finding the axes costs: the growth with depth, and the slower ones of timm's tiny, small and base models.

    python -m benchmarks.analysis_time [--depths 6 12 24 48] [--models NAME …]

CPU seconds of this process on one thread, the imports and a first small capture left out; the capture (in eval and in
train mode) apart from our own walk over its graphs; `exports` counts the graphs that torch.export had to make.
Memory is the peak of the process beside what it held before. Writes benchmarks/results/analysis_time.json.
About five minutes.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import adjoined
from adjoined.core import axes as analysis
from adjoined.core import capture as capturing
from benchmarks.common import write

MODELS = [
    *("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224", "deit_small_patch16_224"),
    *("swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224", "swin_base_patch4_window7_224"),
    *("swinv2_tiny_window8_256", "pvt_v2_b2", "pvt_v2_b4", "cait_s24_224", "xcit_small_12_p16_224"),
    *("xcit_small_24_p16_224", "maxvit_tiny_tf_224", "maxvit_small_tf_224", "maxvit_base_tf_224"),
    *("volo_d1_224", "davit_tiny", "davit_base", "coat_lite_small", "coat_small", "crossvit_small_240"),
    *("mvitv2_small", "mvitv2_base", "nextvit_small", "twins_svt_small", "twins_pcpvt_base", "gcvit_tiny"),
    *("levit_256", "efficientformerv2_l", "tiny_vit_21m_224", "hiera_small_224", "nest_small", "pit_s_224"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--depths", nargs="*", type=int, default=[6, 12, 24, 48])
    parser.add_argument("--models", nargs="*", default=MODELS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    measure(timm.create_model("test_vit"))
    plain = "vit_tiny_patch16_224"
    made = [
        ({"model": plain, "depth": d}, lambda d=d: timm.create_model(plain, depth=d)) for d in args.depths
    ]
    made += [({"model": name}, lambda name=name: timm.create_model(name)) for name in args.models]
    rows = []
    for what, make in made:
        rows.append({**what, **measure(make())})
        print(rows[-1], flush=True)
    write("analysis_time", rows)


def measure(model: nn.Module) -> dict[str, Any]:
    """Seconds of the capture and of the rest, nodes of both graphs, and memory beside the model's own."""
    size = model.pretrained_cfg["input_size"]  # type: ignore[index]
    example = torch.randn(2, *size)  # type: ignore[misc]
    spent: dict[str, list[float]] = {"capture": [], "_export": []}
    originals = {"capture": (analysis, analysis.capture), "_export": (capturing, capturing._export)}

    def timed(name: str) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            start = time.process_time()
            try:
                return originals[name][1](*given, **named)
            finally:
                spent[name].append(time.process_time() - start)

        return call

    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = time.process_time()
    for name, (module, _) in originals.items():
        setattr(module, name, timed(name))
    try:
        axes = adjoined.find_axes(model.eval(), example)
    finally:
        for name, (module, original) in originals.items():
            setattr(module, name, original)
    total = time.process_time() - start
    nodes = sum(len(graph.fx.nodes) for graph in axes.capture.graphs.values())
    return {
        "nodes": nodes,
        "exports": len(spent["_export"]),
        "capture_seconds": round(spent["capture"][0], 2),
        "walk_seconds": round(total - spent["capture"][0], 2),
        "milliseconds_per_node": round(1000 * total / nodes, 2),
        "model_bytes": sum(t.numel() * t.element_size() for t in model.state_dict().values()),
        "peak_growth_bytes": _resident("VmHWM") - before,
    }


def _resident(what: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


if __name__ == "__main__":
    main()
