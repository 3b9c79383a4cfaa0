//! Wrong texts: each error says where and what.

use cuda_emulator::lower;

use super::{refusal, text};

/// Returns the message for a whole text.
fn module_refusal(text: &str) -> String {
    lower::module(text).expect_err(text).to_string()
}

const HEAD: &str = ".version 8.5\n.target sm_80\n.address_size 64\n";

/// Bodies and what is said about them.
const INSTRUCTIONS: &[(&str, &str)] = &[
    ("frobnicate.u32 %r1, %r2;", "unknown instruction `frobnicate`"),
    ("add.fast.s32 %r1, %r2, %r3;", "unknown modifier `.fast`"),
    ("add.s32.s32 %r1, %r2, %r3;", "unknown modifier `.s32`"),
    ("add %r1, %r2, %r3;", "the type is missing"),
    ("add.pred %p1, %p2, %p3;", "the type `.pred` is not allowed here"),
    ("add.s32 %r1, %r2;", "2 operands, 3 are needed"),
    ("add.s32 %r1, %r2, %r3, %r4;", "4 operands, 3 are needed"),
    ("max.f32 %f1, %f2;", "2 operands, 3 are needed"),
    ("add.s32 %r1, %r2, %r99;", "the register `%r99` is not declared"),
    ("add.s32 %r1, %r2, %q1;", "the register `%q1` is not declared"),
    ("add.s32 %r1, %r2, nothing;", "`nothing` is not declared"),
    ("add.s32 %rd1, %r2, %r3;", "`%rd1` has 64 bits, the type `.s32` needs 32"),
    ("add.s64 %rd1, %rd2, %r3;", "`%r3` has 32 bits, the type `.s64` needs 64"),
    ("add.s32 %p1, %r2, %r3;", "`%p1` is a predicate"),
    ("and.pred %p1, %p2, %r3;", "`%r3` is not a predicate"),
    ("@%r1 mov.u32 %r1, 1;", "`%r1` is not a predicate"),
    ("mov.u32 5, %r1;", "the result must be a register"),
    ("mov.u32 %tid.x, %r1;", "the result must be a register"),
    ("mov.u32 %r1, %tid.w;", "the special register `%tid.w` is not supported"),
    ("mov.u32 %r1, %envreg2;", "the special register `%envreg2` is not supported"),
    ("mov.u16 %rs1, 65536;", "65536 does not fit into `.u16`"),
    ("mov.s16 %rs1, -32769;", "-32769 does not fit into `.s16`"),
    ("mov.u32 %r1, 0x1ffffffff;", "8589934591 does not fit into `.u32`"),
    ("mov.f32 %f1, 1;", "a constant of this form is not of the type `.f32`"),
    ("mov.s16 %rs1, 0f3F800000;", "a constant of this form is not of the type `.s16`"),
    ("mov.u64 %rd1, 18446744073709551616;", "`18446744073709551616` does not fit into 64 bits"),
    ("mov.u32 %r1, 08;", "`08` is not a number"),
    ("mov.u32 %r1, 0x;", "`0x` is not a number"),
    ("mov.u32 %r1, 0b12;", "`0b12` is not a number"),
    ("mov.f32 %f1, 0f3F80;", "`0f3F80` needs 8 hexadecimal digits"),
    ("mov.u32 %r1, 1/0;", "a division by zero"),
    ("mul.s32 %r1, %r2, %r3;", "`.lo`, `.hi` or `.wide` belong to products of integers"),
    ("mul.lo.f32 %f1, %f2, %f3;", "`.lo`, `.hi` or `.wide` belong to products of integers"),
    ("mul.lo.hi.s32 %r1, %r2, %r3;", "only one of"),
    ("mul.wide.s64 %rd1, %rd2, %rd3;", "`.wide` is not possible"),
    ("div.f32 %f1, %f2, %f3;", "one of `.approx` and a rounding is needed"),
    ("fma.f32 %f1, %f2, %f3, %f4;", "a rounding is needed"),
    ("add.rni.f32 %f1, %f2, %f3;", "the rounding is not one of"),
    ("add.rn.s32 %r1, %r2, %r3;", "`.rn` is not possible with `.s32`"),
    ("setp.lt.b32 %p1, %r1, %r2;", "this comparison is not possible with `.b32`"),
    ("setp.ltu.s32 %p1, %r1, %r2;", "this comparison is not possible with `.s32`"),
    ("setp.s32 %p1, %r1, %r2;", "the comparison is missing"),
    ("cvt.f32.f64 %f1, %fd1;", "needs a rounding"),
    ("cvt.rn.s32.f32 %r1, %f1;", "needs `.rni`"),
    ("cvt.rn.s32.s64 %r1, %rd1;", "has no rounding"),
    ("ld.global.v4.f32 {%f1, %f2}, [%rd1];", "the vector has 2 elements, 4 are needed"),
    ("ld.global.v4.f64 {%fd1}, [%rd1];", "the vector has 1 elements, 4 are needed"),
    ("ld.global.v8.b64 {%rd1}, [%rd1];", "at most 32 bytes"),
    ("ld.global.f32 %f1, [%r1];", "the address register `%r1` must have 64 bits"),
    ("ld.global.f32 %f1, %rd1;", "an address in brackets is needed"),
    ("ld.global.f32 %f1, [tile];", "`tile` is not a variable of the space `.global`"),
    ("ld.param.u64 %rd1, [n];", "8 bytes at offset 0 are not inside of `n`, 4 bytes"),
    ("ld.param.u32 %r1, [n+4];", "4 bytes at offset 4 are not inside of `n`, 4 bytes"),
    ("ld.acquire.global.u32 %r1, [%rd1];", "a memory order needs a scope"),
    ("st.const.u32 [%rd1], %r1;", "constant memory cannot be written"),
    ("atom.global.cas.b32 %r1, [%rd1], %r2;", "3 operands, 4 are needed"),
    ("atom.global.add.b32 %r1, [%rd1], %r2;", "this operation is not possible with `.b32`"),
    ("atom.local.add.u32 %r1, [%rd1], %r2;", "the state space must be"),
    ("bar.sync 16;", "a block has 16 barriers, not 16"),
    ("bar.sync 0, 33;", "33 threads are not a number of whole warps"),
    ("cp.async.cg.shared.global [%r1], [%rd1], 8;", "8 bytes cannot be copied"),
    ("cp.async.ca.shared.global [%r1], [%rd1], 8, 9;", "the source size 9 is above 8"),
    (
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1}, {%r1}, {%r2}, {%f2};",
        "1 registers, 4 are needed",
    ),
    ("mma.sync.aligned.m16n8k8.row.col.f32.s8.s8.f32 {%f1}, {%r1}, {%r2}, {%f2};", "is not supported"),
    ("lop3.b32 %r1, %r2, %r3, %r4, 256;", "256 is above 255"),
    ("lop3.b32 %r1, %r2, %r3, %r4, %r5;", "a constant is needed"),
    ("add.s32 %r1, _, %r3;", "not declared"),
    ("mov.b64 {%r1, %r2, %r3}, %rd1;", "a vector of 3 parts"),
];

