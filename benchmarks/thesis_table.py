"""The thesis's parameters and GMACs beside ours, for each reading of "compressed by α".

    python -m benchmarks.thesis_table

Every row of ours is a real small network: its parameters are counted and its multiply-adds measured with
`torch.utils.flop_counter`, and both must equal the cost polynomial exactly. No training, about five minutes.
"""

import warnings
from typing import Any

import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import adjoined
import adjoined.models
from benchmarks.common import write

READINGS: dict[str, dict[str, dict[str, Any]]] = {
    "swin_base_patch4_window7_224": {
        "base": {"alpha": 1},
        "heads and hidden / 4 (inner)": {"alpha": 4},
        "everything / 4 (full)": {"alpha": 4, "scope": "full"},
        "everything / 2 (full)": {"alpha": 2, "scope": "full"},
        "stream / 4, heads / 4, hidden whole": {"stream": 4, "heads": 4},
    },
    "t2t_vit_14": {
        "base": {"alpha": 1},
        "heads and hidden / 2 (inner)": {"alpha": 2},
        "everything / 2 (full)": {"alpha": 2, "scope": "full"},
    },
}
THESIS = {
    "swin_base_patch4_window7_224": {"Swin-B": (87.77, 15.43), "Swin-B-AN-Small-4": (21.32, 2.76)},
    "t2t_vit_14": {"T2T-ViT-14": (21.47, 4.80), "T2T-ViT-14-AN-Small-2": (10.2, 2.16)},
}


def rows() -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for name, readings in READINGS.items():
        model = timm.create_model(name).eval()
        image = torch.randn(1, 3, 224, 224)
        axes = adjoined.find_axes(model, image)
        for reading, request in readings.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                plan = axes.plan(**request)
            cost = axes.cost(plan)
            small = adjoined.Adjoined(model, plan).small().eval()
            params = sum(p.numel() for p in small.parameters())
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                small(image)
            macs = counter.get_total_flops() // 2
            assert (params, macs) == (cost.params, cost.macs), (name, reading, params, macs, cost)
            out.append({"model": name, "reading": reading, "params": params, "macs": macs})
    return out


def main() -> None:
    ours = rows()
    print(f"{'network':<36} {'reading':<38} {'params (M)':>10} {'GMACs':>7}")
    for name in READINGS:
        for row in ours:
            if row["model"] == name:
                print(
                    f"{name:<36} {row['reading']:<38} {row['params'] / 1e6:>10.2f} {row['macs'] / 1e9:>7.2f}"
                )
        for thesis, (params, gmacs) in THESIS[name].items():
            print(f"{'thesis':<36} {thesis:<38} {params:>10.2f} {gmacs:>7.2f}")
    print("every row equals the flop counter on the real small network:", write("thesis_table", ours).name)


if __name__ == "__main__":
    main()
