"""The autoencoder of patches and latent tokens in PyTorch: `src/nn/autoencoder/vit.rs`, written out in elementary operations.

    encoder: [patches + position | latent tokens] -> blocks -> LN of the latents -> linear
    decoder: [mask token + position | linear(y) + latent position] -> blocks -> LN of the patches -> linear, unpatchified
"""

import torch
from torch import nn

from dit import Attention, Mlp, PatchEmbed, grid_embedding
from network import EPS


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(width, eps=EPS)
        self.attn, self.mlp = Attention(width, heads, qk_norm=False), Mlp(width)

    def forward(self, h):
        h = h + self.attn(self.norm1(h))
        return h + self.mlp(self.norm2(h))


class Encoder(nn.Module):
    def __init__(self, image, patch, width, depth, heads, latents, latent):
        super().__init__()
        self.image, self.latents = image, latents
        self.patch_embed = PatchEmbed(image[0], patch, width)
        self.latent_tokens = nn.Parameter(torch.zeros(latents, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.to_latent = nn.LayerNorm(width, eps=EPS), nn.Linear(width, latent)
        self.position = grid_embedding(image[1] // patch, image[2] // patch, width)

    def forward(self, x):  # (B, C*H*W) -> (B*L, D)
        h = self.patch_embed(x.reshape(-1, *self.image)) + self.position
        h = torch.cat([h, self.latent_tokens.expand(len(h), -1, -1)], dim=1)
        for block in self.blocks:
            h = block(h)
        return self.to_latent(self.norm(h[:, -self.latents :])).flatten(0, 1)


class Decoder(nn.Module):
    def __init__(self, image, patch, width, depth, heads, latents, latent):
        super().__init__()
        self.image, self.patch, self.latents = image, patch, latents
        self.from_latent = nn.Linear(latent, width)
        self.latent_position = nn.Parameter(torch.zeros(latents, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.to_pixels = nn.LayerNorm(width, eps=EPS), nn.Linear(width, image[0] * patch * patch)
        self.position = grid_embedding(image[1] // patch, image[2] // patch, width)

    def forward(self, y):  # (B*L, D) -> (B, C*H*W)
        latents = self.from_latent(y).unflatten(0, (-1, self.latents)) + self.latent_position
        masked = (self.mask_token + self.position).expand(len(latents), -1, -1)
        h = torch.cat([masked, latents], dim=1)
        for block in self.blocks:
            h = block(h)
        tokens = self.to_pixels(self.norm(h[:, : -self.latents]))
        (c, rows, columns), p = self.image, self.patch
        tokens = tokens.reshape(-1, rows // p, columns // p, p, p, c)
        return tokens.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), -1)
