"""Dumps the numbers that the engine is tested against: velocities, losses, gradients and training steps in float64.

Run `python tests/reference/dump.py` (PyTorch, numpy, safetensors); it rewrites tests/reference/fixtures. A second
run gives identical files. README.md beside this file says what every file and name holds.

Convention: data at t = 1, x_t = (1 - t) noise + t data, u = data - noise,
loss = mean over the N rows and d columns of w(t) (v(x_t, t) - u)^2.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn

from network import VelocityMlp
from philox import FIXTURE, NOISE, TIME, Draw, check_known_answers

FOLDER = Path(__file__).parent / "fixtures"
CHANNELS, WIDTH, DEPTH, ROWS, COND = 5, 24, 2, 13, 7
PRIOR_SEED, ALIGN_SEED = 17, 123_456_789_033  # the second needs both words, and draws a t above the clip
STEPS = 10
CLIP_T = 0.98
LAMBDA = 0.3

NETWORKS = {
    "plain": {},
    "cond": {"cond": COND},
    "post_norm": {"post_norm": True},
}

# t and the detached part of each alignment weight: name -> (w(t), is the x_t path of the gradient dropped?)
WEIGHTS = {
    "uniform": (lambda t: torch.ones_like(t), False),
    "likelihood": (lambda t: t.clamp(max=CLIP_T) / (1 - t.clamp(max=CLIP_T)), False),
    "kl": (lambda t: t.clamp(max=CLIP_T) ** 2 / (1 - t.clamp(max=CLIP_T)), True),
}


# --- inputs -----------------------------------------------------------------------------------------------------------


def inputs(tag, *shape):
    """Returns standard normals that float32 holds exactly, so that every precision starts from the same numbers."""
    x = Draw(0, FIXTURE).normals(math.prod(shape), sample=tag)
    return torch.from_numpy(x.astype(np.float32).astype(np.float64).reshape(shape))


def randomise(module, tag):
    """Gives every tensor, also the zero-initialised ones, non-zero values, so that no gradient is trivially zero."""
    with torch.no_grad():
        for i, (name, p) in enumerate(module.named_parameters()):
            x = inputs(tag * 1000 + i, *p.shape)
            if p.ndim == 2:
                x = x / math.sqrt(p.shape[1])
            elif name.endswith("ln.weight") or name.endswith("norm.weight"):
                x = 1 + 0.1 * x
            else:
                x = 0.1 * x
            p.copy_(x.float().double())
    return module


def build(variant, time_scale=1.0):
    """Returns a network with the weights of `weights_<variant>`."""
    net = VelocityMlp(CHANNELS, WIDTH, DEPTH, time_scale=time_scale, **NETWORKS[variant]).double()
    return randomise(net, 1 + list(NETWORKS).index(variant))


def draws(seed, step, rows, flow_mul):
    """Returns t (m B) and noise (m B, d): row i is sample i mod B, replica i div B."""
    time, noise = Draw(seed, TIME, step), Draw(seed, NOISE, step)
    order = [(i % rows, i // rows) for i in range(rows * flow_mul)]
    t = [time.uniform(sample, replica) for sample, replica in order]
    eps = [noise.normals(CHANNELS, sample, replica) for sample, replica in order]
    return torch.tensor(t, dtype=torch.float64), torch.from_numpy(np.stack(eps))


# --- losses -----------------------------------------------------------------------------------------------------------


def flow_loss(net, data, t, noise, z=None, weight="uniform"):
    """Returns the matching loss of the tiled rows, and what the fixtures keep of it."""
    w_of_t, detached = WEIGHTS[weight]
    copies = len(t) // len(data)
    data = data.repeat(copies, 1)
    z = z.repeat(copies, 1) if z is not None else None
    x_t = (1 - t)[:, None] * noise + t[:, None] * data
    u = data - noise
    v = net(x_t.detach() if detached else x_t, t, z)
    w = w_of_t(t)
    loss = (w[:, None] * (v - u) ** 2).mean()
    return loss, {"t": t, "noise": noise, "x_t": x_t, "u": u, "v": v, "w": w, "loss": loss}


def decayed(name, p):
    """Says whether AdamW shrinks this tensor."""
    return p.ndim > 1 and not name.endswith(".bias")


def optimizer(kind, named, lr, betas):
    if kind == "adam":
        return torch.optim.Adam([p for _, p in named], lr=lr, betas=betas, eps=1e-8)
    groups = [
        {"params": [p for n, p in named if decayed(n, p)], "weight_decay": 0.01},
        {"params": [p for n, p in named if not decayed(n, p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-8)


def train(named, loss_of_step, kind, lr, betas, clip=None, ema_decay=None):
    """Takes ten steps on `named` in place; returns losses, gradient norms before clipping, and the EMA."""
    params = [p for _, p in named]
    opt = optimizer(kind, named, lr, betas)
    ema = {n: p.detach().clone() for n, p in named}
    losses, norms = [], []
    for step in range(STEPS):
        opt.zero_grad()
        loss = loss_of_step(step)
        loss.backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in params))
        if clip is not None:
            factor = min(1.0, clip / (float(norm) + 1e-6))
            for p in params:
                p.grad *= factor
        opt.step()
        if ema_decay is not None:
            for n, p in named:
                ema[n] = ema_decay * ema[n] + (1 - ema_decay) * p.detach()
        losses.append(loss.item())
        norms.append(norm.item())
    curves = {"losses": losses, "grad_norms": norms}
    return {key: torch.tensor(x, dtype=torch.float64) for key, x in curves.items()}, ema


# --- fixtures ---------------------------------------------------------------------------------------------------------


def save(name, tensors, config, f32=()):
    """Writes one file; names that start with a prefix in `f32` are stored as float32, the others as float64."""
    arrays = {}
    for key, x in tensors.items():
        x = x.detach() if isinstance(x, torch.Tensor) else torch.tensor(x, dtype=torch.float64)
        dtype = np.float32 if key.startswith(tuple(f32)) else np.float64
        arrays[key] = np.ascontiguousarray(x.numpy().astype(dtype))
    # One metadata key: with more, safetensors writes them in an arbitrary order.
    metadata = {"config": json.dumps(config, sort_keys=True)}
    save_file(arrays, FOLDER / f"{name}.safetensors", metadata=metadata)


def describe(variant, **more):
    config = {"channels": CHANNELS, "width": WIDTH, "depth": DEPTH, "cond": 0, "post_norm": False, "time_scale": 1.0}
    return {**config, **NETWORKS[variant], "weights": variant, "time_convention": "data_at_one", **more}


def prefixed(prefix, named):
    return {f"{prefix}{name}": p for name, p in named}


def gradients(module, prefix="grad."):
    return {f"{prefix}{name}": p.grad for name, p in module.named_parameters()}


def dump_weights():
    for variant in NETWORKS:
        net = build(variant)
        save(f"weights_{variant}", dict(net.named_parameters()), describe(variant), f32=[""])


def dump_network(case, variant, time_scale=1.0):
    """Forward and backward for a given dv."""
    net = build(variant, time_scale)
    x_t = inputs(10, ROWS, CHANNELS).requires_grad_()
    t = torch.tensor([Draw(0, FIXTURE).uniform(100 + i) for i in range(ROWS)], dtype=torch.float64)
    t[0], t[1] = 0.0, 1.0  # both ends
    z = inputs(12, ROWS, COND).requires_grad_() if variant == "cond" else None
    dv = inputs(13, ROWS, CHANNELS)
    v = net(x_t, t, z)
    v.backward(dv)
    tensors = {"x_t": x_t, "t": t, "dv": dv, "v": v, "dx": x_t.grad, **gradients(net)}
    if z is not None:
        tensors |= {"z": z, "dz": z.grad}
    save(f"network_{case}", tensors, describe(variant, time_scale=time_scale))


def stage_inputs(variant):
    data = inputs(30, ROWS, CHANNELS)
    z = inputs(31, ROWS, COND) if variant == "cond" else None
    return data, z


def dump_prior(case, variant, time_scale=1.0, flow_mul=1):
    """Stage 1: the loss of step 0 and all its gradients."""
    net = build(variant, time_scale)
    data, z = stage_inputs(variant)
    loss, kept = flow_loss(net, data, *draws(PRIOR_SEED, 0, ROWS, flow_mul), z)
    loss.backward()
    del kept["w"]
    tensors = {"data": data, **kept, **gradients(net)}
    if z is not None:
        tensors["z"] = z
    config = describe(variant, time_scale=time_scale, flow_mul=flow_mul, seed=PRIOR_SEED)
    save(f"prior_{case}", tensors, config, f32=["grad."])


def dump_prior_training(case, kind, clip=None, ema_decay=None, flow_mul=1):
    """Stage 1: ten steps on the same 13 rows; step k draws its t and noise at step k, k = 0..9."""
    net = build("plain")
    data, _ = stage_inputs("plain")
    named = list(net.named_parameters())

    def loss_of_step(step):
        return flow_loss(net, data, *draws(PRIOR_SEED, step, ROWS, flow_mul))[0]

    tensors, ema = train(named, loss_of_step, kind, lr=1e-3, betas=(0.9, 0.95), clip=clip, ema_decay=ema_decay)
    if clip is not None:
        assert tensors["grad_norms"].max() > clip, "the clip must bite, or the case tests nothing"
    tensors |= {"data": data, **prefixed("param.", named)}
    if ema_decay is not None:
        tensors |= prefixed("ema.", ema.items())
    decay = 0.01 if kind == "adamw" else 0.0
    adam = {"optimizer": kind, "lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": decay}
    config = describe("plain", flow_mul=flow_mul, seed=PRIOR_SEED, clip=clip, ema_decay=ema_decay, steps=STEPS, **adam)
    save(f"prior_{case}", tensors, config, f32=["param.", "ema."])


def dump_align(case, variant, flow_mul):
    """Stage 2, free latents: for each weight the loss of step 0, its gradient, and the latents after ten Adam steps."""
    net = build(variant).requires_grad_(False)
    _, z = stage_inputs(variant)
    start = inputs(32, ROWS, CHANNELS)
    t, noise = draws(ALIGN_SEED, 0, ROWS, flow_mul)
    assert (t > CLIP_T).any(), "choose a seed for which the clip of t matters"
    tensors = {"latents": start, "t": t, "noise": noise}
    if z is not None:
        tensors["z"] = z
    for weight in WEIGHTS:
        latents = start.clone().requires_grad_()
        loss, kept = flow_loss(net, latents, t, noise, z, weight)
        loss.backward()
        tensors["v"] = kept["v"]
        tensors |= {f"{weight}.{key}": kept[key] for key in ("w", "loss")}
        tensors[f"{weight}.dlatents"] = latents.grad.clone()

        def loss_of_step(step):
            return flow_loss(net, latents, *draws(ALIGN_SEED, step, ROWS, flow_mul), z, weight)[0]

        steps, _ = train([("latents", latents)], loss_of_step, "adam", lr=1e-2, betas=(0.9, 0.999))
        tensors |= {f"{weight}.adam.{key}": x for key, x in steps.items()}
        tensors[f"{weight}.adam.latents"] = latents
    adam = {"optimizer": "adam", "lr": 1e-2, "betas": [0.9, 0.999], "eps": 1e-8, "steps": STEPS}
    save(f"align_{case}", tensors, describe(variant, flow_mul=flow_mul, seed=ALIGN_SEED, clip_t=CLIP_T, **adam))


def mlp(*widths):
    layers = []
    for i, o in zip(widths, widths[1:]):
        layers += [nn.Linear(i, o), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def build_autoencoder():
    parts = {"encoder": mlp(12, 16, 16, CHANNELS), "decoder": mlp(CHANNELS, 16, 16, 12)}
    return randomise(nn.ModuleDict(parts).double(), 9)


def autoencoder_loss(net, ae, x, t, noise, weight):
    y = ae["encoder"](x)
    reconstruction = ae["decoder"](y)
    rec = ((reconstruction - x) ** 2).mean()
    align, _ = flow_loss(net, y, t, noise, weight=weight)
    return rec + LAMBDA * align, {"y": y, "reconstruction": reconstruction, "rec_loss": rec, "align_loss": align}


def adaptive_weight(ae, kept):
    """Returns ||d rec|| / (||d align|| + 1e-4), clamped to [0, 1e4], at the weight of the encoder's last layer."""
    last = ae["encoder"][-1].weight
    rec, align = (torch.autograd.grad(kept[k], last, retain_graph=True)[0] for k in ("rec_loss", "align_loss"))
    return (rec.norm() / (align.norm() + 1e-4)).clamp(0, 1e4)