#[test]
fn wrong_instructions() {
    for (body, reason) in INSTRUCTIONS {
        let message = refusal(body);
        assert!(message.contains(reason), "{body}\n  says: {message}\n  not:  {reason}");
    }
}

#[test]
fn an_error_names_the_line_and_the_instruction() {
    let before = text("").lines().count() as u32 - 1;
    let error = lower::module(&text("mov.u32 %r1, 1;\n  \n  @%p1 add.fast.s32 %r1, %r2, %r3;")).unwrap_err();
    assert_eq!((error.line, error.instruction.as_str()), (before + 2, "add.fast.s32"));
    assert_eq!(
        error.to_string(),
        format!("PTX line {}: `add.fast.s32`: unknown modifier `.fast`", before + 2)
    );
}

#[test]
fn wrong_labels() {
    assert!(refusal("bra NOWHERE;").contains("the label `NOWHERE` is not declared"));
    assert!(refusal("A: mov.u32 %r1, 1; A: bra A;").contains("the label `A` is declared twice"));
    assert!(
        refusal("{ INSIDE: mov.u32 %r1, 1; } bra INSIDE;").contains("the label `INSIDE` is not declared")
    );
    assert!(refusal("brx.idx %r1, LIST;").contains("the label `LIST` is not declared"));
    assert!(
        refusal("LIST: .branchtargets A, B; A: brx.idx %r1, LIST;").contains("the label `B` is not declared")
    );
    assert!(refusal("bra %r1;").contains("the label `%r1` is not declared"));
}

#[test]
fn wrong_declarations() {
    assert!(refusal(".reg .b32 %x; .reg .b32 %x;").contains("`%x` is declared twice"));
    assert!(refusal(".reg .b32 %r<5>;").contains("`%r` is declared twice"));
    assert!(refusal(".reg .b32 %y<4294967296>;").contains("4294967296 registers are too many"));
    assert!(refusal(".reg .b32 %y<2000000>;").contains("more than 1048576"));
    assert!(refusal(".reg .v4 .f32 %v;").contains("vector registers are not supported"));
    assert!(refusal(".reg .b128 %v;").contains("registers of the type `.b128`"));
    assert!(refusal(".shared .b8 big2[50000];").contains("bytes of static shared memory, more than 49152"));
    assert!(refusal(".local .b8 big2[600000];").contains("bytes of local memory"));
    assert!(refusal(".local .b32 zero = 0;").contains("cannot have an initial value"));
    assert!(refusal(".param .b32 argument;").contains("calls are not supported"));
    assert!(refusal(".frob 3;").contains("unknown directive `.frob`"));
}

