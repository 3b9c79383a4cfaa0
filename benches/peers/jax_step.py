"""Times one training step in JAX on the CPU: the network and the steps of torch_step.py, in the reference's direct form.

    python jax_step.py --case toy-prior --dtype f32

After a warm-up it prints "ready"; for each line of stdin it makes as many steps as the line says and prints their times in ms.
"""

import argparse
import math

import jax
import jax.numpy as jnp

from common import SIZES, serve

EMBEDDING = 256


def linear(key, inputs, outputs, std):
    return {"w": std * jax.random.normal(key, (inputs, outputs)), "b": jnp.zeros(outputs)}


def init(key, channels, width, depth):
    keys = iter(jax.random.split(key, 4 + 3 * depth + 2))
    std = width**-0.5
    blocks = [
        {
            "gamma": jnp.ones(width),
            "beta": jnp.zeros(width),
            "mlp0": linear(next(keys), width, width, std),
            "mlp2": linear(next(keys), width, width, std),
            "ada": linear(next(keys), width, 3 * width, 0.02),
        }
        for _ in range(depth)
    ]
    return {
        "time0": linear(next(keys), EMBEDDING, width, 0.02),
        "time2": linear(next(keys), width, width, 0.02),
        "input": linear(next(keys), channels, width, std),
        "blocks": blocks,
        "ada": linear(next(keys), width, 2 * width, 0.02),
        "output": linear(next(keys), width, channels, 0.02),
    }


def apply(layer, x):
    return x @ layer["w"] + layer["b"]


def norm(x):
    x = x.astype(jnp.float32)
    x = x - x.mean(axis=1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(axis=1, keepdims=True) + 1e-6)


def velocity(params, x, t, dtype):
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    half = EMBEDDING // 2
    phase = t[:, None] * jnp.exp(-math.log(10000.0) / half * jnp.arange(half))
    embedding = jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=1).astype(dtype)
    c = jax.nn.silu(apply(params["time2"], jax.nn.silu(apply(params["time0"], embedding))))
    h = apply(params["input"], x.astype(dtype))
    for block in params["blocks"]:
        shift, scale, gate = jnp.split(apply(block["ada"], c), 3, axis=1)
        m = (norm(h) * block["gamma"] + block["beta"]).astype(dtype) * (1 + scale) + shift
        h = h + gate * apply(block["mlp2"], jax.nn.silu(apply(block["mlp0"], m)))
    shift, scale = jnp.split(apply(params["ada"], c), 2, axis=1)
    return apply(params["output"], norm(h).astype(dtype) * (1 + scale) + shift).astype(jnp.float32)


def matching_loss(params, data, key, flow_mul, dtype):
    data = jnp.tile(data, (flow_mul, 1))
    key_t, key_noise = jax.random.split(key)
    t, noise = jax.random.uniform(key_t, (len(data),)), jax.random.normal(key_noise, data.shape)
    x_t = (1 - t[:, None]) * noise + t[:, None] * data
    return jnp.mean((velocity(params, x_t, t, dtype) - (data - noise)) ** 2)


def adam(p, m, v, g, count, lr, b1, b2, decay):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    step = lr / (1 - b1**count) * m / (jnp.sqrt(v / (1 - b2**count)) + 1e-8)
    return p * (1 - lr * decay) - step, m, v


def prior_step(state, data, key, flow_mul, dtype):
    params, m, v, ema, count = state
    loss, grads = jax.value_and_grad(matching_loss)(params, data, key, flow_mul, dtype)
    total = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grads)))
    clip, count = jnp.minimum(1.0, 1.0 / (total + 1e-6)), count + 1
    new = jax.tree.map(lambda p, m, v, g: adam(p, m, v, g * clip, count, 1e-4, 0.9, 0.95, 1e-4), params, m, v, grads)
    is_triple = lambda x: isinstance(x, tuple)
    params, m, v = (jax.tree.map(lambda triple: triple[i], new, is_leaf=is_triple) for i in range(3))
    ema = jax.tree.map(lambda e, p: e + 1e-4 * (p - e), ema, params)
    return (params, m, v, ema, count), loss


def align_step(params, state, key, flow_mul, dtype):
    y, m, v, count = state
    loss, g = jax.value_and_grad(lambda y: matching_loss(params, y, key, flow_mul, dtype))(y)
    y, m, v = adam(y, m, v, g, count + 1, 1e-2, 0.9, 0.999, 0.0)
    return (y, m, v, count + 1), loss


def prepare(case, dtype):
    size, stage = case.split("-")
    channels, width, depth, samples, flow_mul = SIZES[size]
    key = jax.random.key(0)
    params = init(key, channels, width, depth)
    data = jax.random.normal(key, (samples, channels))
    zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)
    if stage == "prior":
        copy = jax.tree.map(jnp.copy, params)
        state = (params, zeros(params), zeros(params), copy, jnp.zeros(()))
        compiled = jax.jit(lambda s, k: prior_step(s, data, k, flow_mul, dtype), donate_argnums=0)
    else:
        state = (data, zeros(data), zeros(data), jnp.zeros(()))
        compiled = jax.jit(lambda s, k: align_step(params, s, k, flow_mul, dtype))
    return compiled, state, key


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = [f"{size}-{stage}" for size in SIZES for stage in ("prior", "align")]
    parser.add_argument("--case", choices=cases, required=True)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--warmup", type=int, default=3)
    options = parser.parse_args()
    compiled, state, key = prepare(options.case, jnp.float32 if options.dtype == "f32" else jnp.bfloat16)
    count = 0

    def step():
        nonlocal state, count
        count += 1
        state, loss = compiled(state, jax.random.fold_in(key, count))
        return float(loss)

    serve(step, options.warmup)


if __name__ == "__main__":
    main()
