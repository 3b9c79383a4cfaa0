//! Prints how fast kernels run, in CPU time of one thread, with all checks on:
//! `cargo test --release -p cuda-emulator --test exec_speed -- --ignored --nocapture`.

use std::fs;

use cuda_emulator::exec::{self, Checks, Config, Launch};
use cuda_emulator::lower;
use cuda_emulator::memory::DeviceMemory;

/// Nanoseconds that this thread has run.
fn cpu_time() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

const HEAD: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

/// One step of Adam over four arrays, an element for each thread.
fn element_wise() -> String {
    format!(
        "{HEAD}
.visible .entry k(.param .u64 p, .param .u64 g, .param .u64 m, .param .u64 v)
{{
    .reg .b64 %rd<12>;
    .reg .b32 %r<5>;
    .reg .f32 %f<20>;
    ld.param.u64 %rd1, [p];
    ld.param.u64 %rd2, [g];
    ld.param.u64 %rd3, [m];
    ld.param.u64 %rd4, [v];
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %tid.x;
    mad.lo.s32 %r4, %r1, %r2, %r3;
    mul.wide.u32 %rd5, %r4, 4;
    add.s64 %rd6, %rd1, %rd5;
    add.s64 %rd7, %rd2, %rd5;
    add.s64 %rd8, %rd3, %rd5;
    add.s64 %rd9, %rd4, %rd5;
    ld.global.f32 %f1, [%rd6];
    ld.global.f32 %f2, [%rd7];
    ld.global.f32 %f3, [%rd8];
    ld.global.f32 %f4, [%rd9];
    sub.f32 %f5, %f2, %f3;
    fma.rn.f32 %f6, %f5, 0f3DCCCCCD, %f3;
    mul.f32 %f7, %f2, %f2;
    sub.f32 %f8, %f7, %f4;
    fma.rn.f32 %f9, %f8, 0f3A83126F, %f4;
    mul.f32 %f10, %f6, 0f3F8CCCCD;
    mul.f32 %f11, %f9, 0f3F8CCCCD;
    sqrt.rn.f32 %f12, %f11;
    add.f32 %f13, %f12, 0f322BCC77;
    div.rn.f32 %f14, %f10, %f13;
    fma.rn.f32 %f15, %f1, 0f3C23D70A, %f14;
    fma.rn.f32 %f16, %f15, 0fBA83126F, %f1;
    st.global.f32 [%rd6], %f16;
    st.global.f32 [%rd8], %f6;
    st.global.f32 [%rd9], %f9;
    ret;
}}"
    )
}

/// The inner loop of a matrix product: each warp multiplies 64 x 16 by 16 x 32 from shared memory, `steps` times.
fn tensor(steps: u32) -> String {
    let mut text = String::new();
    for i in 0..4 {
        let r = 4 * i;
        text += &format!(
            "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%a{}, %a{}, %a{}, %a{}}}, [%r4+{}];\n",
            r,
            r + 1,
            r + 2,
            r + 3,
            512 * i
        );
    }
    for i in 0..2 {
        let r = 4 * i;
        text += &format!(
            "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {{%b{}, %b{}, %b{}, %b{}}}, [%r4+{}];\n",
            r,
            r + 1,
            r + 2,
            r + 3,
            2048 + 512 * i
        );
    }
    for (m, n) in (0..4).flat_map(|m| (0..4).map(move |n| (m, n))) {
        let c: Vec<String> = (0..4).map(|i| format!("%f{}", 16 * m + 4 * n + i)).collect();
        let (c, a, b) = (c.join(", "), 4 * m, 2 * n);
        text += &format!(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{{c}}}, {{%a{}, %a{}, %a{}, %a{}}}, {{%b{}, %b{}}}, {{{c}}};\n",
            a,
            a + 1,
            a + 2,
            a + 3,
            b,
            b + 1
        );
    }
    let zero: String = (0..64).map(|i| format!("mov.f32 %f{i}, 0f00000000;\n")).collect();
    let store: String = (0..64).map(|i| format!("st.global.f32 [%rd3+{}], %f{i};\n", 512 * i)).collect();
    format!(
        "{HEAD}
.visible .entry k(.param .u64 p)
{{
    .reg .pred %p<2>;
    .reg .b64 %rd<4>;
    .reg .b32 %r<10>;
    .reg .b32 %a<16>;
    .reg .b32 %b<8>;
    .reg .f32 %f<64>;
    .shared .align 16 .b8 s[4096];
    ld.param.u64 %rd1, [p];
    mov.u32 %r1, %ctaid.x;
    mul.wide.u32 %rd2, %r1, 32768;
    add.s64 %rd1, %rd1, %rd2;
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, s;
    shl.b32 %r3, %r1, 2;
    add.u32 %r4, %r2, %r3;
    mov.u32 %r5, 0;
FILL:
    st.shared.u32 [%r4], 0x3F803F80;
    add.u32 %r4, %r4, 512;
    add.u32 %r5, %r5, 1;
    setp.lt.u32 %p1, %r5, 8;
    @%p1 bra FILL;
    bar.sync 0;
    and.b32 %r6, %r1, 31;
    shl.b32 %r6, %r6, 4;
    add.u32 %r4, %r2, %r6;
    {zero}
    mov.u32 %r5, 0;
LOOP:
    {text}
    add.u32 %r5, %r5, 1;
    setp.lt.u32 %p1, %r5, {steps};
    @%p1 bra LOOP;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
    {store}
    ret;
}}"
    )
}

fn run(name: &str, text: &str, (grid, block): (u32, u32), arrays: usize, bytes: u64) {
    for races in [true, false] {
        let checks = Checks { races, ..Checks::default() };
        let name = format!("{name}, race detector {}", if races { "on" } else { "off" });
        time(&name, text, (grid, block), arrays, bytes, Config { checks, ..Config::default() });
    }
}

fn time(name: &str, text: &str, (grid, block): (u32, u32), arrays: usize, bytes: u64, config: Config) {
    let memory = DeviceMemory::new(1 << 32);
    let module = exec::load(lower::module(text).unwrap(), &memory, &config).unwrap();
    let mut params = Vec::new();
    for _ in 0..arrays {
        let at = memory.alloc(bytes).unwrap();
        memory.fill(at, &1f32.to_le_bytes(), bytes / 4).unwrap();
        params.extend(at.to_le_bytes());
    }
    let kernel = module.kernel("k").unwrap();
    let launch = Launch {
        kernel,
        grid: [grid, 1, 1],
        block: [block, 1, 1],
        cluster: [1; 3],
        dynamic_shared: 0,
        params: &params,
    };
    for _ in 0..3 {
        let before = cpu_time();
        let outcome = exec::run(&launch, &memory, &config).unwrap();
        let seconds = (cpu_time() - before) / 1e9;
        assert_eq!(outcome.reports, []);
        let counters = outcome.counters;
        println!(
            "{name}: {:.2} G lane-instructions/s, {:.1} M warp-instructions/s, {:.2} tensor GFLOP/s ({seconds:.3} s)",
            counters.instructions.lanes as f64 / seconds / 1e9,
            counters.instructions.warps as f64 / seconds / 1e6,
            counters.tensor_operations as f64 / seconds / 1e9,
        );
    }
}

#[test]
#[ignore = "prints timings"]
fn speed() {
    run("element-wise", &element_wise(), (8192, 256), 4, 8192 * 256 * 4);
    run("matrix product", &tensor(500), (8, 128), 1, 8 * 64 * 512);
}
