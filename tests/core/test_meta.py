"""Networks that hardly fit: axes, plans and costs of a model on the meta device, which has sizes and no weights."""

import resource
import time

import pytest
import timm
import torch

import adjoined
from adjoined.errors import AdjoinedError


def test_a_llama_of_seven_billion_parameters_in_seconds_and_without_its_memory():
    hf = pytest.importorskip("transformers")
    config = hf.LlamaConfig(intermediate_size=11008, num_hidden_layers=32, use_cache=False)  # 7 B
    with torch.device("meta"):
        model = hf.LlamaForCausalLM(config)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    axes = adjoined.find_axes(model, {"input_ids": torch.ones(2, 16, dtype=torch.long)})
    plan = axes.plan(macs=0.5)
    large, small = axes.cost(), axes.cost(plan)
    assert time.process_time() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes
    assert large.params == sum(p.numel() for p in model.parameters()) == 6_738_415_616
    assert 0.49 < small.macs / large.macs <= 0.5
    assert sum(a.role == "heads" and not a.pinned for a in axes) == 32
    assert axes.notes == ()


def test_what_the_meta_device_gives_is_what_real_weights_give():
    def build():
        return timm.create_model("vit_tiny_patch16_224", depth=2)

    with torch.device("meta"):
        on_meta = build()
    image = torch.randn(2, 3, 224, 224)
    axes, real = adjoined.find_axes(on_meta, image), adjoined.find_axes(build(), image)
    assert str(axes) == str(real)
    assert axes.cost() == real.cost()
    plan = axes.plan(alpha=3)
    assert plan == real.plan(alpha=3)
    with pytest.raises(AdjoinedError, match="on the meta device, so it has sizes and no weights"):
        adjoined.Adjoined(on_meta, plan, axes=axes)
