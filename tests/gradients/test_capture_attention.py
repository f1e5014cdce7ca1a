"""torch's attention modules: with masks, across sequences, in either layout."""

import math

import pytest
import torch
from gradient_checks import N, Written, check_gradients, labels
from torch import nn
from torch.nn import functional

from proponent.gradients.attention import attention_forward

LENGTH, WIDTH, HEADS = 5, 6, 2


def lengths_mask(length: int = LENGTH, n: int = N) -> torch.Tensor:
    """Mark the padding of sequences of several lengths, none of them empty."""
    lengths = torch.arange(n) % length + 1
    return torch.arange(length) >= lengths[:, None]


def over(**options):
    """A network around self-attention, in the layout of ``options``."""
    batch_first = options.get("batch_first", False)

    def forward(self, x, *masks):
        x = self.first(x if batch_first else x.transpose(0, 1))
        mixed, _ = self.attention(x, x, x, *masks[:1], need_weights=False)
        mixed = mixed if batch_first else mixed.transpose(0, 1)
        return self.last(mixed).mean(1)

    return Written(
        forward,
        first=nn.Linear(3, WIDTH),
        attention=nn.MultiheadAttention(WIDTH, HEADS, **options),
        last=nn.Linear(WIDTH, 4),
    )


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_self_attention(batch_first, bias, masked):
    module = over(batch_first=batch_first, bias=bias)
    masks = (lengths_mask(),) if masked else ()
    check_gradients(module, (torch.randn(N, LENGTH, 3), *masks, labels()))


def test_self_attention_with_dropout():
    module = over(batch_first=True, dropout=0.5)
    check_gradients(module, (torch.randn(N, LENGTH, 3), labels()))


def test_as_many_instances_as_positions():
    # Batches of five time-major sequences of length five.
    module = over()
    check_gradients(module, (torch.randn(10, LENGTH, 3), labels(n=10)), sizes=(5, 3))


@pytest.mark.parametrize("kind", ["boolean", "additive", "each head", "causal hint", "weights"])
def test_attention_masks(kind):
    causal = torch.triu(torch.ones(LENGTH, LENGTH, dtype=torch.bool), 1)

    def forward(self, x):
        x = self.first(x)
        options = {
            "boolean": lambda: {"attn_mask": causal},
            "additive": lambda: {"attn_mask": torch.where(causal, -1.5, 0.5)},
            "each head": lambda: {"attn_mask": causal.expand(len(x) * HEADS, -1, -1)},
            "causal hint": lambda: {"attn_mask": causal, "is_causal": True},
            "weights": lambda: {"need_weights": True, "average_attn_weights": False},
        }[kind]()
        mixed, weights = self.attention(x, x, x, **{"need_weights": False, **options})
        out = self.last(mixed).mean(1)
        return out if weights is None else out + weights[:, 0, 0, :4]

    module = Written(
        forward,
        first=nn.Linear(3, WIDTH),
        attention=nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
        last=nn.Linear(WIDTH, 4),
    )
    check_gradients(module, (torch.randn(N, LENGTH, 3), labels()))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 3, "vdim": 2}, {"kdim": 3, "vdim": 3}])
def test_cross_attention(batch_first, sizes):
    def forward(self, x, keys, values):
        inputs = [self.first(x), keys, values]
        if not batch_first:
            inputs = [part.transpose(0, 1) for part in inputs]
        mixed, _ = self.attention(*inputs)
        return self.last(mixed).mean(1 if batch_first else 0)

    module = Written(
        forward,
        first=nn.Linear(3, WIDTH),
        attention=nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, **sizes),
        last=nn.Linear(WIDTH, 4),
    )
    keys = torch.randn(N, 4, sizes.get("kdim", WIDTH))
    values = torch.randn(N, 4, sizes.get("vdim", WIDTH))
    check_gradients(module, (torch.randn(N, LENGTH, 3), keys, values, labels()))


