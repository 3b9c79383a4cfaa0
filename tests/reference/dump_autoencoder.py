"""Dumps the numbers that autoencoders and their terms are tested against: see dump.py, whose conventions these are.

Run `python tests/reference/dump_autoencoder.py` (PyTorch, numpy, safetensors); it rewrites tests/reference/fixtures/coder_*.
"""

import math

import torch
from torch import nn

from dump import ALIGN_SEED, CHANNELS, LAMBDA, ROWS, STEPS, build, describe, draws, flow_loss, inputs, mlp, prefixed, save, train
from philox import check_known_answers
from vit import Decoder, Encoder

VIT = dict(image=(2, 4, 6), patch=2, width=8, depth=2, heads=2)
DATA = math.prod(VIT["image"])
CASES = {
    # name: layers, latents a sample, width of a latent, and what differs from L2 with lambda alone
    "vit": dict(vit=True, tokens=3, latent=CHANNELS),
    "vit_adaptive": dict(vit=True, tokens=3, latent=CHANNELS, adaptive="encoder.norm.weight"),
    "vit_projected": dict(vit=True, tokens=2, latent=4, projection=True, l1=True, std_weight=0.1),
    "vit_joint": dict(vit=True, tokens=3, latent=CHANNELS, joint=True, std_latents=True),
    "mlp_all": dict(vit=False, tokens=2, latent=4, projection=True, joint=True, l1=True, adaptive="encoder.2.weight"),
}


class Model(nn.Module):
    """What is trained, under the engine's names."""

    def __init__(self, case):
        super().__init__()
        tokens, latent = case["tokens"], case["latent"]
        if case["vit"]:
            self.encoder, self.decoder = (half(**VIT, latents=tokens, latent=latent) for half in (Encoder, Decoder))
        else:
            self.encoder, self.decoder = mlp(DATA, 16, 16, tokens * latent), mlp(tokens * latent, 16, 16, DATA)
        if case.get("projection"):
            self.flow_target_proj = nn.Linear(latent, CHANNELS, bias=False)
        if case.get("joint"):
            self.prior = build("plain")
        self.case = case

    def encode(self, x):
        y = self.encoder(x).reshape(-1, self.case["latent"])
        if self.case.get("std_latents"):  # statistics are constants to the gradient
            y = (y - y.mean().detach()) / (y.std().detach() + 1e-8)
        return y

    def decode(self, y):
        return self.decoder(y if self.case["vit"] else y.reshape(-1, self.case["tokens"] * self.case["latent"]))


def build_model(name):
    case, tag = CASES[name], 60 + list(CASES).index(name)
    model = Model(case).double()
    with torch.no_grad():
        for i, (key, p) in enumerate(model.named_parameters()):
            if key.startswith("prior."):
                continue
            x = inputs(tag * 1000 + i, *p.shape)
            if "norm" in key and key.endswith("weight"):
                x = 1 + 0.1 * x
            elif p.ndim > 1:
                x = x / math.sqrt(p[0].numel())
            else:
                x = 0.1 * x
            p.copy_(x.float().double())
    return model


def losses(model, frozen, x, t, noise):
    """Returns what is minimised, its parts, and the adaptive weight."""
    case = model.case
    y = model.encode(x)
    x_hat = model.decode(y)
    rec = (x_hat - x).abs().mean() if case.get("l1") else ((x_hat - x) ** 2).mean()
    z = model.flow_target_proj(y) if case.get("projection") else y
    align, _ = flow_loss(frozen, z, t, noise, weight="likelihood")
    ratio = torch.tensor(1.0, dtype=torch.float64)
    if case.get("adaptive"):
        at = dict(model.named_parameters())[case["adaptive"]]
        norms = [torch.autograd.grad(part, at, retain_graph=True)[0].norm() for part in (rec, align)]
        ratio = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
    loss = rec + LAMBDA * ratio * align
    if case.get("std_weight"):
        loss = loss + case["std_weight"] * (y.std() - 1) ** 2
    own = 0.0
    if case.get("joint"):  # the prior's own loss is stage 1 on the latents of the moment
        own, _ = flow_loss(model.prior, z.detach(), t, noise, weight="likelihood")
    return loss, own, {"y": y, "reconstruction": x_hat, "rec_loss": rec, "align_loss": align, "ratio": ratio}


def dump(name):
    case = CASES[name]
    x = inputs(59, ROWS, DATA)
    rows = ROWS * case["tokens"]

    def step(model, number):
        frozen = model.prior if case.get("joint") else build("plain")
        frozen_copy = build("plain")
        frozen_copy.load_state_dict(frozen.state_dict())
        return losses(model, frozen_copy.requires_grad_(False), x, *draws(ALIGN_SEED, number, rows, 1))

    model = build_model(name)
    loss, own, kept = step(model, 0)
    (loss + own).backward()
    grads = {f"grad.{key}": p.grad for key, p in model.named_parameters()}
    tensors = {"x": x, **kept, "loss": loss, **grads, **prefixed("initial.", build_model(name).named_parameters())}
    model = build_model(name)
    named, curve = list(model.named_parameters()), []

    def loss_of_step(number):
        loss, own, _ = step(model, number)
        curve.append(loss.item())
        return loss + own

    steps, _ = train(named, loss_of_step, "adamw", lr=1e-3, betas=(0.9, 0.95))
    tensors |= {"adamw.losses": curve, "adamw.grad_norms": steps["grad_norms"]}
    tensors |= prefixed("adamw.param.", named)
    adam = {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "steps": STEPS}
    more = {key: value for key, value in case.items()}
    config = describe("plain", flow_mul=1, seed=ALIGN_SEED, **{"lambda": LAMBDA}, **adam, case=more)
    save(f"coder_{name}", tensors, config, f32=["adamw.param.", "initial.", "grad."])


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    check_known_answers()
    for name in CASES:
        dump(name)


if __name__ == "__main__":
    main()
