"""Times the parts of a step in PyTorch on the CPU, on request: the peers of `cargo bench --bench parts`.

    python parts_torch.py --part loss [--compile]

loss: t, noise, x_t, the matching loss of a velocity v and its gradient, 65,536 rows of 768. optimizer: clip_grad_norm_, fused AdamW and
the EMA by foreach lerp over 100 M parameters. product-nt-f32 and so on: the products of a layer with weight W (3072×1024) through oneDNN:
x·Wᵀ (nt), dy·W (nn), dyᵀ·x (tn), x and dy with 2048 rows.
After a warm-up it prints "ready"; for each line of stdin it runs the part as often as the line says and prints the times in ms.
"""

import argparse
import sys
from functools import partial

import torch

from common import serve


def loss_part():
    data, v = torch.randn(65_536, 768), torch.randn(65_536, 768, requires_grad=True)

    def part(data, v):
        t, noise = torch.rand(len(data), 1), torch.randn_like(data)
        x_t = torch.lerp(noise, data, t)
        loss = torch.nn.functional.mse_loss(v, data - noise)
        return x_t, torch.autograd.grad(loss, v)[0], loss

    return part, (data, v)


def optimizer_part():
    params = [torch.randn(1_000_000, requires_grad=True) for _ in range(100)]
    for p in params:
        p.grad = torch.randn_like(p)
    ema = [p.detach().clone() for p in params]
    opt = torch.optim.AdamW(params, lr=1e-4, betas=(0.9, 0.95), weight_decay=1e-4, fused=True)

    def part():
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        torch._foreach_lerp_(ema, params, 1e-4)

    return part, ()


def product_part(kind, dtype):
    x, w, dy = (torch.randn(*size, dtype=dtype) for size in [(2048, 1024), (3072, 1024), (2048, 3072)])
    return torch.mm, {"nt": (x, w.t()), "nn": (dy, w), "tn": (dy.t(), x)}[kind]


PARTS = {"loss": loss_part, "optimizer": optimizer_part}
for kind in ["nt", "nn", "tn"]:
    for name, dtype in [("f32", torch.float32), ("bf16", torch.bfloat16)]:
        PARTS[f"product-{kind}-{name}"] = partial(product_part, kind, dtype)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("medium")
    part, arguments = PARTS[options.part]()
    part = torch.compile(part) if options.compile else part
    serve(lambda: part(*arguments), 3)


if __name__ == "__main__":
    sys.exit(main())
