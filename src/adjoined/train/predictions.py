"""Where large and small answer otherwise, on held-out pictures: RUN/predictions.json, which the report shows."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from adjoined.data import Batches, InputSpec, batches
from adjoined.train.checkpoint import written_aside
from adjoined.train.tasks import Network

__all__ = ["compare_answers", "write_predictions"]

PICTURES = 12
# Held-out pictures that are asked about, and classes up to which a table of all pairs can be read.
LIMIT, CLASSES = 10_000, 100


def write_predictions(
    folder: Path, networks: Mapping[str, Network], made: Batches, classes: Sequence[str], device: torch.device
) -> None:
    """Compare `large` and `small` of `networks`, in eval mode on `device`, and write what was found."""
    data = {"classes": list(classes), **compare_answers(networks, made, len(classes), device)}
    with written_aside(folder / "predictions.json") as file:
        file.write((json.dumps(data) + "\n").encode())


def compare_answers(
    networks: Mapping[str, Network], made: Batches, classes: int, device: torch.device
) -> dict[str, Any]:
    """Confusion of both networks, and the pictures on which their answers differ most.

    Returns:
        confusion: network → table, entry [i][j] counts pictures of class i taken for class j; none above 100 classes.
        pictures: rows with png (base64), label, large, small (class numbers) and distance, the total variation between
            both networks' probabilities, 0 to 1; largest first.
    """
    tables = {name: torch.zeros(classes, classes, dtype=torch.int64) for name in ("large", "small")}
    worst: list[tuple[float, Tensor, int, int, int]] = []
    seen = 0
    with torch.no_grad():
        for x, target in batches(made):
            if not len(target):
                continue
            shares = {name: networks[name](x.to(device)).float().softmax(-1).cpu() for name in tables}
            taken = {name: p.argmax(-1) for name, p in shares.items()}
            for name, table in tables.items():
                table.view(-1).add_(torch.bincount(target * classes + taken[name], minlength=classes**2))
            distance = (shares["large"] - shares["small"]).abs().sum(-1) / 2
            distance = torch.where(taken["large"] == taken["small"], -1.0, distance)  # both say the same
            for i in (
                i for i in distance.topk(min(PICTURES, len(distance))).indices.tolist() if distance[i] >= 0
            ):
                answers = (int(target[i]), int(taken["large"][i]), int(taken["small"][i]))
                worst.append((float(distance[i]), x[i].cpu(), *answers))
            worst = sorted(worst, key=lambda row: -row[0])[:PICTURES]
            seen += len(target)
            if seen >= LIMIT:
                break
    pictures = [
        {"png": _png(x, made.inputs), "label": a, "large": b, "small": c, "distance": round(d, 4)}
        for d, x, a, b, c in worst
    ]
    confusion = {name: table.tolist() for name, table in tables.items()} if classes <= CLASSES else {}
    return {"confusion": confusion, "pictures": pictures}


def _png(x: Tensor, inputs: InputSpec) -> str:
    """A normalised picture (channels, height, width) as base64 PNG."""
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (inputs.mean, inputs.std))
    file = io.BytesIO()
    to_pil_image((x * std + mean).clamp(0, 1)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
