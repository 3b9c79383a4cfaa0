#!/usr/bin/env python3
"""Compiles the kernels of `kernels.py` with Triton into the PTX snapshots of `ptx/`, and lists them in `ptx/manifest.json`.

Needs no GPU and no PyTorch: `pip install triton`, then `python generate.py` in this folder. The snapshots are what the
compiler wrote, but for the folders in the line information of the one kernel that has some.
"""

import json
import os
import pathlib
import re

os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"  # a * b + c is one rounding, as Triton always did

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import kernels

TARGETS = (80, 86, 89)
OUT = pathlib.Path(__file__).parent / "ptx"

# The n-th factor of a grid axis is ceil(argument / constant).
TILES = [[["M", "BLOCK_M"], ["N", "BLOCK_N"]]]
ROWS = [[["rows", None]]]
ELEMENTS = [[["n", "BLOCK"]]]


def matmul(dtype, out, m, n, k, stages, warps, precision="tf32", aligned=True, transposed=False):
    """Describes a matrix product; `aligned`: sizes and strides are multiples of 16; `transposed`: so are a and b."""
    name = f"matmul_{dtype}_{m}x{n}x{k}_s{stages}" + ("" if aligned else "_ragged") + ("_t" if transposed else "")
    name += "_ieee" if precision == "ieee" else ""
    signature = dict(a=f"*{dtype}", b=f"*{dtype}", c=f"*{out}", M="i32", N="i32", K="i32", stride_am="i32",
                     stride_ak="i32", stride_bk="i32", stride_bn="i32")
    constants = dict(BLOCK_M=m, BLOCK_N=n, BLOCK_K=k, PRECISION=precision)
    ones = ("stride_am", "stride_bk") if transposed else ("stride_ak", "stride_bn")
    constants.update({one: 1 for one in ones})
    return dict(name=name, kernel="matmul", signature=signature, constants=constants, warps=warps, stages=stages,
                grid=TILES, aligned=None if aligned else ("a", "b", "c"))


def attention(name, signature, m, n, warps, stages, grid, d=64, **more):
    """Describes one of the attention kernels: heads are on the second axis of the grid."""
    constants = dict(D=d, BLOCK_M=m, **({"BLOCK_N": n} if n else {}), **more)
    causal = "_causal" if more.get("CAUSAL") else ""
    return dict(name=f"{name}_{m}x{n or 0}_d{d}{causal}", kernel=name, signature=signature, constants=constants,
                warps=warps, stages=stages, grid=[[["L", grid]], [["heads", None]]])


def variants():
    """Lists what is compiled: kernel, argument types, constants, options."""
    yield matmul("fp16", "fp16", 64, 64, 32, 2, 4)
    yield matmul("fp16", "fp32", 32, 64, 64, 4, 2, aligned=False)
    yield matmul("bf16", "bf16", 128, 64, 32, 3, 4)
    yield matmul("bf16", "bf16", 64, 128, 64, 4, 8)
    yield matmul("bf16", "fp32", 32, 32, 32, 3, 4, transposed=True)
    yield matmul("fp32", "fp32", 64, 64, 32, 3, 4)
    yield matmul("fp32", "fp32", 16, 32, 16, 2, 1, precision="ieee")
    rows = dict(warps=4, stages=2, grid=ROWS)
    yield dict(rows, name="softmax_fp32", kernel="softmax", constants=dict(BLOCK=1024), aligned=("y", "x"),
               signature=dict(y="*fp32", x="*fp32", C="i32"))
    yield dict(rows, name="softmax_bf16", kernel="softmax", constants=dict(BLOCK=256),
               signature=dict(y="*bf16", x="*bf16", C="i32"))
    for dtype, aligned in (("fp32", ("y", "x", "weight", "bias")), ("bf16", None)):
        yield dict(rows, name=f"layer_norm_{dtype}", kernel="layer_norm", constants=dict(BLOCK=256), aligned=aligned,
                   signature=dict(y=f"*{dtype}", mean="*fp32", rstd="*fp32", x=f"*{dtype}", weight="*fp32",
                                  bias="*fp32", C="i32", epsilon="fp32"))
    forward = dict(o="*fp16", lse="*fp32", q="*fp16", k="*fp16", v="*fp16", L="i32", scale="fp32")
    yield attention("attention_forward", forward, 64, 32, 4, 3, "BLOCK_M", CAUSAL=0)
    forward = {name: kind.replace("fp16", "bf16") for name, kind in forward.items()}
    yield attention("attention_forward", forward, 64, 64, 4, 2, "BLOCK_M", d=32, CAUSAL=1)
    delta = dict(delta="*fp32", o="*bf16", do="*bf16", L="i32")
    yield attention("attention_backward_delta", delta, 64, None, 4, 2, "BLOCK_M", d=32)
    inputs = dict(q="*bf16", k="*bf16", v="*bf16", do="*bf16", lse="*fp32", delta="*fp32", L="i32", scale="fp32")
    yield attention("attention_backward_kv", dict(dk="*bf16", dv="*bf16", **inputs), 32, 64, 4, 2, "BLOCK_N", d=32)
    yield attention("attention_backward_q", dict(dq="*bf16", **inputs), 64, 32, 4, 2, "BLOCK_M", d=32)
    flat = dict(warps=4, stages=2, grid=ELEMENTS)
    yield dict(flat, name="dropout", kernel="dropout", constants=dict(BLOCK=256), aligned=("y", "x"), lines=True,
               signature=dict(y="*fp32", x="*fp32", n="i32", p="fp32", seed="i32"))
    yield dict(flat, name="noise", kernel="noise", constants=dict(BLOCK=256), aligned=("y",),
               signature=dict(y="*fp32", n="i32", seed="i32"))
    yield dict(flat, name="reduce_atomic", kernel="reduce_atomic", constants=dict(BLOCK=256), aligned=("x",),
               signature=dict(total="*fp32", counts="*i32", top="*i32", x="*fp32", n="i32"))
    yield dict(flat, name="accumulate_locked", kernel="accumulate_locked", constants=dict(BLOCK_R=8, BLOCK_C=128),
               aligned=("sums", "lock", "x"), grid=[[["ROWS", "BLOCK_R"]]],
               signature=dict(sums="*fp32", lock="*i32", x="*fp32", ROWS="i32", C="i32"))
    yield dict(flat, name="cumulate", kernel="cumulate", constants=dict(BLOCK=256), aligned=("y", "order", "x"),
               grid=ROWS, signature=dict(y="*fp32", order="*fp32", x="*fp32", C="i32"))


