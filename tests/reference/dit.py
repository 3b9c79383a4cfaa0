"""DiT in PyTorch: the transformer velocity network of FEATURES 1.8, under the reference's state-dict names.

    h     = patch embedding + fixed position embedding
    c     = W2 silu(W1 e(s t) + b1) + b2 (+ row of the label table)
    block : h + gate_a * attention(LN(h) * (1 + scale_a) + shift_a), then h + gate_m * mlp(LN(h) * (1 + scale_m) + shift_m)
    final : linear(LN(h) * (1 + scale) + shift), unpatchified; the channels beyond those of x_t are dropped

Everything is written out in elementary operations, so that nothing depends on a fused kernel.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from network import EPS, TimeEmbed

QK_EPS = 1e-5  # timm


def grid_embedding(rows, columns, width):
    """Returns (rows * columns, width): column first, row last, each [sin | cos]."""
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    parts = []
    for place in (column.reshape(-1, 1), row.reshape(-1, 1)):
        parts += [torch.sin(place * omega), torch.cos(place * omega)]
    return torch.cat(parts, dim=1)


def sequence_embedding(tokens, width):
    """Returns (tokens, width): even channels sin, odd channels cos."""
    phase = torch.arange(tokens)[:, None] * 10000.0 ** (-2.0 * torch.arange(width // 2, dtype=torch.float64) / width)
    return torch.stack([torch.sin(phase), torch.cos(phase)], dim=2).reshape(tokens, width)


class PatchEmbed(nn.Module):
    def __init__(self, channels, patch, width):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x):  # (B, C, H, W) -> (B, T, D)
        return self.proj(x).flatten(2).transpose(1, 2)


class LabelEmbed(nn.Module):
    def __init__(self, rows, width):
        super().__init__()
        self.embedding_table = nn.Embedding(rows, width)

    def forward(self, labels):
        return self.embedding_table(labels)


class Attention(nn.Module):
    def __init__(self, width, heads, qk_norm):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        if qk_norm:
            self.q_norm = nn.LayerNorm(width // heads, eps=QK_EPS)
            self.k_norm = nn.LayerNorm(width // heads, eps=QK_EPS)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        p = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(d // self.heads), dim=-1)
        return self.proj((p @ v).transpose(1, 2).reshape(b, t, d))


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def modulated(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    def __init__(self, width, heads, qk_norm):
        super().__init__()
        self.attn = Attention(width, heads, qk_norm)
        self.mlp = Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, c):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_a[:, None] * self.attn(modulated(x, shift_a, scale_a))
        return x + gate_m[:, None] * self.mlp(modulated(x, shift_m, scale_m))


class FinalLayer(nn.Module):
    def __init__(self, width, outputs):
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulated(x, shift, scale))


class Rescaler(nn.Module):
    """What is learned of the reference's: every pixel's classes to a few channels."""

    def __init__(self, classes, channels):
        super().__init__()
        self.channel_mapper = nn.Conv2d(classes, channels, 1, bias=False)

    def forward(self, x):
        return self.channel_mapper(x)


class Dit(nn.Module):
    """`image` is (C, H, W) with a patch, or `tokens` is (T, C): rows of data are flat in both."""

    def __init__(self, width, depth, heads, image=None, patch=None, tokens=None, classes=0, null_label=False,
                 qk_norm=False, learn_sigma=False, cond_channels=0, cond_rescale=0, time_scale=1.0):
        super().__init__()
        self.image, self.patch, self.tokens = image, patch, tokens
        channels = image[0] if image else tokens[1]
        self.out_channels = channels * (2 if learn_sigma else 1)
        if image:
            self.x_embedder = PatchEmbed(channels + (cond_rescale or cond_channels), patch, width)
            position = grid_embedding(image[1] // patch, image[2] // patch, width)
        else:
            self.x_embedder = nn.Linear(channels, width)
            position = sequence_embedding(tokens[0], width)
        self.register_buffer("position", position.float().double(), persistent=False)
        self.cond_rescaler = Rescaler(cond_channels, cond_rescale) if cond_rescale else None
        self.t_embedder = TimeEmbed(width, time_scale)
        if classes:
            self.y_embedder = LabelEmbed(classes + null_label, width)
        self.blocks = nn.ModuleList(Block(width, heads, qk_norm) for _ in range(depth))
        outputs = self.out_channels * (patch**2 if image else 1)
        self.final_layer = FinalLayer(width, outputs)

    def forward(self, x_t, t, labels=None, beside=None):  # (B, D), (B), (B), (B, Cc H W) -> (B, D)
        c = self.t_embedder(t)
        if labels is not None:
            c = c + self.y_embedder(labels)
        h = self.x_embedder(self.pixels(x_t, beside)) + self.position
        for block in self.blocks:
            h = block(h, c)
        return self.unpatchified(self.final_layer(h, c))

    def pixels(self, x_t, beside):
        if self.tokens:
            return x_t.reshape(-1, *self.tokens)
        x = x_t.reshape(-1, *self.image)
        if beside is None:
            return x
        beside = beside.reshape(len(x), -1, *self.image[1:])
        if self.cond_rescaler is not None:
            beside = self.cond_rescaler(beside)
        return torch.cat([x, beside], dim=1)

    def unpatchified(self, y):  # (B, T, p p Cout), channel fastest
        if self.tokens:
            return y[..., : self.tokens[1]].reshape(len(y), -1)
        channels, height, width = self.image
        p = self.patch
        y = y.reshape(len(y), height // p, width // p, p, p, self.out_channels)
        return torch.einsum("bhwpqc->bchpwq", y).reshape(len(y), -1, height, width)[:, :channels].flatten(1)