def dump_autoencoder(case, weight, flow_mul):
    """Stage 2, autoencoder: the loss of step 0, all gradients, and the parameters after ten Adam and AdamW steps."""
    net = build("plain").requires_grad_(False)
    x = inputs(40, ROWS, 12)
    ae = build_autoencoder()
    loss, kept = autoencoder_loss(net, ae, x, *draws(ALIGN_SEED, 0, ROWS, flow_mul), weight)
    tensors = {"x": x, **kept, "loss": loss, "adaptive_weight": adaptive_weight(ae, kept)}
    kept["y"].retain_grad()  # not earlier: it would add up what the adaptive weight asks for
    loss.backward()
    tensors |= {"dy": kept["y"].grad, **gradients(ae), **prefixed("initial.", build_autoencoder().named_parameters())}
    for kind in ("adam", "adamw"):
        ae = build_autoencoder()
        named = list(ae.named_parameters())

        def loss_of_step(step):
            return autoencoder_loss(net, ae, x, *draws(ALIGN_SEED, step, ROWS, flow_mul), weight)[0]

        steps, _ = train(named, loss_of_step, kind, lr=1e-3, betas=(0.9, 0.95))
        tensors |= {f"{kind}.{key}": value for key, value in steps.items()}
        tensors |= prefixed(f"{kind}.param.", named)
    adam = {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay_of_adamw": 0.01, "steps": STEPS}
    config = describe("plain", flow_mul=flow_mul, seed=ALIGN_SEED, weight=weight, **{"lambda": LAMBDA}, **adam)
    save(f"autoencoder_{case}", tensors, config, f32=["adam.param.", "adamw.param.", "initial."])


def cosine(step, lr, total, warmup):
    """timm's CosineLRScheduler stepped once per update: warm-up from 1e-5, which is not subtracted from the cosine."""
    if step < warmup:
        return 1e-5 + step * (lr - 1e-5) / warmup
    low = 0.1 * lr
    if step >= total:
        return low
    return low + 0.5 * (lr - low) * (1 + math.cos(math.pi * step / total))


def dump_schedule():
    cases = {"short": (2e-4, 100, 10), "no_warmup": (1e-3, 37, 0), "reference": (2e-4, 1_000_800, 2502)}
    tensors, config = {}, {}
    for name, (lr, total, warmup) in cases.items():
        if total < 1000:
            steps = list(range(total + 5))
        else:
            steps = [0, 1, warmup - 1, warmup, warmup + 1, total // 2, total - 1, total, total + 1]
        tensors[f"{name}.step"] = steps
        tensors[f"{name}.lr"] = [cosine(step, lr, total, warmup) for step in steps]
        config[name] = {"lr": lr, "lr_min": 0.1 * lr, "warmup_lr": 1e-5, "total": total, "warmup": warmup}
    save("schedule", tensors, config)


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    check_known_answers()
    FOLDER.mkdir(exist_ok=True)
    dump_weights()
    for case in NETWORKS:
        dump_network(case, case)
    dump_network("time_scale", "plain", time_scale=3.0)
    dump_prior("plain", "plain")
    dump_prior("cond", "cond", flow_mul=2)
    dump_prior("post_norm", "post_norm")
    dump_prior("time_scale", "plain", time_scale=3.0)
    dump_prior("flow_mul", "plain", flow_mul=4)
    dump_prior_training("adam", "adam")
    dump_prior_training("adamw", "adamw")
    dump_prior_training("adamw_clip", "adamw", clip=1.0, ema_decay=0.9, flow_mul=4)
    dump_align("plain", "plain", flow_mul=1)
    dump_align("flow_mul", "plain", flow_mul=4)
    dump_align("cond", "cond", flow_mul=2)
    dump_autoencoder("uniform", "uniform", flow_mul=1)
    dump_autoencoder("likelihood", "likelihood", flow_mul=4)
    dump_schedule()


if __name__ == "__main__":
    main()
