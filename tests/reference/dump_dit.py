"""Dumps the numbers that the DiT is tested against: see dump.py, whose conventions, weights and optimizer these are.

Run `python tests/reference/dump_dit.py` (PyTorch, numpy, safetensors); it rewrites tests/reference/fixtures/dit_*.
"""

import numpy as np
import torch

from dit import Dit
from dump import PRIOR_SEED, ROWS, STEPS, gradients, inputs, prefixed, randomise, save, train
from philox import LABEL_DROP, NOISE, TIME, Draw, check_known_answers

WIDTH, HEADS = 8, 2
IMAGE = {"image": (2, 4, 6), "patch": 2}
CASES = {
    "dit_plain": dict(**IMAGE),
    "dit_labels": dict(**IMAGE, classes=3, null_label=True),
    "dit_variants": dict(**IMAGE, classes=4, qk_norm=True, learn_sigma=True, cond_channels=1, time_scale=2.0),
    "dit_tokens": dict(tokens=(5, 3), depth=1),
    "dit_map": dict(**IMAGE, depth=1, cond_channels=5, cond_rescale=2),
}
DROPOUT = {"dit_labels": 0.4}
FLOW_MUL = {"dit_labels": 2}


def shape(settings):
    return settings.get("image") or settings["tokens"]


def draws(seed, step, rows, flow_mul, width, dropout, labels, null):
    """Returns t, noise and labels of the m B rows: row i is sample i mod B, replica i div B."""
    time, noise, drop = (Draw(seed, stream, step) for stream in (TIME, NOISE, LABEL_DROP))
    order = [(i % rows, i // rows) for i in range(rows * flow_mul)]
    t = torch.tensor([time.uniform(s, r) for s, r in order], dtype=torch.float64)
    eps = torch.from_numpy(np.stack([noise.normals(width, s, r) for s, r in order]))
    if labels is None:
        return t, eps, None
    dropped = [drop.uniform(s, r) < dropout for s, r in order]
    taken = [null if gone else int(labels[s]) for gone, (s, _) in zip(dropped, order)]
    return t, eps, torch.tensor(taken)


def dump(case, tag):
    settings = CASES[case]
    width = int(np.prod(shape(settings)))
    flow_mul, dropout, classes = FLOW_MUL.get(case, 1), DROPOUT.get(case, 0.0), settings.get("classes", 0)
    labels = [(5 * i + 1) % classes for i in range(ROWS)] if classes else None
    data = inputs(tag * 10, ROWS, width)
    beside = None
    if settings.get("cond_channels"):
        beside = inputs(tag * 10 + 1, ROWS, settings["cond_channels"] * width // shape(settings)[0])

    def build():
        net = Dit(WIDTH, heads=HEADS, **{"depth": 2, **settings}).double()
        randomise(net, tag)
        with torch.no_grad():
            for name, p in net.named_parameters():
                if p.ndim == 4:  # a convolution: what `randomise` makes of matrices
                    p.copy_((10 * p / np.sqrt(p[0].numel())).float().double())
        return net

    def loss_of(net, step):
        t, noise, taken = draws(PRIOR_SEED, step, ROWS, flow_mul, width, dropout, labels, classes)
        rows = data.repeat(flow_mul, 1)
        x_t = ((1 - t)[:, None] * noise + t[:, None] * rows).requires_grad_()
        v = net(x_t, t, taken, beside.repeat(flow_mul, 1) if beside is not None else None)
        return ((v - (rows - noise)) ** 2).mean(), x_t, v, taken

    net = build()
    tensors = {"data": data, **prefixed("weight.", net.named_parameters())}
    loss, x_t, v, taken = loss_of(net, 0)
    loss.backward()
    if dropout:
        assert 0 < int((taken == classes).sum()) < len(taken), "some labels are to be dropped, and some not"
    tensors |= {"loss": loss, "v": v, "dx": x_t.grad, **gradients(net)}
    net = build()
    named = list(net.named_parameters())
    curves, _ = train(named, lambda step: loss_of(net, step)[0], "adamw", lr=1e-3, betas=(0.9, 0.95))
    tensors |= {**curves, **prefixed("param.", named)}
    if labels is not None:
        tensors["labels"] = torch.tensor(labels, dtype=torch.float64)
    if beside is not None:
        tensors["beside"] = beside
    config = {
        "width": WIDTH, "depth": 2, "heads": HEADS, "classes": 0, "null_label": False, "qk_norm": False,
        "learn_sigma": False, "cond_channels": 0, "cond_rescale": 0, "time_scale": 1.0, **settings, "label_dropout": dropout,
        "flow_mul": flow_mul, "seed": PRIOR_SEED, "steps": STEPS, "lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8,
        "time_convention": "data_at_one",
    }
    save(case, tensors, config, f32=["weight.", "grad.", "param.", "v", "dx", "data", "beside"])


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    check_known_answers()
    for i, case in enumerate(CASES):
        dump(case, 20 + i)


if __name__ == "__main__":
    main()
