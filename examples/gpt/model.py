"""A small byte-level GPT in plain torch: pre-norm blocks, causal attention, tied input and output embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY = 256  # one token for each byte


@dataclass(frozen=True, slots=True)
class GPTConfig:
    """The model's size. ``block`` is the longest sequence in tokens; ``width`` must be a multiple of ``heads``."""

    block: int = 64
    layers: int = 2
    width: int = 64
    heads: int = 4


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each added to the stream: [batch, time, width] -> the same."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.attention_out = nn.Linear(config.width, config.width)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, 4 * config.width), nn.GELU(), nn.Linear(4 * config.width, config.width)
        )

    def forward(self, stream: Tensor) -> Tensor:
        stream = stream + self._attend(self.attention_norm(stream))
        out: Tensor = stream + self.mlp(self.mlp_norm(stream))
        return out

    def _attend(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        heads = self.qkv(x).view(batch, time, 3, self.heads, width // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.attention_out(mixed.transpose(1, 2).reshape(batch, time, width))
        return out


class GPT(nn.Module):
    """Next-byte prediction: int64 tokens [batch, time] -> logits [batch, time, 256]. An empty batch is allowed."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, config.width)
        self.position = nn.Embedding(config.block, config.width)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.layers)))
        self.norm = nn.LayerNorm(config.width)
        self.apply(_initialise)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        stream = self.norm(self.blocks(self.token(tokens) + self.position(positions)))
        return F.linear(stream, self.token.weight)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
