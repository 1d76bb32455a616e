"""Load a small network and use it: python examples/serve.py [FOLDER], after compress_timm.py has written `small/`.

The folder holds the weights and the operators that use them: neither timm nor the model's own code is needed.
"""

import sys
import time

import torch
from sklearn.datasets import load_digits

import adjoined

net = adjoined.load(sys.argv[1] if len(sys.argv) > 1 else "small").eval()
assert "timm" not in sys.modules


@torch.inference_mode()
def classify(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (B, 1, 8, 8) in 0 … 16 → the class of each and how sure the network is of it."""
    sure, label = net(pictures / 8 - 1).softmax(-1).max(-1)
    return label, sure


raw = load_digits()
pictures, labels = torch.tensor(raw.images, dtype=torch.float32)[1400:, None], torch.tensor(raw.target[1400:])
label, sure = classify(pictures[:1])
print(f"the first picture is a {label.item()} ({100 * sure.item():.0f} % sure), labelled {labels[0]}")
start = time.perf_counter()
guessed, _ = classify(pictures)
print(f"{100 * (guessed == labels).float().mean():.1f} % of {len(labels)} right", end=", ")
print(f"{1e6 * (time.perf_counter() - start) / len(labels):.0f} µs a picture, in a batch")
