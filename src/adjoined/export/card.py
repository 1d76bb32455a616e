"""The model card: README.md of the exported folder, from what the run and the export found."""

import re
from collections.abc import Mapping
from html import escape
from typing import Any

__all__ = ["model_card"]

# format → how its file is loaded, in lines of Python
LOAD = {
    "safetensors": ("import adjoined", "", "net = adjoined.load(folder)", "logits = net(pictures)"),
    "timm": ("import timm", "", 'net = timm.create_model(f"local-dir:{folder}/timm", pretrained=True).eval()', "logits = net(pictures)"),
    "pt2": ("import torch", "", 'net = torch.export.load(f"{folder}/model.pt2").module()', "logits = net(pictures)"),
    "onnx": ("import onnxruntime", "", 'net = onnxruntime.InferenceSession(f"{folder}/model.onnx")', "(logits,) = net.run(None, {net.get_inputs()[0].name: pictures})"),
    "onnx-int8": ("import onnxruntime", "", 'net = onnxruntime.InferenceSession(f"{folder}/model-int8.onnx")', "(logits,) = net.run(None, {net.get_inputs()[0].name: pictures})"),
    "openvino": ("import openvino", "", 'net = openvino.compile_model(f"{folder}/model.xml")', "logits = net(pictures)[0]"),
    "executorch": ("from executorch.runtime import Runtime", "", 'net = Runtime.get().load_program(f"{folder}/model.pte").load_method("forward")', "(logits,) = net.execute([pictures])  # one picture a call"),
    "litert": ("from ai_edge_litert.interpreter import Interpreter", "", 'net = Interpreter(f"{folder}/model.tflite").get_signature_runner()', "(logits,) = net(args_0=pictures).values()  # one picture a call"),
}  # fmt: skip


def model_card(
    result: Mapping[str, Any],
    inputs: Mapping[str, Any],
    formats: Mapping[str, Mapping[str, Any]],
    *,
    licence: str = "unknown",
    name: str = "",
) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        result: what result.json holds; inputs: what inputs.json holds; formats: those of export.json.
        licence: of the weights, as the hub spells it (apache-2.0, mit, …).
        name: of the folder or hub repository, for the lines that load it.
    """
    small, large = result["small"], result["large"]
    size = f"{small['params'] / 1e6:.3g} M parameters, {small['macs'] / 1e9:.3g} GMACs"
    lines = [
        "---",
        f"license: {licence}",
        "library_name: adjoined",
        "pipeline_tag: image-classification",
        "tags: [image-classification, vision-transformer, compression, adjoined]",
        f"base_model: timm/{result['model']}"
        if "." in str(result["model"])
        else f"# cut from: {result['model']}",
        "---",
        "",
        f"# {result['model']}, compressed on {result['data']}",
        "",
        f"A network of {size}, cut out of {result['model']} ({large['params'] / 1e6:.3g} M, "
        f"{large['macs'] / 1e9:.3g} GMACs) and trained together with it by Adjoined. Plan: {result.get('plan') or 'given'}.",
        "",
        f"| | top-1 on {result['data']}, % | parameters | multiply-adds |",
        "| --- | ---: | ---: | ---: |",
    ]
    told = {
        "base": "base: the large one, before",
        "large": "large: after adjoined training",
        "small": "**small: this one**",
    }
    for key, words in told.items():
        row = result[key]
        lines.append(f"| {words} | {row['top1']:.2f} | {row['params']:,} | {row['macs']:,} |")
    lines += [*_load_section(formats, name), *_inputs_section(inputs), *_files_section(formats)]
    lines += [
        "",
        f"Seed {result.get('seed')}, torch {result.get('torch')}, trained on {result.get('device')}.",
        "",
    ]
    return "\n".join(lines)


def _load_section(formats: Mapping[str, Any], name: str) -> list[str]:
    lines = ["", "## Load it", ""]
    where = f'huggingface_hub.snapshot_download("{name}")' if name else '"."  # this folder'
    start = ["import huggingface_hub", ""] * bool(name)
    lines += ["```python", *start, f"folder = {where}", "```", ""]
    for kind in (k for k in LOAD if k in formats):
        lines += [f"{kind}:", "", "```python", *LOAD[kind], "```", ""]
    return lines


def _files_section(formats: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [
        "## Files",
        "",
        "| format | file | MB | differs from PyTorch by | same top-1, % | one picture, ms |",
    ]
    lines += ["| --- | --- | ---: | ---: | ---: | ---: |"]
    for kind, row in formats.items():
        same = f"{row['agreement']:.2f}" if row["agreement"] is not None else ""
        lines.append(
            f"| {kind} | {row['file']} | {row['bytes'] / 1e6:.2f} | {row['difference']:.1e} | {same} | {row['ms']:.2f} |"
        )
    if "onnx-int8" in formats and "top1_after" in formats["onnx-int8"]["facts"]:
        facts = formats["onnx-int8"]["facts"]
        lines += ["", f"int8: top-1 {facts['top1_before']:.2f} % before, {facts['top1_after']:.2f} % after."]
    return lines


def _inputs_section(inputs: Mapping[str, Any]) -> list[str]:
    spec, classes = inputs["inputs"], inputs["classes"]
    names = ", ".join(map(_plain, classes[:10])) + (
        f" … ({len(classes)} in all, in inputs.json)" if len(classes) > 10 else ""
    )
    return [
        "## Inputs and outputs",
        "",
        f"Pictures (B, {spec['channels']}, {spec['size'][0]}, {spec['size'][1]}) in [0, 1] "
        f"({spec['interpolation']}, central crop {spec['crop']:g}), less mean {_list(spec['mean'])}, over deviation "
        f"{_list(spec['std'])}. Scores of {len(classes)} classes: {names}.",
        "",
    ]


def _plain(text: object) -> str:
    """A name as one line of text in Markdown, whatever it holds."""
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", escape(" ".join(str(text).split()), quote=False))


def _list(values: Any) -> str:
    return "(" + ", ".join(f"{v:.4g}" for v in values) + ")"
