"""Reads exported files with the runtime alone: python readers.py FORMAT FOLDER; what else there is cannot be imported.

Every sub-folder holds inputs.npz; the outputs go to outputs.npz beside it.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

ONLY = {
    "safetensors": ("timm", "transformers", "torchvision"),
    "pt2": ("adjoined", "timm", "transformers", "torchvision"),
    "onnx": ("adjoined", "timm", "transformers", "torch"),
    "openvino": ("adjoined", "timm", "transformers", "torch", "onnx"),
    "executorch": ("adjoined", "timm", "transformers", "torchvision"),
    "litert": ("adjoined", "timm", "transformers", "torch", "litert_torch"),
    "timm": ("adjoined", "transformers"),
}


def read(kind: str, folder: Path, inputs: dict) -> list:
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / "model.onnx")
        return session.run(None, _by_name(inputs, [i.name for i in session.get_inputs()]))
    if kind == "openvino":
        import openvino

        model = openvino.compile_model(folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        out = model(_by_name(inputs, [i.get_any_name() for i in model.inputs]))
        return [out[i] for i in range(len(model.outputs))]
    if kind == "litert":
        from ai_edge_litert.interpreter import Interpreter

        return _one_by_one(Interpreter(str(folder / "model.tflite")), inputs)
    import torch

    given = {name: torch.from_numpy(value) for name, value in inputs.items()}
    with torch.no_grad():
        if kind == "safetensors":
            import adjoined

            net = adjoined.load(folder)
            out = net(**given) if "pixel_values" in given else net(*given.values())
        elif kind == "pt2":
            module = torch.export.load(folder / "model.pt2").module()
            out = module(*given.values())
        elif kind == "timm":
            import timm

            out = timm.create_model(f"local-dir:{folder}/timm", pretrained=True).eval()(*given.values())
        else:
            from executorch.runtime import Runtime

            method = Runtime.get().load_program(folder / "model.pte").load_method("forward")
            rows = [method.execute([t[i : i + 1] for t in given.values()])[0].clone() for i in range(2)]
            out = torch.cat(rows)
    leaves = torch.utils._pytree.tree_leaves(out)
    return [t.numpy() for t in leaves if isinstance(t, torch.Tensor)]


def _one_by_one(interpreter: Any, inputs: dict) -> list:
    """The outputs of LiteRT, which takes one picture a call."""
    interpreter.allocate_tensors()
    rows = []
    for i in range(len(next(iter(inputs.values())))):
        for detail, value in zip(interpreter.get_input_details(), inputs.values(), strict=True):
            interpreter.set_tensor(detail["index"], value[i : i + 1])
        interpreter.invoke()
        rows.append([interpreter.get_tensor(d["index"]).copy() for d in interpreter.get_output_details()])
    return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


def _by_name(inputs: dict, names: list[str]) -> dict:
    """The inputs under the file's own names, in their order."""
    return dict(zip(names, inputs.values(), strict=True))


def main(kind: str, root: Path) -> None:
    for name in ONLY[kind]:
        sys.modules[name] = None

    for folder in sorted(p.parent for p in root.glob("*/inputs.npz")):
        outs = read(kind, folder, dict(np.load(folder / "inputs.npz")))
        np.savez(folder / "outputs.npz", *outs)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
