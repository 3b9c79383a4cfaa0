"""Runs the same steps in flowprior, PyTorch, JAX, candle and burn in turn and prints tables of ratios in Markdown.

    pip install torch numpy safetensors jax
    python benches/peers/compare.py                 # everything, about an hour on two cores
    python benches/peers/compare.py --only toy-prior parts --rounds 5

Each contestant warms up once and then waits; in each round every one makes some steps. A ratio is the median over rounds of ratios
within a round. "tuned" is the best of eager and compiled with oneDNN's products, the malloc settings and pinned threads of torch_step.py,
for the DiT too; "stock" is PyTorch as installed, eager. candle and burn (rust/) are built first where a case has them, which takes minutes
once; what is missing is left out.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from common import DIT
from torch_step import TUNED, cpu_model

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PYTHON = sys.executable
THREADS = 2

# DiT-S/2 of common.py. Its modulation has a row for each sample, so it has no `nodes`, and only PyTorch runs it beside us.
DIT_STEP = ["--preset", "reference-dit", "--set=optim.weight_decay=1e-4", "--set=optim.clip=1.0", f"--set=train.batch={DIT['batch']}"]

# case -> (arguments of `bench step`, forms of modulation, steps a round)
CASES = {
    "reference-prior": (["--preset", "reference-prior"], ["direct", "nodes"], 1),
    "reference-align": (["--preset", "reference-align", "--stage", "align"], ["direct", "nodes"], 1),
    "toy-prior": (["--preset", "toy-gaussians"], ["direct", "nodes"], 100),
    "toy-align": (["--preset", "toy-gaussians", "--stage", "align", "--set", "align.latents=256"], ["direct", "nodes"], 100),
    "dit-prior": (DIT_STEP, ["direct"], 1),
}


def build_rust_peers():
    """Returns {name: program} of those that could be built."""
    folder, programs = ROOT / "target/peers", {}
    for name in ["candle", "burn"]:
        command = ["cargo", "build", "--release", "--locked", "--features", name, "--bin", f"{name}_step", "--target-dir", str(folder)]
        if subprocess.run(command, cwd=HERE / "rust").returncode == 0:
            programs[name] = folder / "release" / f"{name}_step"
        else:
            print(f"left out: {name} was not built", file=sys.stderr)
    return programs


def build():
    subprocess.run(["cargo", "build", "--release", "--bin", "flowprior"], cwd=ROOT, check=True)
    built = ["cargo", "bench", "--bench", "parts", "--no-run", "--message-format", "json"]
    lines = subprocess.run(built, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    made = [json.loads(line) for line in lines if line.startswith("{")]
    return [m["executable"] for m in made if m.get("executable") and m["target"]["name"] == "parts"][-1]


class Ours:
    """A new process each time: it starts within a second."""

    def __init__(self, name, arguments):
        self.name, self.arguments = name, arguments
        self.memory = 0

    def times(self, steps):
        command = [str(ROOT / "target/release/flowprior"), "bench", "step", "--json", *self.arguments]
        warm_up = ["--warmup", str(max(2, steps // 5)), "--steps", str(steps + 1)]
        report = json.loads(subprocess.run(command + warm_up, capture_output=True, text=True, check=True).stdout)
        self.memory = max(self.memory, report["peak_rss_bytes"])
        return [report["ms_median"]]

    def close(self):
        pass


class Served:
    """A process that warms up once and then times as many steps as it is asked for."""

    def __init__(self, name, command, tuned):
        self.name = name
        env = {**os.environ, **(TUNED if tuned else {}), "RAYON_NUM_THREADS": str(THREADS)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, cwd=HERE, env=env, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )
        if self.process.stdout.readline().strip() != "ready":
            self.process.wait()
            raise RuntimeError(f"{name} did not start")

    def times(self, steps):
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    @property
    def memory(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def contestants(case, dtype, quick, rust):
    """Yields constructors of those that run `case` in `dtype`."""
    arguments, forms, _ = CASES[case]
    for form in forms:
        own = [*arguments, "--dtype", dtype, *(["--modulation", form] if "nodes" in forms else []), "--threads", str(THREADS)]
        yield f"ours {form}", lambda own=own, form=form: Ours(f"ours {form}", own)
    torch_dtype = "f32m" if dtype == "f32" else dtype
    step = [PYTHON, "torch_step.py", "--serve", "--case", case, "--threads", str(THREADS)]
    if dtype == "f32":
        stock = [*step, "--dtype", "f32", "--modulation", "direct"]
        yield "stock", lambda: Served("stock", stock, False)
    for form in forms:
        for compiled in [[]] if quick else [[], ["--compile"]]:
            name = f"tuned {form} {'compiled' if compiled else 'eager'}"
            own = [*step, "--dtype", torch_dtype, "--modulation", form, *compiled]
            yield name, lambda name=name, own=own: Served(name, own, True)
    if "nodes" not in forms:
        return
    yield "jax", lambda: Served("jax", [PYTHON, "jax_step.py", "--case", case, "--dtype", dtype], False)
    for name, program in rust.items() if dtype == "f32" else []:
        yield name, lambda name=name, program=program: Served(name, [str(program), case], False)


def race(makers, steps, rounds):
    """Returns {name: [median ms of each round]} and {name: peak bytes}; those that cannot start are left out."""
    runners = []
    for name, make in makers:
        try:
            runners.append(make())
        except (RuntimeError, OSError) as error:
            print(f"left out: {error}", file=sys.stderr)
    times = {r.name: [] for r in runners}
    for _ in range(rounds):
        for r in runners:
            times[r.name].append(statistics.median(r.times(steps)))
    memory = {r.name: r.memory for r in runners}
    for r in runners:
        r.close()
    return times, memory


def best(times, start):
    """Returns the fastest contestant whose name begins with `start`."""
    names = [n for n in times if n.startswith(start)]
    return min(names, key=lambda n: statistics.median(times[n]), default=None)


def ratio(times, peer, ours):
    if peer not in times or ours not in times:
        return None
    return statistics.median(p / o for p, o in zip(times[peer], times[ours]))


def cell(number, digits=2):
    return "-" if number is None else f"{number:.{digits}f}"


def steps_table(cases, dtypes, options, rust):
    print("| step | precision | ours `direct` | ours `nodes` | tuned PyTorch | stock | JAX | candle | burn |", end="")
    print(" stock / `direct` | tuned / `direct` | tuned / `nodes` | tuned with `nodes` / `nodes` | JAX / `nodes` | best Rust / `nodes` | memory: ours `direct`, `nodes`, tuned |")
    print("|" + " --- |" * 16)
    for case in cases:
        for dtype in dtypes:
            times, memory = race(contestants(case, dtype, options.quick, rust), CASES[case][2], options.rounds)
            tuned, same = best(times, "tuned direct"), best(times, "tuned nodes")
            ms = {n: f"{statistics.median(t):.{0 if statistics.median(t) > 100 else 2}f} ms" for n, t in times.items()}
            ratios = [
                ratio(times, "stock", "ours direct"),
                ratio(times, tuned, "ours direct"),
                ratio(times, tuned, "ours nodes"),
                ratio(times, same, "ours nodes"),
                ratio(times, "jax", "ours nodes"),
                min((r for r in (ratio(times, name, "ours nodes") for name in rust) if r), default=None),
            ]
            mib = [f"{memory[n] >> 20} MiB" if n in memory else "-" for n in ["ours direct", "ours nodes", tuned]]
            columns = [case, dtype, ms["ours direct"], ms.get("ours nodes", "-")]
            columns += [f"{ms[tuned]} ({tuned.split()[-1]})" if tuned else "-", *(ms.get(name, "-") for name in ["stock", "jax", "candle", "burn"])]
            columns += [cell(r) for r in ratios] + [", ".join(mib)]
            print("| " + " | ".join(columns) + " |", flush=True)
    print()


def parts_table(parts, options):
    peers = {}
    products = [(kind, dtype) for dtype in ["f32", "bf16"] for kind in ["nt", "nn", "tn"]]
    for part in ["loss", "optimizer", *(f"product-{kind}-{dtype}" for kind, dtype in products)]:
        for setting in ["eager", "compiled", "compiled as shipped"] if part == "loss" else ["eager"]:
            own = [PYTHON, "parts_torch.py", "--part", part, "--threads", str(THREADS), *(["--compile"] if setting != "eager" else [])]
            peers[f"torch {part} {setting}"] = Served(part, own, "shipped" not in setting)
    rounds = []
    for _ in range(options.rounds):
        rounds.append({name: statistics.median(peer.times(5)) for name, peer in peers.items()})
        for part in ["peaks", "product", "loss", "optimizer"]:
            rounds[-1].update(json.loads(subprocess.run([parts, part], capture_output=True, text=True, check=True).stdout))
    for peer in peers.values():
        peer.close()
    med = lambda f: statistics.median(f(r) for r in rounds)
    gflop = 2 * 2048 * 3072 * 1024 / 1e6
    print("| part | ours | beside | ratio |\n| --- | --- | --- | --- |")
    titles = {"nt": "x·Wᵀ", "nn": "dy·W", "tn": "dyᵀ·x"}
    for kind, dtype in products:
        ours = lambda r: r[f"product_{kind}_{dtype}_ms"]
        peak = lambda r: r[f"peak_{dtype}_gflops"]
        beside = [("oneDNN", lambda r: r[f"torch product-{kind}-{dtype} eager"])]
        if dtype == "f32":
            beside.append(("crate `gemm`, AVX-512", lambda r: r[f"product_{kind}_gemm_ms"]))
        title = f"product {titles[kind]}, 2048×3072×1024, {dtype}"
        print(f"| {title} | {med(lambda r: gflop / ours(r)):.0f} GFLOP/s | registers only: {med(peak):.0f} | {med(lambda r: gflop / ours(r) / peak(r)):.2f} of the peak |")
        for name, theirs in beside:
            print(f"| | | {name}: {med(lambda r: gflop / theirs(r)):.0f} GFLOP/s | {med(lambda r: theirs(r) / ours(r)):.2f} × |")
    for part, setting in [("loss", "compiled"), ("loss", "compiled as shipped"), ("loss", "eager"), ("optimizer", "eager")]:
        ours, peer = med(lambda r: r[f"{part}_ms"]), med(lambda r: r[f"torch {part} {setting}"])
        times = med(lambda r: r[f"torch {part} {setting}"] / r[f"{part}_ms"])
        title = {"loss": "loss part, 65,536 × 768", "optimizer": "AdamW + clip + EMA, 100 M"}[part]
        print(f"| {title} | {ours:.1f} ms | PyTorch {setting}: {peer:.1f} ms | {times:.2f} × |")
    # The loss part reads data and v, data once more, and writes x_t and dv: five tensors, where a copy moves two.
    print(f"| | | its bytes at the speed of a copy: {med(lambda r: 2.5 * r['copy_ms']):.1f} ms | {med(lambda r: r['loss_ms'] / (2.5 * r['copy_ms'])):.2f} of them |")
    print()


def scaling_tables(options):
    """Time per row, in µs, of a step of stage 1 with `nodes` in f32; one number changes, the others are 2048 rows, width 256, depth 6."""

    def step(rows=2048, width=256, depth=6, threads=THREADS):
        sets = {"train.batch": rows, "flow.flow_mul": 1, "model.width": width, "model.depth": depth}
        own = ["--preset", "reference-prior", "--modulation", "nodes", "--threads", str(threads)]
        own += [f"--set={key}={value}" for key, value in sets.items()]
        steps = max(1, min(20, 4096 // rows))
        return statistics.median(Ours("", own).times(steps)[0] for _ in range(3)) / rows * 1e3

    axes = {
        "rows": [2**k for k in range(8, 14 if options.quick else 18)],
        "width": [128, 256, 512, 1024, 2048],
        "depth": [2, 6, 12, 24],
        "threads": [1, 2],
    }
    for axis, values in axes.items():
        print(f"| {axis} | " + " | ".join(str(v) for v in values) + " |")
        print("|" + " --- |" * (len(values) + 1))
        print("| µs a row | " + " | ".join(f"{step(**{axis: v}):.4g}" for v in values) + " |\n", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*CASES, "parts", "scaling"], default=[*CASES, "parts", "scaling"])
    parser.add_argument("--dtype", nargs="+", choices=["f32", "bf16"], default=["f32", "bf16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="without torch.compile and without large batches")
    options = parser.parse_args()
    parts = build()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d")
    print(f"{cpu_model()}, {os.cpu_count()} cores, {THREADS} threads; {now}; commit {commit}; {options.rounds} rounds.\n", flush=True)
    cases = [case for case in CASES if case in options.only]
    if cases:
        rust = build_rust_peers() if any("nodes" in CASES[case][1] for case in cases) else {}
        steps_table(cases, options.dtype, options, rust)
    if "parts" in options.only:
        parts_table(parts, options)
    if "scaling" in options.only:
        scaling_tables(options)


if __name__ == "__main__":
    main()
