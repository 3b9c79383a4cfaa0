"""A class-conditional DiT on the latents of either autoencoder: what its samples are worth once decoded.

A classifier of images, trained here and never shown a sample, says how many samples are of the class that was asked for, and
its features are the fixed space of the Frechet distance to the test images.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import run as experiment_module

COUNT = 2000


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64 * 49, 64), nn.ReLU(),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.body(x))


def read_idx(path):
    import gzip

    raw = gzip.open(path).read()
    shape = [int.from_bytes(raw[4 * i + 4 : 4 * i + 8], "big") for i in range(raw[3])]
    return np.frombuffer(raw[4 * raw[3] + 4 :], np.uint8).reshape(shape)


def fashion(folder, prefix):
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz").astype(np.float32) / 127.5 - 1
    return torch.from_numpy(images[:, None]), torch.from_numpy(read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz").astype(np.int64))


def classifier(folder, file):
    torch.manual_seed(0)
    net = Classifier()
    if file.exists():
        net.load_state_dict(torch.load(file))
        return net
    x, y = fashion(folder, "train")
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for epoch in range(4):
        for ids in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            F.cross_entropy(net(x[ids]), y[ids]).backward()
            optimizer.step()
    torch.save(net.state_dict(), file)
    return net


@torch.no_grad()
def look(net, x):
    features = torch.cat([net.body(part) for part in x.split(500)])
    return features.double().numpy(), net.head(features).argmax(1)


def frechet(a, b):
    """||mean a - mean b||^2 + tr(A + B - 2 (A B)^(1/2)), by the eigenvalues of the symmetric A^(1/2) B A^(1/2)."""
    (ma, ca), (mb, cb) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(ca)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cb @ root).clip(0)).sum()
    return ((ma - mb) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * cross


def compare(experiment):
    call, train, folder = experiment_module.call, experiment_module.train, experiment.args.fashion
    net = classifier(folder, experiment.out / "classifier.pt").eval()
    x, y = fashion(folder, "t10k")
    real, known = look(net, x)
    print(f"the classifier knows {(known == y).double().mean():.4f} of the test images")
    print("| latents | of the asked class | Frechet distance | the same of reconstructed test images |", "|" + " --- |" * 4, sep="\n")
    pair = experiment.pair()
    for name in ("aligned", "unaligned"):
        align = pair[name]
        latents, decoded = experiment.out / f"latents-{name}", experiment.out / f"decoded-{name}.npy"
        if not latents.exists():
            call("encode", align, "--data", experiment.images(), "--out", latents)
        dit = train("pretrain", "downstream.toml", experiment.out / f"dit-{name}", [f"data.path='{latents}'", *experiment.common])
        if not decoded.exists():
            samples = experiment.out / f"samples-{name}.npy"
            call("sample", dit, "--count", COUNT, "--guidance", 1.5, "--steps", 25, "--out", samples)
            call("decode", align, samples, "--out", decoded)
        again = experiment.out / f"again-{name}.npy"
        if not again.exists():
            test = experiment.out / f"test-latents-{name}"
            call("encode", align, "--data", experiment.images("test"), "--out", test)
            call("decode", align, test, "--out", again)
        made, rebuilt = (torch.from_numpy(np.load(file)).reshape(-1, 1, 28, 28) for file in (decoded, again))
        features, classes = look(net, made)
        asked = torch.arange(len(made)) % 10  # sample i is of class i modulo their number
        share = (classes == asked).double().mean()
        print(f"| {name} | {share:.4f} | {frechet(features, real):.3f} | {frechet(look(net, rebuilt)[0], real):.3f} |")
