//! Every opcode form that NVRTC and Triton are known to emit, and those that inline PTX may use.

use cuda_emulator::exec::{self, Config};
use cuda_emulator::memory::DeviceMemory;

use super::{code, kernel, module, refusal, text};

/// Opcode, operands, modifiers of each form. `T` is a register of the last type, `S` one of the type before it, `W` one of
/// twice the last type's width; all else is as it stands.
type Family = (&'static str, &'static str, &'static str);

/// The table of what NVRTC emits for sm_80, for sm_100 and with fast mathematics.
const COMPILED: &[Family] = &[
    ("abs", "T, T", "f32 ftz.f32 s32 f64 s16 s64 f16 bf16 f16x2 bf16x2"),
    ("activemask", "T", "b32"),
    (
        "add",
        "T, T, T",
        "f32 ftz.f32 rn.f32 s32 s64 u64 u32 s16 u16 f64 rn.f64 sat.f32 sat.s32 rn.ftz.sat.f32 rz.f32 cc.u32 cc.s64",
    ),
    ("addc", "T, T, T", "u32 cc.u32 cc.s32 u64 cc.u64"),
    ("and", "T, T, T", "b16 b32 b64 pred"),
    (
        "atom",
        "T, [%rd1], T",
        "global.add.f32 global.add.u32 global.inc.u32 relaxed.gpu.global.add.f32 relaxed.gpu.global.add.u32",
    ),
    ("bar", "0", "sync"),
    ("bfi", "T, T, T, %r1, %r2", "b32 b64"),
    ("bfe", "T, T, %r1, %r2", "u32 s32 u64 s64"),
    ("bfind", "%r1, T", "shiftamt.u32 u32 s32 u64 shiftamt.s64"),
    ("brev", "T, T", "b32 b64"),
    ("clz", "%r1, T", "b32 b64"),
    ("popc", "%r1, T", "b32 b64"),
    ("copysign", "T, T, T", "f32 f64"),
    ("cos", "T, T", "approx.ftz.f32 approx.f32"),
    ("cp", "", "async.commit_group async.wait_all"),
    ("cp", "2", "async.wait_group"),
    (
        "cp",
        "[%r1], [%rd1], 16",
        "async.cg.shared.global async.ca.shared::cta.global async.cg.shared.global.L2::128B",
    ),
    (
        "cvt",
        "T, S",
        "rn.bf16.f32 rn.f32.f64 rn.f32.s32 rn.f32.u32 rn.f64.s64 rni.f32.f32 rni.s32.f32 rzi.f32.f32 rzi.s32.f32 s64.s32 sat.f32.f32 u16.u32 u32.u16 u32.u64 u64.u32 f32.bf16 rna.tf32.f32",
    ),
    ("cvt", "%rs1, %r1", "u16.u32 u16.u8 u16.s8 s8.s32 u8.u32"),
    ("cvt", "%r1, %f1, %f2", "rn.bf16x2.f32 rn.f16x2.f32 rz.bf16x2.f32 rn.relu.bf16x2.f32 rn.relu.f16x2.f32"),
    (
        "cvta",
        "T, T",
        "to.global.u64 global.u64 to.shared.u64 shared.u64 local.u64 to.local.u64 param.u64 const.u64 to.const.u64",
    ),
    (
        "div",
        "T, T, T",
        "approx.ftz.f32 rn.f32 s32 u32 u64 s64 s16 full.f32 full.ftz.f32 approx.f32 rn.f64 rn.ftz.f32 rz.f32",
    ),
    ("ex2", "T, T", "approx.f32 approx.ftz.f32 approx.f16 approx.f16x2 approx.ftz.bf16 approx.ftz.bf16x2"),
    (
        "fma",
        "T, T, T, T",
        "rm.f32 rn.f32 rn.ftz.f32 rn.f64 rz.f32 rp.f32 rn.sat.f32 rn.f16 rn.f16x2 rn.bf16 rn.bf16x2 rn.relu.f16x2 rn.relu.bf16",
    ),
    (
        "ld",
        "T, [%rd1+4]",
        "global.b32 global.f32 global.u32 global.u16 global.nc.b16 global.nc.b32 global.nc.f32 global.nc.u16 global.nc.u32 local.b32 local.u32 volatile.global.b32 volatile.global.f32 global.cs.b16 global.u64 global.s32 global.f64 u32 f32 const.u32 acquire.gpu.global.u32 relaxed.sys.global.u32 global.L1::evict_last.b32 global.L1::no_allocate.L2::128B.b32 global.ca.u32 global.lu.u32 global.cv.u32",
    ),
    (
        "ld",
        "%rs1, [%rd1]",
        "global.nc.u8 global.nc.b8 global.u8 global.s8 shared.u8 global.s16 shared.b8 local.s8",
    ),
    (
        "ld",
        "T, [%r1+4]",
        "shared.b16 shared.b32 shared.f32 shared.u16 shared.u32 volatile.shared.u32 shared::cta.b32 relaxed.cta.shared.u32",
    ),
    (
        "ld",
        "{T, T}, [%rd1]",
        "global.nc.v2.b32 global.nc.v2.f32 global.nc.v2.u32 global.v2.f32 global.v2.u32 global.v2.b64 global.v2.f64 shared.v2.u32 volatile.global.v2.u64",
    ),
    (
        "ld",
        "{T, T, T, T}, [%rd1]",
        "global.nc.v4.b32 global.nc.v4.f32 global.nc.v4.u32 global.v4.b32 global.v4.f32 global.v4.u32 global.cs.v4.s32 shared.v4.f32 shared.v4.u32 global.L1::evict_first.v4.b32 global.v4.u16",
    ),
    ("ld", "T, [n]", "param.b32 param.u32 param.s32 param.f32"),
    ("ld", "T, [out]", "param.b64 param.u64"),
    ("ld", "T, [big+120]", "param.b64 param.f32"),
    ("ld", "{T, T, T, T}, [big+16]", "param.v4.b32 param.v4.f32"),
    (
        "ldmatrix",
        "{%r1, %r2, %r3, %r4}, [%r5]",
        "sync.aligned.m8n8.x4.shared.b16 sync.aligned.m8n8.x4.trans.shared.b16",
    ),
    ("ldmatrix", "{%r1, %r2}, [%r5+64]", "sync.aligned.m8n8.x2.shared::cta.b16"),
    ("ldmatrix", "{%r1}, [%rd5]", "sync.aligned.m8n8.x1.trans.b16"),
    ("lg2", "T, T", "approx.ftz.f32 approx.f32"),
    (
        "mad",
        "T, T, T, T",
        "lo.s32 lo.s64 hi.s32 hi.u32 lo.u32 lo.u16 hi.u64 rn.f32 lo.cc.u32 hi.cc.u32 hi.sat.s32",
    ),
    ("madc", "T, T, T, T", "lo.u32 hi.u32 lo.cc.u32 hi.cc.u32 hi.s32"),
    ("mad", "W, T, T, W", "wide.u32 wide.s32 wide.u16 wide.s16"),
    ("match", "T, %r2, %r3", "any.sync.b32"),
    ("match", "%r1, %rd2, %r3", "any.sync.b64"),
    ("match", "%r1|%p1, %r2, %r3", "all.sync.b32"),
    (
        "max",
        "T, T, T",
        "f32 ftz.f32 s32 u32 s64 u64 s16 u16 NaN.f32 ftz.NaN.f32 xorsign.abs.f32 f16 f16x2 bf16 bf16x2 NaN.bf16x2 f64 relu.s32",
    ),
    ("min", "T, T, T", "f32 ftz.f32 u32 s32 u64 NaN.f16x2 NaN.bf16"),
    ("membar", "", "gl cta sys"),
    (
        "mma",
        "{%f1,%f2,%f3,%f4}, {%r1,%r2,%r3,%r4}, {%r5,%r6}, {%f5,%f6,%f7,%f8}",
        "sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
    ),
    ("mov", "T, T", "b32 b64 f32 pred u16 u32 u64 s32 b16 f64 s64 u16 s16"),
    (
        "mul",
        "T, T, T",
        "f32 f64 ftz.f32 hi.s32 hi.u32 lo.s32 lo.s64 rn.f32 rn.ftz.f32 lo.u64 hi.u64 lo.s16 lo.u16 hi.s64 sat.f32 f16 rn.f16x2 bf16 rn.bf16x2",
    ),
    ("mul", "W, T, T", "wide.s32 wide.u32 wide.u16 wide.s16"),
    ("neg", "T, T", "f32 ftz.f32 s32 s16 s64 f64 f16 f16x2 bf16 bf16x2"),
    ("not", "T, T", "b16 b32 b64 pred"),
    ("or", "T, T, T", "b16 b32 b64 pred"),
    ("rcp", "T, T", "approx.ftz.f32 rn.f32 approx.f32 rn.f64 approx.ftz.f64 rn.ftz.f32"),
    (
        "redux",
        "T, T, %r1",
        "sync.add.s32 sync.add.u32 sync.min.u32 sync.max.s32 sync.and.b32 sync.or.b32 sync.xor.b32",
    ),
    ("rem", "T, T, T", "s32 u32 s64 u64 u16"),
    ("ret", "", ""),
    ("rsqrt", "T, T", "approx.f32 approx.ftz.f32 approx.f64 approx.ftz.f64"),
    ("selp", "T, T, T, %p1", "b16 b32 b64 f32 u16 u32 s32 f64 u64 s64"),
    (
        "setp",
        "%p1, T, T",
        "eq.b16 eq.b32 eq.f32 eq.s16 eq.s32 eq.s64 ge.f32 ge.ftz.f32 ge.s32 ge.u32 ge.u64 geu.f32 gt.f32 gt.ftz.f32 gt.s16 gt.s32 gt.u32 gt.u64 gtu.f32 le.u64 lt.f32 lt.s32 lt.u32 ltu.f32 ltu.ftz.f32 ne.b32 ne.b64 ne.s16 ne.s32 neu.f32 num.f32 nan.f32 eq.f64 lt.f16 gt.bf16 leu.ftz.f32 equ.f32 lo.u32 hs.u16 nan.ftz.f32",
    ),
    ("shf", "T, T, T, %r1", "l.wrap.b32 r.wrap.b32 l.clamp.b32 r.clamp.b32"),
    ("shfl", "%r1, %r2, %r3, %r4, %r5", "sync.bfly.b32 sync.idx.b32 sync.up.b32 sync.down.b32"),
    ("shl", "T, T, %r1", "b32 b64 b16"),
    ("shr", "T, T, %r1", "s32 u32 u64 b32 b64 s64 u16 s16"),
    ("sin", "T, T", "approx.ftz.f32 approx.f32"),
    ("sqrt", "T, T", "approx.ftz.f32 rn.f32 approx.f32 rn.f64 rn.ftz.f32 rz.f32"),
    (
        "st",
        "[%rd1+-4], T",
        "global.b16 global.b32 global.cs.b16 global.cs.f32 global.f32 global.u16 global.u32 global.wt.b16 local.b32 local.u32 global.u64 global.f64 u32 f32 volatile.global.u32 release.gpu.global.u32 relaxed.gpu.global.b32 global.L1::evict_last.b32 global.wb.u32",
    ),
    (
        "st",
        "[%r1], T",
        "shared.b16 shared.b32 shared.f32 shared.u16 shared.u32 volatile.shared.u32 shared.s32",
    ),
    ("st", "[%r1], %rs1", "shared.u8 shared.b8 shared.s8"),
    ("st", "[%rd1], %rs1", "global.u8 global.b8 local.u8"),
    (
        "st",
        "[%rd1], {T, T}",
        "global.v2.b32 global.v2.u32 shared.v2.u32 global.v2.f64 global.v2.b64 shared.v2.f32",
    ),
    (
        "st",
        "[%rd1], {T, T, T, T}",
        "global.cg.v4.s32 global.cs.v4.s32 global.v4.b32 global.v4.f32 global.v4.u16 global.v4.u32 local.v4.b32 local.v4.u32 shared.v4.f32 shared.v4.u32",
    ),
    (
        "stmatrix",
        "[%r5], {%r1, %r2, %r3, %r4}",
        "sync.aligned.m8n8.x4.trans.shared::cta.b16 sync.aligned.m8n8.x4.shared.b16",
    ),
    ("sub", "T, T, T", "f32 ftz.f32 rn.f32 s32 s64 u32 f64 s16 cc.u32 f16 bf16 rn.f16x2 bf16x2"),
    ("subc", "T, T, T", "u32 cc.u32"),
    ("tanh", "T, T", "approx.f32 approx.f16 approx.bf16x2"),
    ("vote", "%r1, %p1, %r2", "sync.ballot.b32"),
    ("vote", "%p2, !%p1, 0xffffffff", "sync.any.pred sync.all.pred sync.uni.pred"),
    ("xor", "T, T, T", "b16 b32 b64 pred"),
];

/// What Triton, CUB and inline PTX use beyond that.
const WRITTEN: &[Family] = &[
    (
        "atom",
        "T, [%rd1], T",
        "global.gpu.acq_rel.add.f32 global.add.noftz.f16x2 global.gpu.relaxed.add.noftz.bf16x2 global.min.s32 global.max.u64 global.and.b32 global.or.b64 global.xor.b32 global.exch.b32 global.exch.b64 global.dec.u32 add.u32 add.f64 global.add.u64 acq_rel.sys.global.add.s32 release.cta.global.exch.b32 global.add.noftz.f16",
    ),
    ("atom", "T, [%r1], T", "shared.add.u32 shared.add.f32 shared.cta.relaxed.or.b32 shared::cta.inc.u32"),
    ("atom", "_, [%rd1], T", "global.add.u32"),
    (
        "atom",
        "T, [%rd1], T, T",
        "global.cas.b32 global.acq_rel.gpu.cas.b32 global.cas.b64 global.cas.b16 relaxed.gpu.global.cas.b32",
    ),
    (
        "red",
        "[%rd1], T",
        "global.add.f32 relaxed.gpu.global.add.u32 global.gpu.acq_rel.max.s32 global.add.noftz.bf16x2 global.or.b32",
    ),
    ("red", "[%r1], T", "shared.add.u32"),
    ("bar", "1, 64", "sync arrive"),
    ("barrier", "%r1, %r2", "sync sync.aligned cta.sync arrive"),
    ("bar", "%r3, 0, 64, !%p1", "red.popc.u32"),
    ("bar", "%p2, 0, %p1", "red.and.pred red.or.pred cta.red.or.pred"),
    ("barrier", "%p2, 0, %p1", "cta.red.or.aligned.pred red.and.pred"),
    ("bar", "0xffffffff", "warp.sync"),
    ("bra", "END", " uni"),
    ("cnot", "T, T", "b32 b16 b64"),
    ("cp", "[%r1+16], [%rd1+0], 0x10, %r2", "async.cg.shared.global async.ca.shared.global.L2::64B"),
    ("cp", "[tile+16], [data], 4, 0", "async.ca.shared.global"),
    ("cp", "[%r1], [%rd1], 8, !%p1", "async.ca.shared.global"),
    (
        "cp",
        "[%r1], [%rd1], 16, %r2, %rd3",
        "async.cg.shared.global.L2::cache_hint async.cg.shared.global.L2::cache_hint.L2::256B",
    ),
    ("cp", "[%r1]", "async.mbarrier.arrive.noinc.shared.b64 async.mbarrier.arrive.shared::cta.b64"),
    ("createpolicy", "T, 1.0", "fractional.L2::evict_last.b64 fractional.L2::evict_first.b64"),
    ("createpolicy", "T, 0f3F800000", "fractional.L2::evict_last.L2::evict_unchanged.b64"),
    (
        "cvt",
        "T, S",
        "f64.f32 f64.f16 f32.f16 rn.f16.f32 rz.f16.f32 rp.f16.f32 rn.f16.s32 rni.s32.f16 rzi.u64.f64 rn.f32.u64 rpi.f32.f32 rmi.f64.f64 rzi.ftz.u32.f32 ftz.f64.f32 sat.u16.u32 s32.s16 u64.u16 rn.ftz.f32.f64 rn.bf16.u32 rz.f32.s64 rn.bf16.f64 rn.relu.bf16.f32 rzi.sat.s32.f32 sat.s16.s32 rn.f16.u16 rn.satfinite.tf32.f32",
    ),
    ("cvt", "%r1, %r2", "s32.s8 s32.s16 u32.u8 s16.s32 sat.s8.s32 sat.u8.s32"),
    ("cvt", "%rd1, %r2", "s64.s8 u64.u8 s32.s16"),
    ("cvt", "%r1, %rd2", "u8.u64 s16.s64 s32.s64"),
    ("discard", "[%rd1], 128", "global.L2"),
    ("applypriority", "[%rd1], 128", "global.L2::evict_normal"),
    ("dp4a", "%r1, %r2, %r3, %r4", "u32.u32 s32.s32 u32.s32"),
    ("dp2a", "%r1, %r2, %r3, %r4", "lo.u32.u32 hi.s32.u32"),
    ("elect", "%r1|%p1, %r2", "sync"),
    ("elect", "_|%p1, -1", "sync"),
    ("exit", "", ""),
    (
        "fence",
        "",
        "acq_rel.gpu sc.cta sc.sys acq_rel.cluster proxy.async proxy.async.shared::cta mbarrier_init.release.cluster proxy.alias acquire.gpu",
    ),
    ("fns", "%r1, %r2, %r3, %r4", "b32"),
    ("griddepcontrol", "", "wait launch_dependents"),
    ("isspacep", "%p1, %rd1", "global shared local const shared::cta param"),
    ("ld", "T, [%rd1], %rd2", "global.L1::evict_last.L2::cache_hint.b32 global.L2::cache_hint.f32"),
    ("ld", "{ T, T, T, T }, [ %rd1 + 0 ]", "global.v4.b32 global.L1::evict_last.v4.b32"),
    ("ld", "{T, T, T, T, T, T, T, T}, [%rd1]", "global.v8.b32 global.nc.v8.f32"),
    ("ld", "{T, _, T, _}, [%rd1]", "global.v4.u32"),
    ("ld", "{T}, [%rd1]", "global.b32 global.b16"),
    ("ld", "%r1, [%rd1]", "global.u8 global.s8 global.u16 global.s16 global.b8 global.b16"),
    ("ld", "%rd1, [%rd2]", "global.u8 global.s8 global.u16 global.s16 global.u32 global.s32 global.b32"),
    ("ld", "T, [tile+4]", "shared.u32 u32 volatile.shared.f32"),
    ("ld", "T, [data+8]", "global.u32 u32 global.nc.f32"),
    ("ld", "T, [fixed]", "const.u32 const.f32"),
    ("ld", "T, [stack]", "local.u64 local.f32"),
    ("ld", "T, [more+16]", "shared.u32"),
    ("ld", "T, [64]", "shared.u32"),
    ("ldu", "T, [%rd1]", "global.u32 global.f32"),
    ("lop3", "T, T, T, T, 0xE8", "b32"),
    ("lop3", "%r1|%p1, %r2, %r3, %r4, 0x80, %p2", "or.b32 and.b32"),
    ("mad24", "T, T, T, T", "lo.s32 hi.u32"),
    ("mul24", "T, T, T", "lo.s32 hi.u32"),
    ("mbarrier", "[tile], 4", "init.shared.b64 init.shared::cta.b64"),
    ("mbarrier", "[%rd1], %r1", "init.b64"),
    ("mbarrier", "[%r1]", "inval.shared.b64"),
    (
        "mbarrier",
        "%rd1, [%r1]",
        "arrive.shared.b64 arrive.release.cta.shared::cta.b64 arrive_drop.shared.b64",
    ),
    ("mbarrier", "_, [%r1], 2", "arrive.shared::cta.b64 arrive.release.cluster.shared::cluster.b64"),
    (
        "mbarrier",
        "%rd1, [%r1], %r2",
        "arrive.expect_tx.shared::cta.b64 arrive.expect_tx.release.cta.shared::cta.b64 arrive.noComplete.shared.b64",
    ),
    ("mbarrier", "[%r1], 128", "expect_tx.relaxed.cta.shared::cta.b64 complete_tx.shared::cta.b64"),
    (
        "mbarrier",
        "%p1, [%r1], %rd2",
        "test_wait.shared.b64 try_wait.shared::cta.b64 try_wait.acquire.cta.shared::cta.b64",
    ),
    (
        "mbarrier",
        "%p1, [%r1], %r2, 1000",
        "try_wait.parity.shared::cta.b64 try_wait.parity.acquire.cta.shared::cta.b64",
    ),
    ("mbarrier", "%r1, %rd1", "pending_count.b64"),
    (
        "mma",
        "{%r1,%r2}, {%r3,%r4,%r5,%r6}, {%r7,%r8}, {%r9,%r10}",
        "sync.aligned.m16n8k16.row.col.f16.f16.f16.f16",
    ),
    (
        "mma",
        "{%f1,%f2,%f3,%f4}, {%r1,%r2}, {%r5}, {%f5,%f6,%f7,%f8}",
        "sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32",
    ),
    (
        "mma",
        "{%r1,%r2,%r3,%r4}, {%r5,%r6,%r7,%r8}, {%r9,%r10}, {%r1,%r2,%r3,%r4}",
        "sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32 sync.aligned.m16n8k32.row.col.s32.u8.s8.s32",
    ),
    (
        "mma",
        "{%r1,%r2,%r3,%r4}, {%r5,%r6}, {%r9}, {%r1,%r2,%r3,%r4}",
        "sync.aligned.m16n8k16.row.col.s32.s8.s8.s32",
    ),
    ("mov", "{%r1, %r2}, %rd1", "b64"),
    ("mov", "{_, %r2}, %rd1", "b64"),
    ("mov", "{%rs1, %rs2}, %r1", "b32"),
    ("mov", "{%rs1, %rs2, %rs3, %rs4}, %rd1", "b64"),
    ("mov", "%rd1, {%r1, 0}", "b64"),
    ("mov", "%r1, {%rs1, %rs2}", "b32"),
    ("mov", "%rd1, {%rs1, %rs2, %rs3, %rs4}", "b64"),
    ("mov", "%rs1, {%b1, %b2}", "b16"),
    ("mov", "{%b1, %b2, %b3, _}, %r1", "b32"),
    ("mov", "%p1, 1", "pred"),
    ("mov", "T, %tid.x", "u32 b32"),
    ("mov", "T, %clock64", "u64"),
    ("mov", "T, %globaltimer_lo", "u32"),
    ("mov", "T, %gridid", "u64 u32"),
    ("mov", "T, tile+16", "u32 b32 u64"),
    ("mov", "T, data", "u64 b64"),
    ("nanosleep", "T", "u32"),
    ("pmevent", "3", ""),
    ("prefetch", "[%rd1]", "global.L2 global.L1 L1 global.L2::evict_last"),
    ("prefetchu", "[%rd1]", "L1"),
    ("prmt", "T, T, T, T", "b32 b32.f4e b32.rc16"),
    ("prmt", "%r1, %r2, 0, 0x7770U", "b32"),
    ("sad", "T, T, T, T", "s32 u16 u64"),
    ("set", "T, S, S", "eq.u32.s32 lt.f32.f32 gt.ftz.u32.f32 eq.f16.f16 lt.u32.f64 eq.f16x2.f16x2"),
    ("set", "%r1, %f1, %f2, !%p1", "lt.and.u32.f32"),
    ("setmaxnreg", "64", "inc.sync.aligned.u32 dec.sync.aligned.u32"),
    ("setp", "%p1|%p2, T, T, !%p3", "lt.and.s32 eq.or.f32 ne.xor.b64"),
    ("setp", "%p1|_, T, T", "lt.s32"),
    ("setp", "%p1|%p2, T, T", "eq.f16x2"),
    ("shfl", "%r1|%p1, %r2, 1, 0x1f, -1", "sync.bfly.b32 sync.up.b32"),
    ("shfl", "%f1|%p1, %f2, %r3, 0x1f, %r4", "sync.idx.b32"),
    ("slct", "T, T, T, %r1", "f32.s32 u64.s32"),
    ("slct", "%r2, %r3, %r4, %f1", "b32.f32 s32.f32 ftz.b32.f32"),
    ("szext", "T, T, %r1", "wrap.u32 clamp.s32"),
    ("bmsk", "T, %r1, %r2", "clamp.b32 wrap.b32"),
    ("testp", "%p1, T", "finite.f32 infinite.f32 number.f64 notanumber.f32 normal.f64 subnormal.f32"),
    ("trap", "", ""),
    ("brkpt", "", ""),
    ("max", "T, T, T, T", "f32 NaN.f32"),
];

/// Families that are PTX and refused: opcode, operands, a part of the reason.
const REFUSED: &[(&str, &str)] = &[
    ("call.uni (_), vprintf, (%r1, %r2)", "call of `vprintf`: calls are not supported"),
    ("call callee", "call of `callee`"),
    ("wgmma.fence.sync.aligned", "Hopper"),
    (
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%f1, %f2}, %rd1, %rd2, %p1, 1, 1, 0, 1",
        "Hopper",
    ),
    (
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, %r3}], [%r4]",
        "Hopper",
    ),
    ("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%rd1, {%r1, %r2, %r3}], [%r4]", "Hopper"),
    ("cp.async.bulk.commit_group", "Hopper"),
    ("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%rd1], [%r1], %r2", "Hopper"),
    ("barrier.cluster.arrive", "clusters (Hopper"),
    ("mapa.shared::cluster.u32 %r1, %r2, %r3", "Hopper"),
    ("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r1], 128", "Blackwell"),
    ("fence.proxy.tensormap::generic.acquire.gpu [%rd1], 128", "Hopper"),
    ("prefetch.tensormap [%rd1]", "tensor maps"),
    (
        "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [%r1], %r2, [%r3]",
        "Hopper",
    ),
    ("tex.2d.v4.f32.f32 {%f1, %f2, %f3, %f4}, [%rd1, {%f5, %f6}]", "textures"),
    ("suld.b.1d.v4.b32.trap {%r1, %r2, %r3, %r4}, [%rd1, {%r5}]", "textures"),
    ("wmma.load.a.sync.aligned.row.m16n16k16.f16 {%r1, %r2}, [%rd1]", "wmma"),
    ("vadd4.u32.u32.u32 %r1, %r2, %r3, %r4", "video"),
    ("alloca.u64 %rd1, 16", "dynamic stack"),
    ("cvt.rn.satfinite.e4m3x2.f32 %rs1, %f1, %f2", "the type `.e4m3x2` is not supported"),
    ("add.rn.f32x2 %rd1, %rd2, %rd3", "the type `.f32x2` is not supported"),
    ("mma.sp.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 {%f1}, {%r1}, {%r2}, {%f1}, %r3, 0x0", "sparse"),
    (
        "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%fd1,%fd2}, {%fd3}, {%fd4}, {%fd5,%fd6}",
        "is not supported",
    ),
    ("shfl.up.b32 %r1, %r2, 1, 0", "without `.sync`"),
    ("st.param.b32 [n], %r1", "calls are not supported"),
];

