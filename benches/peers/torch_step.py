"""Times one training step in PyTorch on the CPU: what the engine's `bench step` and `cargo bench` are compared with.

The network is the one of tests/reference/network.py. A step draws t and noise, runs forward and backward, and
  prior: clips the gradient, then fused AdamW and the EMA of all parameters;
  align: Adam on free latents, the network frozen;
  dit-prior: the same step of DiT-S/2 with class labels (torch_dit.py).
README.md beside this file says how to install and which settings matter.
"""

import argparse
import json
import math
import os
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from common import DIT, SIZES, serve

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "reference"))
from network import VelocityMlp  # noqa: E402

import torch_dit  # noqa: E402

# libc and OpenMP read these when they start, so --tuned starts the program again.
TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "60000000000",
    "MALLOC_TOP_PAD_": "268435456",
    "OMP_PROC_BIND": "true",
    "OMP_PLACES": "cores",
}

CASES = [f"{size}-{stage}" for size in SIZES for stage in ("prior", "align")] + ["dit-prior"]
DTYPES = ["f32", "f32m", "bf16"]
MODULATIONS = ["direct", "nodes"]
NODES = 16


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, nargs="+", default=CASES)
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=DTYPES, help="f32m: f32 through oneDNN")
    parser.add_argument("--modulation", choices=MODULATIONS, nargs="+", default=MODULATIONS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=7, help="timed groups; a toy group has 50 steps")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network (needs a C++ compiler)")
    parser.add_argument("--tuned", action="store_true", help="start again with the malloc and OpenMP settings")
    parser.add_argument("--serve", action="store_true", help="warm the first case up, then time as many steps as each line of stdin says")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    return parser.parse_args()


def build(size, modulation, compiled):
    if size == "dit":
        net = torch_dit.build()
    else:
        channels, width, depth, *_ = SIZES[size]
        net = VelocityMlp(channels, width, depth, nodes=NODES if modulation == "nodes" else 0)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.normal_(std=0.02)  # as in a trained network: zeros and denormals have speeds of their own
    return net, torch.compile(net) if compiled else net


def matching_loss(net, data, flow_mul, autocast):
    """Returns the matching loss of flow_mul copies of data (B, D)."""
    data = data.repeat(flow_mul, 1)
    t, noise = torch.rand(len(data)), torch.randn_like(data)
    x_t = torch.lerp(noise, data, t[:, None])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        v = net(x_t, t)
    return F.mse_loss(v.float(), data - noise)


def prior_step(net, called, data, loss_of):
    params = list(net.parameters())
    ema = [p.detach().clone() for p in params]
    opt = torch.optim.AdamW(params, lr=1e-4, betas=(0.9, 0.95), weight_decay=1e-4, fused=True)

    def step():
        opt.zero_grad()
        loss = loss_of(called, data)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        torch._foreach_lerp_(ema, params, 1e-4)
        return loss.item()

    return step


def align_step(net, called, data, loss_of):
    net.requires_grad_(False)
    latents = data.clone().requires_grad_()
    opt = torch.optim.Adam([latents], lr=1e-2, fused=True)

    def step():
        opt.zero_grad()
        loss = loss_of(called, latents)
        loss.backward()
        opt.step()
        return loss.item()

    return step


def prepare(case, dtype, modulation, options):
    """Returns a function that makes one step."""
    size, stage = case.split("-")
    autocast = dtype == "bf16"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("medium" if dtype == "f32m" else "highest")
    net, called = build(size, modulation, options.compile)
    if size == "dit":
        loss_of = lambda called, data: torch_dit.matching_loss(called, data, autocast)
        return prior_step(net, called, torch.randn(DIT["batch"], math.prod(DIT["image"])), loss_of)
    channels, _, _, samples, flow_mul = SIZES[size]
    make = prior_step if stage == "prior" else align_step
    return make(net, called, torch.randn(samples, channels), lambda called, data: matching_loss(called, data, flow_mul, autocast))


def measure(case, dtype, modulation, options):
    size, stage = case.split("-")
    samples, flow_mul = (DIT["batch"], 1) if size == "dit" else SIZES[size][3:]
    step = prepare(case, dtype, modulation, options)
    steps = 50 if size == "toy" else 1
    for _ in range(options.warmup * steps):
        step()
    times = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        for _ in range(steps):
            step()
        times.append((time.perf_counter() - start) / steps * 1e3)
    median = statistics.median(times)
    return {
        "case": case,
        "dtype": dtype,
        "modulation": modulation,
        "threads": options.threads,
        "rows": samples * flow_mul,
        "ms_median": round(median, 3),
        "ms_min": round(min(times), 3),
        "samples_per_s": round(samples / median * 1e3, 1),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,  # of the process so far
        "compile": options.compile,
        "tuned": all(os.environ.get(key) == value for key, value in TUNED.items()),
        "torch": torch.__version__,
        "cpu": cpu_model(),
    }


def cpu_model():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


def main():
    options = arguments()
    if options.tuned and any(os.environ.get(key) != value for key, value in TUNED.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **TUNED})
    torch.set_num_threads(options.threads)
    if options.serve:
        step = prepare(options.case[0], options.dtype[0], options.modulation[0], options)
        return serve(step, options.warmup)
    if not options.json:
        print(f"{cpu_model()}, torch {torch.__version__}, {options.threads} threads, {options.repeats} groups")
        print(f"{'case':<16} {'dtype':<6} {'modulation':<11} {'median ms':>10} {'min ms':>10} {'samples/s':>11}")
    for case in options.case:
        for dtype in options.dtype:
            for modulation in options.modulation if case != "dit-prior" else ["direct"]:
                r = measure(case, dtype, modulation, options)
                row = f"{r['ms_median']:>10.2f} {r['ms_min']:>10.2f} {r['samples_per_s']:>11.1f}"
                print(json.dumps(r) if options.json else f"{case:<16} {dtype:<6} {modulation:<11} {row}", flush=True)


if __name__ == "__main__":
    main()
