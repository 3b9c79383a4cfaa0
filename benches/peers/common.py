"""What the steps of all peers share: their sizes, and how compare.py asks them for times, each in a process of its own."""

import json
import sys
import time

# name -> (channels, width, depth, samples, flow_mul)
SIZES = {"reference": (32, 1024, 6, 512, 4), "toy": (2, 128, 4, 256, 1)}
# DiT-S/2 on latents of 4 x 32 x 32 with the classes of ImageNet
DIT = {"width": 384, "depth": 12, "heads": 6, "image": (4, 32, 32), "patch": 2, "classes": 1000, "batch": 8}


def serve(step, warmup):
    """Times steps on request: one line of numbers, in milliseconds, for each line that asks for some."""
    for _ in range(warmup):
        step()
    print("ready", flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            step()
            times.append((time.perf_counter() - start) * 1e3)
        print(json.dumps(times), flush=True)
