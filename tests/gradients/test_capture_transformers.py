"""Hugging Face models, as they are: every parameter is captured, none falls back."""

import pytest
import torch

from proponent.data import Instances
from proponent.gradients.capture import GradientCapture
from proponent.gradients.fallback import separate_gradients
from proponent.models.torch import TorchModel

transformers = pytest.importorskip("transformers")

TOKENS = torch.arange(45).reshape(5, 9) * 7 % 50


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=50,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    return (
        transformers.GPT2LMHeadModel(config),
        {"input_ids": TOKENS, "labels": TOKENS},
        "causal_lm",
    )


def llama():
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    return (
        transformers.LlamaForCausalLM(config),
        {"input_ids": TOKENS, "labels": TOKENS},
        "causal_lm",
    )


def bert():
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, num_labels=3,
    )  # fmt: skip
    mask = torch.ones_like(TOKENS)
    mask[:, 6:] = 0
    data = {"input_ids": TOKENS, "attention_mask": mask, "labels": torch.arange(5) % 3}
    return transformers.BertForSequenceClassification(config), data, "cross_entropy"


def vit():
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=16, patch_size=4, num_labels=3,
    )  # fmt: skip
    data = {"pixel_values": torch.randn(5, 3, 16, 16), "labels": torch.arange(5) % 3}
    return transformers.ViTForImageClassification(config), data, "cross_entropy"


@pytest.mark.parametrize("make", [gpt2, llama, bert, vit])
def test_every_parameter_is_captured(make) -> None:
    module, data, loss = make()
    model = TorchModel(module.double(), loss=loss)
    instances = Instances.of(data)
    capture = GradientCapture(model, instances)
    assert capture.coverage.differentiated == ()
    with model.evaluating():
        batch = model.prepare(instances.batch(slice(0, 5)))
        found = capture(batch, instances.ids)
        expected = separate_gradients(model, model.selected, batch, 5)
    whole = torch.cat([value.flatten() for value in expected.values()]).norm()
    for name, value in expected.items():
        difference = value - found[name].materialise() if name in found else value
        assert difference.norm() < 1e-12 * whole, name
