"""DiT-S/2 as PyTorch's users run it: the network of tests/reference/dit.py with PyTorch's own fused attention."""

import sys
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "reference"))
import dit  # noqa: E402

from common import DIT  # noqa: E402


class Attention(dit.Attention):
    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d))


def build():
    net = dit.Dit(DIT["width"], DIT["depth"], DIT["heads"], DIT["image"], DIT["patch"], classes=DIT["classes"], null_label=True).float()
    for block in net.blocks:
        block.attn.__class__ = Attention
    return net


def matching_loss(net, data, autocast):
    """Returns the matching loss of images (B, D), each with a label that one in ten loses."""
    t, noise = torch.rand(len(data)), torch.randn_like(data)
    labels = torch.randint(DIT["classes"], (len(data),))
    labels = torch.where(torch.rand(len(data)) < 0.1, DIT["classes"], labels)
    x_t = torch.lerp(noise, data, t[:, None])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        v = net(x_t, t, labels)
    return F.mse_loss(v.float(), data - noise)
