//! Planted bugs: textual changes to the correct kernels, or to what the host prepares for them.
//!
//! Written after the detectors, which were not changed for any of them. One kind of bug is not here, since the checks let it
//! pass: a fence missing between the arrival of the last block and its reads, where a barrier lies between them. NVIDIA's own
//! example of the idiom has none.

use cuda_emulator::report::Kind;

use crate::support::case::Case;

/// How a bug must show.
pub enum Catch {
    /// As a report of one of these kinds.
    Report(&'static [Kind]),
    /// As a wrong number: nothing in the kernel is illegal.
    WrongResult,
}

/// What the host does wrong.
pub type Change = fn(&mut Case);

/// A bug.
pub struct Mutation {
    pub stem: &'static str,
    pub name: &'static str,
    /// What is replaced by what; the text is there once.
    patch: Vec<(&'static str, &'static str)>,
    pub change: Change,
    pub catch: Catch,
}

impl Mutation {
    pub fn apply(&self, mut source: String) -> String {
        for (from, to) in &self.patch {
            assert_eq!(source.matches(from).count(), 1, "{}: `{from}` must be there once", self.name);
            source = source.replace(from, to);
        }
        source
    }
}

const RACE: Catch = Catch::Report(&[Kind::Race]);
const OUTSIDE: Catch = Catch::Report(&[Kind::OutOfBounds]);
const MISALIGNED: Catch = Catch::Report(&[Kind::Misaligned]);
const UNINITIALISED: Catch = Catch::Report(&[Kind::Uninitialised]);
const WARP: Catch = Catch::Report(&[Kind::IllegalWarpOperation]);
/// Who notices first that the other lanes never come depends on where they are.
const STUCK: Catch = Catch::Report(&[Kind::IllegalWarpOperation, Kind::DivergentBarrier, Kind::Deadlock]);
const BARRIER: Catch = Catch::Report(&[Kind::DivergentBarrier]);

const LIVELOCK: Catch = Catch::Report(&[Kind::Livelock]);

fn nothing(_: &mut Case) {}

/// A bug in the text of a kernel.
fn bug(
    stem: &'static str,
    name: &'static str,
    from: &'static str,
    to: &'static str,
    catch: Catch,
) -> Mutation {
    Mutation { stem, name, patch: vec![(from, to)], change: nothing, catch }
}

/// A bug of the host: the kernel is right.
fn host(stem: &'static str, name: &'static str, change: Change, catch: Catch) -> Mutation {
    Mutation { stem, name, patch: Vec::new(), change, catch }
}

/// Lists all planted bugs.
pub fn all() -> Vec<Mutation> {
    [
        matmul(),
        flash(),
        layer_norm(),
        reduce(),
        elementwise(),
        transpose(),
        softmax(),
        histogram(),
        scan(),
        split_k(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn matmul() -> Vec<Mutation> {
    let bug = |name, from, to, catch| bug("matmul", name, from, to, catch);
    vec![
        bug(
            "no barrier after the wait",
            "        __syncthreads();\n        if (slice",
            "        if (slice",
            RACE,
        ),
        bug("wait_group one too lax", "\"n\"(STAGES - 2)", "\"n\"(STAGES - 1)", RACE),
        bug("reads the next stage", "tiles_a[slice % STAGES]", "tiles_a[(slice + 1) % STAGES]", RACE),
        bug("fetches into the stage being read", "(slice + STAGES - 1) % STAGES)", "slice % STAGES)", RACE),
        bug("fetches before the barrier", FETCH_AFTER, FETCH_BEFORE, RACE),
        bug("no commit in the loop", COMMIT_IN_LOOP, "\n        unsigned from_a", RACE),
        bug("second stage never fetched", "if (stage < slices)", "if (stage < 1)", UNINITIALISED),
        bug("rows of a beyond the last", "first_row + row < M && k < K", "k < K", OUTSIDE),
        bug("columns of c beyond the last", "(row < M && column < N)", "(row < M)", OUTSIDE),
        bug(
            "source of a copy 2 bytes off",
            "(first_row + row) * K + k : a",
            "(first_row + row) * K + k + 1 : a",
            MISALIGNED,
        ),
        bug("b not transposed", ".x4.trans.shared", ".x4.shared", Catch::WrongResult),
        bug(
            "reader takes rows for twice as long",
            "from_a + a_chunk(warp_m",
            "from_a + b_chunk(warp_m",
            RACE,
        ),
    ]
}

const FETCH_AFTER: &str = "        __syncthreads();
        if (slice + STAGES - 1 < slices) { fetch(slice + STAGES - 1, (slice + STAGES - 1) % STAGES); }";
const FETCH_BEFORE: &str =
    "        if (slice + STAGES - 1 < slices) { fetch(slice + STAGES - 1, (slice + STAGES - 1) % STAGES); }
        __syncthreads();";
const COMMIT_IN_LOOP: &str = "        asm volatile(\"cp.async.commit_group;\" ::: \"memory\");

        unsigned from_a";

fn flash() -> Vec<Mutation> {
    let bug = |name, from, to, catch| bug("flash", name, from, to, catch);
    let last = "        __syncthreads(); // all have read the tiles before the next ones arrive\n";
    vec![
        bug("no barrier at the end of the loop", last, "", RACE),
        bug("wait for k too lax", "wait_group 1;", "wait_group 2;", RACE),
        bug(
            "wait for v left out",
            "        asm volatile(\"cp.async.wait_group 0;\" ::: \"memory\");\n",
            "",
            RACE,
        ),
        bug(
            "no barrier before v is read",
            "wait_group 0;\" ::: \"memory\");\n        __syncthreads();",
            "wait_group 0;\" ::: \"memory\");",
            RACE,
        ),
        bug(
            "keys beyond the last count",
            "lane % 4 * 2 + e < L ?",
            "lane % 4 * 2 + e < L + 64 ?",
            Catch::WrongResult,
        ),
        bug("rows of o beyond the last", "if (row < L) {", "if (row < L + 64) {", OUTSIDE),
        bug(
            "upper lanes missing in a mask",
            "__shfl_xor_sync(0xffffffffu, sum, 1)",
            "__shfl_xor_sync(0x0000ffffu, sum, 1)",
            WARP,
        ),
        bug(
            "half of the queries never loaded",
            "fetch(at_q, q, first);",
            "if (warp < 2) { fetch(at_q, q, first); }",
            UNINITIALISED,
        ),
    ]
}

fn layer_norm() -> Vec<Mutation> {
    let bug = |name, from, to, catch| bug("layer_norm", name, from, to, catch);
    vec![
        bug(
            "sums overwritten before all have read",
            "    __syncthreads(); // the last sum has been read by all\n",
            "",
            RACE,
        ),
        bug("sums read before the barrier", "    __syncthreads();\n    return", "    return", RACE),
        bug(
            "vector one element off",
            "(const float4*)(x + row * C)",
            "(const float4*)(x + row * C + 1)",
            MISALIGNED,
        ),
        bug(
            "loop runs once too often",
            "i < C / 4; i += 128) {\n        float4 v = from[i], w",
            "i <= C / 4; i += 128) {\n        float4 v = from[i], w",
            OUTSIDE,
        ),
        bug(
            "shuffle in a branch",
            "step /= 2) { value +=",
            "step /= 2) { if (threadIdx.x % 32 < 16) value +=",
            STUCK,
        ),
        bug(
            "last warp's sum not written",
            "if (threadIdx.x % 32 == 0) {",
            "if (threadIdx.x % 32 == 0 && threadIdx.x < 96) {",
            UNINITIALISED,
        ),
        bug(
            "barrier in a branch within the warp",
            "    __syncthreads();\n    return",
            "    if (threadIdx.x % 32 < 16) { __syncthreads(); }\n    return",
            BARRIER,
        ),
        bug(
            "mean by all, and wrong",
            "    if (threadIdx.x == 0) {\n        mean[row] = m;",
            "    if (threadIdx.x < 2) {\n        mean[row] = m + threadIdx.x;",
            RACE,
        ),
    ]
}

fn reduce() -> Vec<Mutation> {
    let bug = |name, from, to, catch| bug("reduce", name, from, to, catch);
    let step =
        "        if (thread < step) { sums[thread] += sums[thread + step]; }\n        __syncthreads();\n";
    let divergent = "        if (thread < step) { sums[thread] += sums[thread + step]; __syncthreads(); }\n";
    vec![
        bug("barrier only for those that add", step, divergent, STUCK),
        bug(
            "no barrier between the steps",
            step,
            "        if (thread < step) { sums[thread] += sums[thread + step]; }\n",
            RACE,
        ),
        bug(
            "no fence before the arrival",
            "        parts[blockIdx.x] = sums[0];\n        __threadfence();",
            "        parts[blockIdx.x] = sums[0];",
            RACE,
        ),
        bug(
            "`last` read before the barrier",
            "    }\n    __syncthreads();\n    if (last",
            "    }\n    if (last",
            RACE,
        ),
        bug("arrivals counted without an atomic", "atomicAdd(done, 1u) ==", "(*done)++ ==", RACE),
        bug("one part too many", "block < gridDim.x; block++", "block <= gridDim.x; block++", OUTSIDE),
        bug(
            "half of the sums never written",
            "    sums[thread] = sum;",
            "    if (thread < 128) { sums[thread] = sum; }",
            UNINITIALISED,
        ),
        bug(
            "total from every block",
            "if (last && thread == 0)",
            "if (thread == 0)",
            Catch::Report(&[Kind::Race, Kind::Uninitialised]),
        ),
    ]
}

fn elementwise() -> Vec<Mutation> {
    let shorter = |case: &mut Case| case.shorten("grad", 1);
    vec![
        bug("noise", "guard off by one", "if (i >= n)", "if (i > n)", OUTSIDE),
        bug(
            "noise",
            "16-byte store one element off",
            "*(float4*)(xt + i)",
            "*(float4*)(xt + i + 1)",
            MISALIGNED,
        ),
        bug("noise", "wrong round constant", "0xD2511F53u * c.x", "0xD2511F57u * c.x", Catch::WrongResult),
        bug("adamw", "guard off by one", "if (i >= n)", "if (i > n)", OUTSIDE),
        host("adamw", "array one element short", shorter, OUTSIDE),
        host(
            "adamw",
            "array freed before the launch",
            |case| case.free("grad"),
            Catch::Report(&[Kind::UseAfterFree]),
        ),
        host("adamw", "moments never initialised", |case| case.forget("second"), UNINITIALISED),
        bug(
            "gather",
            "rows 8 bytes off",
            "(long long)index[row] * C",
            "(long long)index[row] * C + 4",
            MISALIGNED,
        ),
        host("gather", "index one beyond the table", |case| case.set("index", 3, 20.0), OUTSIDE),
        bug("gather", "last chunk left out", "i < C / 8", "i < C / 8 - 1", Catch::WrongResult),
    ]
}

fn transpose() -> Vec<Mutation> {
    let bug = |name, from, to, catch| bug("transpose", name, from, to, catch);
    vec![
        bug("no barrier", "    __syncthreads();\n", "", RACE),
        bug(
            "columns of x beyond the last",
            "if (row + i < rows && column < columns) { tile",
            "if (row + i < rows) { tile",
            OUTSIDE,
        ),
        bug(
            "last rows of the tile never loaded",
            "i < 32; i += 8) {\n        if (row + i < rows &&",
            "i < 24; i += 8) {\n        if (row + i < rows &&",
            UNINITIALISED,
        ),
        bug(
            "one row beyond the tile",
            "tile[threadIdx.y + i][threadIdx.x] =",
            "tile[threadIdx.y + i + 1][threadIdx.x] =",
            OUTSIDE,
        ),
        bug(
            "two threads for one element",
            "tile[threadIdx.y + i][threadIdx.x] =",
            "tile[threadIdx.y + i][threadIdx.x / 2] =",
            RACE,
        ),
    ]
}

fn softmax() -> Vec<Mutation> {
    let bug = |name, from, to, catch| bug("softmax", name, from, to, catch);
    vec![
        bug(
            "no __syncwarp before the sums are read",
            "    sums[warp][lane] = sum;\n    __syncwarp();\n",
            "    sums[warp][lane] = sum;\n",
            RACE,
        ),
        bug(
            "no __syncwarp between the steps",
            "lane + step]; }\n        __syncwarp();\n",
            "lane + step]; }\n",
            RACE,
        ),
        bug("lane 0 missing in a mask", "0xffffffffu, top, step", "0xfffffffeu, top, step", WARP),
        bug(
            "lanes leave before a full shuffle",
            "    float top = -1e38f;",
            "    if (lane >= 20) { return; }\n    float top = -1e38f;",
            WARP,
        ),
        bug(
            "all warps share one row of sums",
            "__shared__ float sums[4][32];",
            "__shared__ float sums[1][32];",
            Catch::Report(&[Kind::OutOfBounds]),
        ),
    ]
}

fn histogram() -> Vec<Mutation> {
    let bug = |name, from, to, catch| bug("histogram", name, from, to, catch);
    vec![
        bug("counts without an atomic", "atomicAdd(&bins[x[i]], 1u);", "bins[x[i]]++;", RACE),
        bug("bins never set to zero", "    bins[threadIdx.x] = 0;\n", "", UNINITIALISED),
        bug("no barrier after the zeros", "= 0;\n    __syncthreads();\n", "= 0;\n", RACE),
        bug(
            "blocks add without an atomic",
            "atomicAdd(&counts[threadIdx.x], bins[threadIdx.x]);",
            "counts[threadIdx.x] += bins[threadIdx.x];",
            RACE,
        ),
        bug("one byte too many", "i < n; i +=", "i <= n; i +=", OUTSIDE),
    ]
}

fn scan() -> Vec<Mutation> {
    let bug = |name, from, to, catch| bug("scan", name, from, to, catch);
    let never = vec![("* 3], 1u);", "* 3], 0u);"), ("* 3], 2u);", "* 3], 0u);")];
    let silent = vec![
        ("= whole;\n        __threadfence();\n        atomicExch", "= whole;\n        atomicExch"),
        (
            "= sum + whole;\n        __threadfence();\n        atomicExch",
            "= sum + whole;\n        atomicExch",
        ),
    ];
    vec![
        Mutation {
            stem: "scan",
            name: "no fence before the flags",
            patch: silent,
            change: nothing,
            catch: RACE,
        },
        Mutation { stem: "scan", name: "flags never set", patch: never, change: nothing, catch: LIVELOCK },
        bug(
            "no fence after the flag",
            "while (flag == 0);\n            __threadfence();",
            "while (flag == 0);",
            RACE,
        ),
        bug(
            "totals read before the barrier",
            "= value; }\n    __syncthreads();\n    unsigned whole",
            "= value; }\n    unsigned whole",
            RACE,
        ),
        bug(
            "ticket read before the barrier",
            "1u); }\n    __syncthreads();\n",
            "1u); }\n",
            Catch::Report(&[Kind::Race, Kind::Uninitialised]),
        ),
        bug(
            "shuffle in a branch",
            "unsigned left = __shfl_up_sync(0xffffffffu, value, step);\n        if (lane >= step) { value += left; }",
            "if (lane >= step) { value += __shfl_up_sync(0xffffffffu, value, step); }",
            STUCK,
        ),
        bug("first block left out", "other >= 0; other--", "other > 0; other--", Catch::WrongResult),
    ]
}

fn split_k() -> Vec<Mutation> {
    let bug = |name, from, to, catch| bug("split_k", name, from, to, catch);
    vec![
        bug("tile overwritten while it is read", "sum); }\n        __syncthreads();\n", "sum); }\n", RACE),
        bug(
            "tile read before the barrier",
            "        __syncthreads();\n#pragma unroll",
            "#pragma unroll",
            RACE,
        ),
        bug(
            "no fence before the arrival",
            "        __threadfence(); // what the block has written comes before its arrival\n",
            "",
            RACE,
        ),
        bug(
            "arrival before all have written",
            "    __syncthreads();\n    const unsigned tile",
            "    const unsigned tile",
            RACE,
        ),
        bug("elements of a beyond the last", "k + x < end ? a[", "k + x < end + 16 ? a[", OUTSIDE),
        bug(
            "arrival at a wrong tile",
            "atomicAdd(&arrivals[tile], 1u)",
            "atomicAdd(&arrivals[0], 1u)",
            Catch::WrongResult,
        ),
    ]
}