/// Returns a register of a type, a new one for each position.
fn register(ty: &str, number: usize) -> String {
    let family = match ty {
        "pred" => "p",
        "b16" | "u16" | "s16" | "f16" | "bf16" => "rs",
        "f32" => "f",
        "f64" => "fd",
        "b64" | "u64" | "s64" => "rd",
        "b8" | "u8" | "s8" => "b",
        _ => "r",
    };
    format!("%{family}{number}")
}

fn doubled(ty: &str) -> String {
    match ty {
        "u16" | "s16" => "u32".into(),
        _ => "u64".into(),
    }
}

fn instruction(opcode: &str, operands: &str, modifiers: &str) -> String {
    let types: Vec<&str> = modifiers.split('.').rev().filter(|m| is_type(m)).collect();
    let (last, before) = (types.first().copied().unwrap_or(""), types.get(1).copied().unwrap_or(""));
    // `cvt.f32.s32` names the result first: of it T is the result, S the source.
    let (result, source) =
        if matches!(opcode, "cvt" | "set" | "slct") { (before, last) } else { (last, before) };
    let mut text = format!("{opcode}{}{modifiers} ", if modifiers.is_empty() { "" } else { "." });
    for (number, character) in operands.char_indices() {
        match character {
            'T' => text += &register(result, number % 7 + 1),
            'S' => text += &register(source, number % 7 + 1),
            'W' => text += &register(&doubled(last), number % 7 + 1),
            other => text.push(other),
        }
    }
    text.replace("[%rd1+-4], %p", "[%rd1+-4], %r")
}

