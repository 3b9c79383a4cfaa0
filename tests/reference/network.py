"""SimpleMLPAdaLN in PyTorch: the velocity network of FEATURES 1.7, under the reference's state-dict names.

    tau   = W2 silu(W1 e(t) + b1) + b2,   e(t) = [cos(s t w), sin(s t w)],  w_i = 10000^(-i/128),  s = time_scale
    c     = tau (+ Wc z + bc)
    block : h + gate * mlp(LN(h) * (1 + scale) + shift)      or, post-norm, h + LN(gate * mlp(..))
    final : Wo (LN(h) * (1 + scale) + shift) + bo, this LN without weight and bias

`nodes = r` evaluates the modulation (the only place t enters, when there is no z) at r Chebyshev nodes of [0, 1]
and interpolates it for each row; `nodes = 0` is the direct form.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

TIME_CHANNELS = 256
EPS = 1e-6


class TimeEmbed(nn.Module):
    def __init__(self, width, time_scale):
        super().__init__()
        half = TIME_CHANNELS // 2
        self.time_scale = time_scale
        # float64 first, then the model's type: the engine rounds the frequencies the same way
        omega = torch.exp(-math.log(10000.0) / half * torch.arange(half, dtype=torch.float64))
        self.register_buffer("omega", omega, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(TIME_CHANNELS, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t):  # (N) -> (N, C)
        phase = self.time_scale * t[:, None] * self.omega.to(t.dtype)
        return self.mlp(torch.cat([torch.cos(phase), torch.sin(phase)], dim=1))


class ResBlock(nn.Module):
    def __init__(self, width, post_norm):
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=EPS)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))
        self.post_norm = nn.LayerNorm(width, eps=EPS) if post_norm else None

    def forward(self, h, c, rows):
        shift, scale, gate = rows(self.adaLN_modulation, c).chunk(3, dim=1)
        branch = gate * self.mlp(self.in_ln(h) * (1 + scale) + shift)
        return h + (self.post_norm(branch) if self.post_norm is not None else branch)


class FinalLayer(nn.Module):
    def __init__(self, width, out):
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, h, c, rows):
        shift, scale = rows(self.adaLN_modulation, c).chunk(2, dim=1)
        return self.linear(F.layer_norm(h, h.shape[1:], eps=EPS) * (1 + scale) + shift)


class VelocityMlp(nn.Module):
    def __init__(self, channels, width, depth, cond=0, post_norm=False, time_scale=1.0, nodes=0):
        super().__init__()
        self.nodes = nodes
        self.time_embed = TimeEmbed(width, time_scale)
        if cond:
            self.cond_embed = nn.Linear(cond, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(ResBlock(width, post_norm) for _ in range(depth))
        self.final_layer = FinalLayer(width, channels)
        self.initialise()

    def initialise(self):
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for i in (0, 2):
            nn.init.normal_(self.time_embed.mlp[i].weight, std=0.02)
        zeros = [block.adaLN_modulation[1] for block in self.res_blocks]
        for linear in [*zeros, self.final_layer.adaLN_modulation[1], self.final_layer.linear]:
            nn.init.zeros_(linear.weight)

    def forward(self, x_t, t, z=None):  # (N, D), (N), (N, Z) -> (N, D)
        c, rows = self.modulation(t, z)
        h = self.input_proj(x_t)
        for block in self.res_blocks:
            h = block(h, c, rows)
        return self.final_layer(h, c, rows)

    def modulation(self, t, z):
        """Returns the vector c, and a function that applies an adaLN map to it and gives one row for each of t."""
        if not self.nodes:
            c = self.time_embed(t)
            return c + self.cond_embed(z) if z is not None else c, lambda adaln, c: adaln(c)
        matrix, points = interpolation(t, self.nodes)
        # The table has few rows and its error reaches every row: float32 even under bf16 autocast.
        with torch.autocast("cpu", enabled=False):
            c = self.time_embed(points)
        return c, lambda adaln, c: interpolated(adaln, c, matrix)


def interpolated(adaln, c, matrix):
    with torch.autocast("cpu", enabled=False):
        return matrix @ adaln(c)


def interpolation(t, r):
    """Returns the (N, r) barycentric matrix from the Chebyshev nodes of the first kind on [0, 1] to t, and the nodes."""
    angle = (2 * torch.arange(r, dtype=torch.float64) + 1) * math.pi / (2 * r)
    points = (1 + torch.cos(angle)) / 2
    signs = 1.0 - 2.0 * (torch.arange(r) % 2)
    difference = t.double()[:, None] - points
    hit = difference == 0
    terms = torch.where(hit.any(1, keepdim=True), hit.double(), signs * torch.sin(angle) / difference)
    return (terms / terms.sum(1, keepdim=True)).to(t.dtype), points.to(t.dtype)
