"""Compares the forms of modulation on a toy: does sharing one t among rows cost anything that time does not show?

    python benches/experiments/groups.py [PROGRAM] [--steps 1000] [--seeds 5] [--preset toy-gaussians] [--time uniform]

Trains the same prior with `nodes` (a t of its own for each row) and with `groups` (one t for 256/G consecutive rows) on as many
samples, from several seeds, and prints one table:
- loss of a step: mean and variance over the last fifth of the steps (every step is logged);
- gradient: the mean square of its norm over the same steps. The mean gradient is close to zero there, so this is its variance;
- loss on fresh data of the last weights, less the floor that no network passes: mean and standard error over seeds.
Times are not compared here: see `bench step --modulation`.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile

FORMS = ["nodes", "groups=64", "groups=16", "groups=4"]


def run(program, *args):
    return subprocess.run([program, *map(str, args)], check=True, capture_output=True, text=True).stdout


def trained(options, form, seed, place):
    """Trains once; returns loss mean, loss variance, mean square of the gradient norm, and loss above the floor."""
    sets = [f"flow.time={options.time}", "train.log_every=1", "train.figures=false", f"train.checkpoint_every={options.steps}"]
    sets = [part for one in sets for part in ("--set", one)]
    run(options.program, "pretrain", "--preset", options.preset, "--steps", options.steps, "--seed", seed,
        "--modulation", form, "--run", place, "-q", *sets)
    records = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in records if r["kind"] == "train" and r["step"] > options.steps * 4 // 5]
    losses = [r["loss"] for r in steps]
    found = json.loads(run(options.program, "eval", place, "--json", "--draws", 2, "--samples", 64))
    square = statistics.fmean(r["grad_norm"] ** 2 for r in steps)
    return statistics.fmean(losses), statistics.variance(losses), square, found["loss_weights"] - (found["loss_floor"] or 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", nargs="?", default="target/release/flowprior")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--preset", default="toy-gaussians")
    parser.add_argument("--time", default="stratified", help="how times are drawn: stratified or uniform")
    options = parser.parse_args()
    print("| form | loss of a step | its variance | gradient variance | fresh loss above the floor |")
    print("| --- | --- | --- | --- | --- |")
    for form in FORMS:
        with tempfile.TemporaryDirectory() as folder:
            runs = [trained(options, form, seed, pathlib.Path(folder) / str(seed)) for seed in range(options.seeds)]
        loss, variance, square, above = zip(*runs)
        error = statistics.stdev(above) / len(above) ** 0.5 if len(above) > 1 else float("nan")
        means = [statistics.fmean(values) for values in (loss, variance, square, above)]
        print(f"| `{form}` | {means[0]:.4f} | {means[1]:.5f} | {means[2]:.4f} | {means[3]:.4f} ± {error:.4f} |", flush=True)


if __name__ == "__main__":
    main()
