"""Triton kernels that the emulator must run right: written for this project, compiled by `generate.py`.

Letters: M, N, K sizes of a matrix product; L length of a sequence, D width of a head.
All matrices are row-major and dense unless strides are given.
"""

import triton
import triton.language as tl


@triton.jit
def matmul(a, b, c, M, N, K, stride_am, stride_ak, stride_bk, stride_bn,
           BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr):
    """c = a b, accumulated in f32. One program makes one tile of c; programs walk down the columns of tiles."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    tile = tl.program_id(0)
    rows = (tile % tiles_m) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = (tile // tiles_m) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    a_tile = a + rows[:, None] * stride_am + depth[None, :] * stride_ak
    b_tile = b + depth[:, None] * stride_bk + columns[None, :] * stride_bn
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        left = K - k
        x = tl.load(a_tile, mask=(rows[:, None] < M) & (depth[None, :] < left), other=0.0)
        y = tl.load(b_tile, mask=(depth[:, None] < left) & (columns[None, :] < N), other=0.0)
        sums = tl.dot(x, y, sums, input_precision=PRECISION)
        a_tile += BLOCK_K * stride_ak
        b_tile += BLOCK_K * stride_bk
    c_tile = c + rows[:, None] * N + columns[None, :]
    tl.store(c_tile, sums.to(c.dtype.element_ty), mask=(rows[:, None] < M) & (columns[None, :] < N))


@triton.jit
def softmax(y, x, C, BLOCK: tl.constexpr):
    """y = softmax of each row of x: (rows, C). One program for each row."""
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    values = tl.load(x + row * C + columns, mask=columns < C, other=-float("inf")).to(tl.float32)
    powers = tl.exp(values - tl.max(values, axis=0))
    tl.store(y + row * C + columns, powers / tl.sum(powers, axis=0), mask=columns < C)


@triton.jit
def layer_norm(y, mean, rstd, x, weight, bias, C, epsilon, BLOCK: tl.constexpr):
    """y = (x - mean) rstd weight + bias over each row of x: (rows, C), in three passes over the row."""
    row = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, C, BLOCK):
        columns = start + lanes
        sums += tl.load(x + row * C + columns, mask=columns < C, other=0.0).to(tl.float32)
    m = tl.sum(sums, axis=0) / C
    squares = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, C, BLOCK):
        columns = start + lanes
        value = tl.load(x + row * C + columns, mask=columns < C, other=0.0).to(tl.float32)
        value = tl.where(columns < C, value - m, 0.0)
        squares += value * value
    r = 1 / tl.sqrt(tl.sum(squares, axis=0) / C + epsilon)
    tl.store(mean + row, m)
    tl.store(rstd + row, r)
    for start in range(0, C, BLOCK):
        columns = start + lanes
        inside = columns < C
        value = tl.load(x + row * C + columns, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(weight + columns, mask=inside, other=0.0)
        o = tl.load(bias + columns, mask=inside, other=0.0)
        tl.store(y + row * C + columns, (value - m) * r * w + o, mask=inside)


@triton.jit
def attention_forward(o, lse, q, k, v, L, scale, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                      CAUSAL: tl.constexpr):
    """o = softmax(scale q kT) v for q, k, v: (heads, L, D); lse: (heads, L), the logarithm of each row's sum."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    base = tl.program_id(1) * L * D
    columns = tl.arange(0, BLOCK_N)
    width = tl.arange(0, D)
    queries = tl.load(q + base + rows[:, None] * D + width[None, :], mask=rows[:, None] < L, other=0.0)
    top = tl.full((BLOCK_M,), -float("inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    sums = tl.zeros((BLOCK_M, D), dtype=tl.float32)
    last = tl.minimum(L, (tl.program_id(0) + 1) * BLOCK_M) if CAUSAL else L
    for start in range(0, last, BLOCK_N):
        keys = start + columns
        kt = tl.load(k + base + keys[None, :] * D + width[:, None], mask=keys[None, :] < L, other=0.0)
        scores = tl.dot(queries, kt) * scale
        seen = keys[None, :] < L
        if CAUSAL:
            seen = seen & (keys[None, :] <= rows[:, None])
        scores = tl.where(seen, scores, -float("inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        powers = tl.exp(scores - new_top[:, None])
        shrink = tl.exp(top - new_top)
        total = total * shrink + tl.sum(powers, axis=1)
        values = tl.load(v + base + keys[:, None] * D + width[None, :], mask=keys[:, None] < L, other=0.0)
        sums = tl.dot(powers.to(values.dtype), values, sums * shrink[:, None])
        top = new_top
    out = o + base + rows[:, None] * D + width[None, :]
    tl.store(out, (sums / total[:, None]).to(o.dtype.element_ty), mask=rows[:, None] < L)
    tl.store(lse + tl.program_id(1) * L + rows, top + tl.log(total), mask=rows < L)


@triton.jit
def attention_backward_delta(delta, o, do, L, D: tl.constexpr, BLOCK_M: tl.constexpr):
    """delta = the sum of o do over each row: (heads, L)."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    at = tl.program_id(1) * L * D + rows[:, None] * D + tl.arange(0, D)[None, :]
    product = tl.load(o + at, mask=rows[:, None] < L, other=0.0).to(tl.float32)
    product *= tl.load(do + at, mask=rows[:, None] < L, other=0.0).to(tl.float32)
    tl.store(delta + tl.program_id(1) * L + rows, tl.sum(product, axis=1), mask=rows < L)


@triton.jit
def attention_backward_kv(dk, dv, q, k, v, do, lse, delta, L, scale, D: tl.constexpr, BLOCK_M: tl.constexpr,
                          BLOCK_N: tl.constexpr):
    """dk and dv of full attention; one program holds BLOCK_N keys and walks over the queries."""
    keys = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    base = tl.program_id(1) * L * D
    width = tl.arange(0, D)
    held = base + keys[:, None] * D + width[None, :]
    key = tl.load(k + held, mask=keys[:, None] < L, other=0.0)
    value = tl.load(v + held, mask=keys[:, None] < L, other=0.0)
    sums_k = tl.zeros((BLOCK_N, D), dtype=tl.float32)
    sums_v = tl.zeros((BLOCK_N, D), dtype=tl.float32)
    for start in range(0, L, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        inside = rows < L
        at = base + rows[:, None] * D + width[None, :]
        query = tl.load(q + at, mask=inside[:, None], other=0.0)
        grad = tl.load(do + at, mask=inside[:, None], other=0.0)
        row_lse = tl.load(lse + tl.program_id(1) * L + rows, mask=inside, other=0.0)
        row_delta = tl.load(delta + tl.program_id(1) * L + rows, mask=inside, other=0.0)
        powers = tl.exp(tl.dot(key, tl.trans(query)) * scale - row_lse[None, :])
        powers = tl.where(inside[None, :], powers, 0.0)
        sums_v = tl.dot(powers.to(grad.dtype), grad, sums_v)
        slopes = powers * (tl.dot(value, tl.trans(grad)) - row_delta[None, :]) * scale
        sums_k = tl.dot(slopes.to(query.dtype), query, sums_k)
    tl.store(dk + held, sums_k.to(dk.dtype.element_ty), mask=keys[:, None] < L)
    tl.store(dv + held, sums_v.to(dv.dtype.element_ty), mask=keys[:, None] < L)


@triton.jit
def attention_backward_q(dq, q, k, v, do, lse, delta, L, scale, D: tl.constexpr, BLOCK_M: tl.constexpr,
                         BLOCK_N: tl.constexpr):
    """dq of full attention; one program holds BLOCK_M queries and walks over the keys."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    base = tl.program_id(1) * L * D
    width = tl.arange(0, D)
    inside = rows < L
    held = base + rows[:, None] * D + width[None, :]
    query = tl.load(q + held, mask=inside[:, None], other=0.0)
    grad = tl.load(do + held, mask=inside[:, None], other=0.0)
    row_lse = tl.load(lse + tl.program_id(1) * L + rows, mask=inside, other=0.0)
    row_delta = tl.load(delta + tl.program_id(1) * L + rows, mask=inside, other=0.0)
    sums = tl.zeros((BLOCK_M, D), dtype=tl.float32)
    for start in range(0, L, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        at = base + keys[:, None] * D + width[None, :]
        key = tl.load(k + at, mask=keys[:, None] < L, other=0.0)
        value = tl.load(v + at, mask=keys[:, None] < L, other=0.0)
        powers = tl.exp(tl.dot(query, tl.trans(key)) * scale - row_lse[:, None])
        powers = tl.where(keys[None, :] < L, powers, 0.0)
        slopes = powers * (tl.dot(grad, tl.trans(value)) - row_delta[:, None]) * scale
        sums = tl.dot(slopes.to(key.dtype), key, sums)
    tl.store(dq + held, sums.to(dq.dtype.element_ty), mask=inside[:, None])


@triton.jit
def dropout(y, x, n, p, seed, BLOCK: tl.constexpr):
    """y = x / (1 - p) where a Philox number of (seed, index) is above p, else 0."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n)
    keep = tl.rand(seed, at) > p
    tl.store(y + at, tl.where(keep, value / (1 - p), 0.0), mask=at < n)


@triton.jit
def noise(y, n, seed, BLOCK: tl.constexpr):
    """y = standard normal numbers of Philox and Box-Muller."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.randn(seed, at), mask=at < n)


@triton.jit
def reduce_atomic(total, counts, top, x, n, BLOCK: tl.constexpr):
    """Adds the sum of x to total, counts the elements by the lowest 4 bits of their whole part, and finds the maximum."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    value = tl.load(x + at, mask=inside, other=0.0)
    tl.atomic_add(total, tl.sum(value, axis=0))
    whole = value.to(tl.int32)
    tl.atomic_add(counts + (whole & 15), 1, mask=inside)
    tl.atomic_max(top, tl.max(tl.where(inside, whole, -2147483648), axis=0))


@triton.jit
def accumulate_locked(sums, lock, x, ROWS, C, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """sums += the sum of BLOCK_R rows of x, under a lock in global memory that all programs share."""
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.arange(0, BLOCK_C)
    inside = (rows[:, None] < ROWS) & (columns[None, :] < C)
    part = tl.sum(tl.load(x + rows[:, None] * C + columns[None, :], mask=inside, other=0.0), axis=0)
    while tl.atomic_cas(lock, 0, 1) == 1:
        pass
    part += tl.load(sums + columns, mask=columns < C, other=0.0)
    tl.store(sums + columns, part, mask=columns < C)
    tl.debug_barrier()
    tl.atomic_xchg(lock, 0)


@triton.jit
def cumulate(y, order, x, C, BLOCK: tl.constexpr):
    """y = running sums of each row of x: (rows, C); order = the row sorted, C being equal to BLOCK."""
    at = tl.program_id(0) * C + tl.arange(0, BLOCK)
    value = tl.load(x + at)
    tl.store(y + at, tl.cumsum(value, axis=0))
    tl.store(order + at, tl.sort(value))