fn is_type(modifier: &str) -> bool {
    let digits = modifier.trim_start_matches(|c: char| c.is_ascii_lowercase());
    let known = ["8", "16", "32", "64", "16x2"];
    modifier == "pred"
        || (known.contains(&digits)
            && ["b", "u", "s", "f", "bf", "tf"].iter().any(|p| modifier.strip_suffix(digits) == Some(p)))
}

/// Lowers all forms, and loads them: what the reader accepts the machine must be able to execute.
fn lower_all(families: &[Family]) -> usize {
    let memory = DeviceMemory::new(1 << 20);
    let (mut forms, mut unable) = (0, Vec::new());
    for &(opcode, operands, modifiers) in families {
        for modifiers in modifiers.split(' ') {
            let line = match operands {
                "END" => {
                    format!("{opcode}{}{modifiers} END; END:", if modifiers.is_empty() { "" } else { "." })
                }
                _ => format!("{};", instruction(opcode, operands, modifiers)),
            };
            let plain = kernel(&line);
            assert!(!code(&plain).is_empty(), "{line} made no instruction");
            let guarded = kernel(&format!("@!%p7 {line}"));
            assert_eq!(code(&guarded).len(), code(&plain).len(), "{line}");
            assert!(
                code(&guarded).iter().all(|inst| inst.guard_not),
                "{line}: part of it has lost its guard"
            );
            match exec::load(module(&text(&line)), &memory, &Config::default()) {
                Ok(mut loaded) => loaded.unload(&memory),
                Err(error) => unable.push(format!("{line}: {error}")),
            }
            forms += 1;
        }
    }
    assert!(unable.is_empty(), "{} forms cannot be executed:\n{}", unable.len(), unable.join("\n"));
    forms
}

#[test]
fn every_compiled_form_lowers() {
    assert!(lower_all(COMPILED) > 350);
}

#[test]
fn every_written_form_lowers() {
    assert!(lower_all(WRITTEN) > 200);
}

#[test]
fn what_cannot_be_executed_is_refused_by_its_name() {
    for (line, reason) in REFUSED {
        let message = refusal(&format!("{line};"));
        assert!(message.contains(reason), "{line}: {message}");
        let opcode = line.split_whitespace().next().unwrap();
        assert!(message.contains(opcode), "{line}: the instruction is not named in: {message}");
    }
}