def test_cross_attention_to_one_memory():
    def forward(self, x, memory):
        mixed, _ = self.attention(x, memory, memory)
        return self.last(mixed).mean(1)

    module = Written(
        forward,
        attention=nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
        last=nn.Linear(WIDTH, 4),
    )
    data = torch.randn(N, LENGTH, WIDTH), torch.randn(N, 3, WIDTH), labels()
    check_gradients(module, data)


def test_rare_options_are_differentiated():
    module = over(batch_first=True, add_bias_kv=True, add_zero_attn=True)
    own = {f"attention.{name}" for name, _ in module.attention.named_parameters()}
    data = torch.randn(N, LENGTH, 3), labels()
    check_gradients(module, data, differentiated=own)


def test_out_projection_used_by_hand():
    def forward(self, x):
        mixed, _ = self.attention(x, x, x)
        return self.last(self.attention.out_proj(torch.tanh(mixed))).mean(1)

    module = Written(
        forward,
        attention=nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
        last=nn.Linear(WIDTH, 4),
    )
    check_gradients(module, (torch.randn(N, LENGTH, WIDTH), labels()))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.filterwarnings("ignore:.*nested tensor.*:UserWarning")
def test_encoder_with_padding(norm_first):
    def forward(self, x, padding):
        x = self.encoder(self.first(x), src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(-1)
        return self.last((x * kept).sum(1) / kept.sum(1))

    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 8, dropout=0.3, batch_first=True, norm_first=norm_first
    )
    module = Written(
        forward,
        first=nn.Linear(3, WIDTH),
        encoder=nn.TransformerEncoder(layer, 2),
        last=nn.Linear(WIDTH, 4),
    )
    check_gradients(module, (torch.randn(N, LENGTH, 3), lengths_mask(), labels()))


def test_encoder_and_decoder():
    def forward(self, source, target):
        source, target = source.transpose(0, 1), target.transpose(0, 1)
        mask = nn.Transformer.generate_square_subsequent_mask(len(target))
        return self.last(self.transformer(source, target, tgt_mask=mask)).mean(0)

    module = Written(
        forward,
        transformer=nn.Transformer(WIDTH, HEADS, 1, 1, 8, dropout=0.2),
        last=nn.Linear(WIDTH, 4),
    )
    data = torch.randn(N, LENGTH, WIDTH), torch.randn(N, 4, WIDTH), labels()
    check_gradients(module, data)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("padding", [None, "boolean", "additive"])
@pytest.mark.parametrize("attention", [None, "boolean", "additive", "each head"])
def test_written_out_attention_is_that_of_torch(need_weights, padding, attention):
    layer = nn.MultiheadAttention(WIDTH, HEADS)
    query, memory = torch.randn(LENGTH, N, WIDTH), torch.randn(4, N, WIDTH)
    ignored = lengths_mask(4)
    masked = torch.rand(LENGTH, 4) < 0.3
    masked[:, 0] = False
    paddings = {"boolean": ignored, "additive": torch.where(ignored, -math.inf, 0.3)}
    masks = {
        "boolean": masked,
        "additive": torch.where(masked, -1.0, 0.5),
        "each head": (torch.rand(N * HEADS, LENGTH, 4) < 0.3) & (torch.arange(4) > 0),
    }
    inputs = (
        query, memory, memory, WIDTH, HEADS, layer.in_proj_weight, layer.in_proj_bias, None, None,
        False, 0.0, layer.out_proj.weight, layer.out_proj.bias,
    )  # fmt: skip
    options = {
        "training": False,
        "key_padding_mask": None if padding is None else paddings[padding],
        "attn_mask": None if attention is None else masks[attention],
        "need_weights": need_weights,
    }
    if "additive" in (padding, attention) and padding and attention:
        # torch wants both masks of one kind.
        options["key_padding_mask"] = paddings["additive"]
        options["attn_mask"] = torch.zeros_like(masks[attention], dtype=torch.double).masked_fill(
            masks[attention].bool(), -1.0
        )
    found, weights = attention_forward(*inputs, **options)
    expected, expected_weights = functional.multi_head_attention_forward(*inputs, **options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    if need_weights:
        torch.testing.assert_close(weights, expected_weights, rtol=1e-12, atol=1e-12)
    else:
        assert weights is None
