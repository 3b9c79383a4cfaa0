"""Aligns 1,000 latents to trained priors of two mixtures in every variant of the loss, and tells where they end.

    python benches/experiments/variants.py [PROGRAM] [--runs runs] [--steps 5000] [--seed 42] [--toys gaussians,grid] [--only "NAME;NAME"]
        [--figure FILE]

Priors are those of the presets (`pretrain --preset toy-gaussians`, `toy-grid`), trained into RUNS/TOY-prior unless they are there.
For each toy and variant one line: mean -ln p of the latents (in brackets: of data), spread over sigma, fewest and most latents at a mode,
share within three sigma, mean sliced distance from data. The same of as many draws of the data come first. FILE is one PNG with all latents.
"""

import argparse
import json
import math
import pathlib
import random
import struct
import subprocess
import zlib

FIFTH = ["align.repulsion=1", "align.repulsion_k=5"]
LIKELIHOOD = ["flow.weight=likelihood", "flow.weight_clip=0.98"]
COSINE = ["optim.schedule.kind=cosine", "optim.schedule.min_lr_ratio=0.01"]
COOLED = ["align.repulsion=1", "align.repulsion_start=20", "align.repulsion_cooling=2000"]
SLICED = ["align.sliced_wasserstein=25", "align.projections=32", "align.targets=1"]
VARIANTS = {
    "uniform, full (the paper)": ["flow.weight=uniform"],
    "uniform, detached": ["flow.weight=uniform", "align.gradient=detached", "align.unsound=true"],
    "likelihood, full": LIKELIHOOD,
    "kl, detached": ["flow.weight=kl", "flow.weight_clip=0.98", "align.gradient=detached"],
    "likelihood + divergence": [*LIKELIHOOD, "align.divergence=1"],
    "likelihood + repulsion": [*LIKELIHOOD, "align.repulsion=1"],
    "likelihood + repulsion, cosine": [*LIKELIHOOD, "align.repulsion=1", *COSINE],
    "likelihood + repulsion (k = 5), cosine": [*LIKELIHOOD, *FIFTH, *COSINE],
    "likelihood + repulsion + sliced, cosine": [*LIKELIHOOD, "align.repulsion=1", *SLICED, *COSINE],
    "likelihood + repulsion (k = 5) + sliced, cosine": [*LIKELIHOOD, *FIFTH, *SLICED, *COSINE],
    "likelihood + cooled repulsion, cosine": [*LIKELIHOOD, *COOLED, *COSINE],
}


def run(program, *args):
    return subprocess.run([program, *map(str, args)], check=True, capture_output=True, text=True).stdout


def trained_prior(options, toy):
    place = options.runs / f"{toy}-prior"
    if not (place / "prior.safetensors").exists():
        run(options.program, "pretrain", "--preset", f"toy-{toy}", "--threads", 1, "--run", place, "-q")
    return place


def aligned(options, toy, name, sets):
    """Aligns once, unless it was done before; returns the run folder."""
    place = options.runs / f"{toy}-{name.replace(' ', '').replace(',', '-').replace('(thepaper)', '')}-{options.seed}"
    if not (place / "done.json").exists():
        sets = ["train.figures=false", f"train.checkpoint_every={options.steps}", f"seed={options.seed}", *sets]
        sets = [part for one in sets for part in ("--set", one)]
        run(options.program, "align", "--preset", f"toy-{toy}", "--threads", 1, "--prior", trained_prior(options, toy),
            "--steps", options.steps, "--run", place, "-q", *sets)
        (place / "done.json").write_text(run(options.program, "eval", place, "--json"))
    return place


def latents(place):
    """Reads the latents of the newest checkpoint, a safetensors file: its header's length, the header, the numbers."""
    file = max((place / "checkpoints").glob("*/model.safetensors"))
    data = file.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    begin, end = json.loads(data[8:8 + size])["latents"]["data_offsets"]
    values = struct.unpack(f"<{(end - begin) // 4}f", data[8 + size + begin:8 + size + end])
    return list(zip(values[::2], values[1::2]))


def modes(toy):
    if toy == "grid":
        sides = [side / 1.122497 for side in (-1.5, -0.5, 0.5, 1.5)]
        return [(x, y) for x in sides for y in sides], 0.1 / 1.122497
    angles = [2 * math.pi * k / 5 for k in range(5)]
    return [(3 * math.cos(a) / 2.142429, 3 * math.sin(a) / 2.142429) for a in angles], 0.3 / 2.142429


def of_data(toy):
    """What as many draws of the data would show."""
    means, sigma = modes(toy)
    draw = random.Random(1)
    counts = [0] * len(means)
    for _ in range(1000):
        counts[draw.randrange(len(means))] += 1
    points = [(m[0] + draw.gauss(0, sigma), m[1] + draw.gauss(0, sigma)) for m, n in zip(means, counts) for _ in range(n)]
    return points, counts


SIDE, GAP = 150, 6


def panel(points, extent):
    """Draws points in a square of white, dark blue where they are, darker where they are many."""
    pixels = [[255] * SIDE for _ in range(SIDE)]
    for x, y in points:
        column, row = (int((v + extent) / (2 * extent) * SIDE) for v in (x, -y))
        for i in range(2):
            for j in range(2):
                if 0 <= row + i < SIDE and 0 <= column + j < SIDE:
                    pixels[row + i][column + j] = max(0, pixels[row + i][column + j] - 90)
    return pixels


def write_png(path, rows_of_panels):
    """Writes panels in rows and columns as one PNG of grey levels."""
    columns = max(map(len, rows_of_panels))
    width = columns * (SIDE + GAP) - GAP
    lines = []
    for panels in rows_of_panels:
        for y in range(SIDE):
            line = []
            for i in range(columns):
                line += (panels[i][y] if i < len(panels) else [255] * SIDE) + [200] * (GAP if i < columns - 1 else 0)
            lines.append(bytes([0, *line]))
        lines += [bytes([0] + [200] * width)] * GAP
    lines = lines[:-GAP]
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, len(lines), 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"".join(lines), 9)) + chunk(b"IEND", b"")
    pathlib.Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", nargs="?", default="target/release/flowprior")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--toys", default="gaussians,grid")
    parser.add_argument("--only", default="", help="names of variants, between semicolons")
    parser.add_argument("--figure", type=pathlib.Path)
    options = parser.parse_args()
    chosen = [name for name in VARIANTS if not options.only or name in options.only.split(";")]
    options.runs.mkdir(parents=True, exist_ok=True)
    print("| toy | variant | mean NLL (data) | spread/sigma | fewest, most at a mode | within 3 sigma | sliced W2 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    rows = []
    for toy in options.toys.split(","):
        points, counts = of_data(toy)
        print(f"| {toy} | as many draws of the data | | 1 | {min(counts)}, {max(counts)} | 0.989 | |", flush=True)
        panels = [panel(points, 2.2)]
        for name in chosen:
            place = aligned(options, toy, name, VARIANTS[name])
            found = json.loads((place / "done.json").read_text())
            at = found["occupancy"]
            print(f"| {toy} | {name} | {found['nll']:.3f} ({found['nll_data']:.3f}) | {found['spread']:.3f} | {at['min']}, {at['max']} "
                  f"| {at['within_three_sigma']:.3f} | {found['sliced_w2']:.4f} |", flush=True)
            panels.append(panel(latents(place), 2.2))
        rows.append(panels)
    if options.figure:
        write_png(options.figure, rows)


if __name__ == "__main__":
    main()