def compile_one(variant, target):
    """Compiles one variant for one target and returns its entry of the manifest."""
    function = getattr(kernels, variant["kernel"])
    constants = variant["constants"]
    names = function.arg_names
    signature = {name: "constexpr" if name in constants else variant["signature"][name] for name in names}
    runtime = [name for name in names if name not in constants]
    # What the run-time may promise of its arguments: pointers and sizes that are multiples of 16.
    aligned = variant.get("aligned") or [n for n in runtime if signature[n][0] == "*" or signature[n] == "i32"]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    os.environ["TRITON_DISABLE_LINE_INFO"] = "0" if variant.get("lines") else "1"
    source = ASTSource(function, signature=signature, constexprs=constants, attrs=attributes)
    options = dict(num_warps=variant["warps"], num_stages=variant["stages"])
    made = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    file = f"{variant['name']}_sm{target}.ptx"
    (OUT / file).write_text(without_folders(made.asm["ptx"]))
    scratch = getattr(made.metadata, "global_scratch_size", 0) + getattr(made.metadata, "profile_scratch_size", 0)
    assert scratch == 0, "the tests pass null for scratch memory"
    return dict(file=file, name=variant["name"], kernel=variant["kernel"], target=target, num_warps=variant["warps"],
                num_stages=variant["stages"], shared=made.metadata.shared, grid=variant["grid"],
                constants={k: v for k, v in constants.items() if isinstance(v, int)}, divisible_by_16=list(aligned),
                arguments=[[name, signature[name]] for name in runtime],
                # Pointers to scratch memory, which the kernels here do not use: null.
                hidden_pointers=made.asm["ptx"].count(".param .u64") - sum(signature[n][0] == "*" for n in runtime))


def without_folders(ptx):
    """Removes the folders of this machine from line information: file names and DW_AT_comp_dir stay, shorter."""
    ptx = re.sub(r'(\.file\s+\d+ ")[^"]*/', r"\1", ptx)
    return re.sub(r"\.b8 \d+( +// DW_AT_comp_dir\n)(?:\.b8 \d+\n)*?\.b8 0\n", r".b8 46\1.b8 0\n", ptx)


def main():
    OUT.mkdir(exist_ok=True)
    for old in OUT.glob("*.ptx"):
        old.unlink()
    entries = [compile_one(variant, target) for variant in variants() for target in TARGETS]
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    (OUT / "manifest.json").write_text(f'{{"triton": "{triton.__version__}", "kernels": [\n{lines}\n]}}\n')
    print(f"{len(entries)} snapshots, {sum(f.stat().st_size for f in OUT.glob('*.ptx')) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