/// What follows the head of a module, and what is said about it; nothing if it is right.
const MODULES: &[(&str, &str)] = &[
    (".entry k() {", "expected an instruction, a directive or `}`, found the end of the text"),
    (".entry k() { mov.u32 }", "expected a number, found `}`"),
    (".entry k() { .reg .b32 %r<; }", "expected a number, found `;`"),
    (".entry k() {} .entry k() {}", "the function `k` is defined twice"),
    (".entry k(.param .b8 x[5000]) {}", ""),
    (".entry k(.param .b8 x[33000]) {}", "the parameters have more than 32764 bytes"),
    (".entry k(.param .b8 x[]) {}", "the parameter `x` has no size"),
    (".entry k() .maxntid 2048 {}", "`.maxntid` is not a block of 1 to 1024 threads"),
    (".entry k() .maxntid 0 {}", "`.maxntid` is not a block of 1 to 1024 threads"),
    (".global .b32 x; .global .b32 x;", "`x` is declared twice"),
    (".global .b32 x[2] = {1, 2, 3};", "`x` has more initial values than elements"),
    (".global .b32 x = y;", "the address of `y` needs 64 bits"),
    (".global .b64 x = y;", "`y` is not declared"),
    (".global .b8 x[2] = {256, 0};", "256 does not fit into `.b8`"),
    (".global .b8 x[18446744073709551615][2];", "an array length above 64 bits"),
    (".global .b8 x[100000000000];", "is larger than"),
    (".const .b8 x[65537];", "more than 65536 bytes of constant memory"),
    (".global .align 3 .b8 x[4];", "the alignment 3 is not a power of two"),
    (".global .texref t;", "textures and surfaces are not supported"),
    (
        ".extern .global .b32 x; .entry k() { .reg .b32 %r; ld.global.u32 %r, [x]; }",
        "`x` is declared `.extern` and defined nowhere",
    ),
    (
        ".func f() ; .entry k() { .reg .b64 %r; mov.u64 %r, f; }",
        "the address of the function `f` is not supported",
    ),
    (".shared .b8 x[];", "the shared variable `x` has no size"),
    (".local .b8 x[4];", "belong into a function"),
    (".alias a, b;", "`.alias` is not supported"),
    (".section .debug_info { .b8 1, {", "`}` at the end of the section"),
];

#[test]
fn wrong_modules() {
    let cases = [
        ("", "expected `.version` as the first directive, found the end of the text"),
        (".target sm_80", "expected `.version`"),
        (".version 8.5", "the text has no `.target`"),
        (".version eight", "a version number"),
        (".version 8.5\n.target sm_80, debug\n.address_size 64", "debug code (`-G`"),
        (".version 8.5\n.target sm_80\n.address_size 32", "only `.address_size 64`"),
        (".version 8.5\n.target sm_80\n.address_size 64\n.frob", "PTX line 4: unknown directive `.frob`"),
        (".version 8.5\n.target sm_80\n/* no end", "PTX line 3: a comment without an end"),
        (".version 8.5\n.target sm_80\n.file 1 \"no end", "a string without an end"),
        (".version 8.5\n.target sm_80\n.address_size 64 \u{fc}", "unexpected character 'ü'"),
    ];
    for (text, reason) in cases {
        let message = module_refusal(text);
        assert!(message.contains(reason), "{text}\n  says: {message}\n  not:  {reason}");
    }
    for (rest, reason) in MODULES {
        let text = format!("{HEAD}{rest}");
        match lower::module(&text) {
            Ok(_) => assert!(reason.is_empty(), "{rest} should have been refused"),
            Err(error) => {
                let message = error.to_string();
                assert!(
                    !reason.is_empty() && message.contains(reason),
                    "{rest}\n  says: {message}\n  not:  {reason}"
                );
            }
        }
    }
    assert!(
        module_refusal(&format!("{HEAD}.entry k() {{ {} }}", "{".repeat(300)))
            .contains("nested deeper than 256")
    );
    let deep = format!("{HEAD}.entry k() {{ .reg .b32 %r; mov.u32 %r, {}1; }}", "(".repeat(1000));
    assert!(module_refusal(&deep).contains("an expression nested deeper than 64"));
    let minus = format!("{HEAD}.entry k() {{ .reg .b32 %r; mov.u32 %r, {}1; }}", "-".repeat(100_000));
    assert!(module_refusal(&minus).contains("an expression nested deeper than 64"));
}

#[test]
fn every_truncation_is_an_error_or_a_shorter_module() {
    let whole = text(
        "mov.u32 %r1, %tid.x; @%p1 bra END; ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd1+16];\nEND: ret;",
    );
    for end in 0..whole.trim_end().len() {
        if let Ok(module) = lower::module(&whole[..end]) {
            assert!(module.kernels.is_empty(), "a kernel without its end was accepted: {}", &whole[..end]);
        }
    }
}
