//! The grammar: tokens, scopes, directives, line information.

use cuda_emulator::isa::{NONE, Op};
use cuda_emulator::ptx::{self, ast::Statement};

use super::{code, kernel, module};

const ALL: &str = include_str!("../ptx/syntax.ptx");

#[test]
fn every_construct_is_read() {
    let tree = ptx::parse(ALL).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((tree.version, tree.target[0], tree.address_size), ((8, 7), "sm_90a", 64));
    assert_eq!(tree.files, [(1, "a.cu"), (2, "b.cuh")]);
    let names: Vec<_> = tree.variables.iter().map(|v| v.name).collect();
    let expected =
        ["pointers", "numbers", "pair", "halves", "open_ended", "scratch", "more_scratch", "dynamic"];
    assert_eq!(names, expected);
    let functions: Vec<_> = tree.functions.iter().map(|f| (f.name, f.entry, f.body.is_some())).collect();
    assert_eq!(functions, [("vprintf", false, false), ("unused", false, true), ("corners", true, true)]);
    let body = tree.functions[2].body.as_ref().expect("a body");
    let opened = body.statements.iter().filter(|s| matches!(s, Statement::Open)).count();
    let closed = body.statements.iter().filter(|s| matches!(s, Statement::Close)).count();
    assert_eq!((opened, closed), (3, 3));
}

#[test]
fn every_construct_lowers() {
    let module = module(ALL);
    let kernel = &module.kernels[0];
    assert_eq!(module.globals[1].init, [1, 2, 3, 4, 255, 255, 128, 9, 7, 32]);
    assert_eq!(module.globals[3].init[16..24], (-0.25f64).to_le_bytes());
    assert_eq!(module.globals[4].init, [0, 128, 255, 127, 2, 0]);
    // scratch 0..32, more_scratch 32..48, own 48..60: variables of the module first, then those of the function.
    assert_eq!((kernel.shared_bytes, kernel.dynamic_shared_align, kernel.local_bytes), (60, 128, 24));
}

#[test]
fn labels_belong_to_their_scope() {
    let kernel = kernel(
        "X: { X: mov.u32 %r1, 1; bra X; { bra Y; X: bra X; } Y: } { X: mov.u32 %r1, 2; bra X; } bra X;",
    );
    let targets: Vec<_> = code(&kernel)
        .iter()
        .enumerate()
        .filter_map(|(i, inst)| match inst.op {
            Op::Bra { target, .. } => Some((i, target)),
            _ => None,
        })
        .collect();
    // 0 mov, 1 bra, 2 bra Y, 3 X: bra X, 4 mov, 5 bra, 6 bra
    assert_eq!(targets, [(1, 0), (2, 4), (3, 3), (5, 4), (6, 0)]);
}

#[test]
fn registers_belong_to_their_scope() {
    let kernel = kernel(
        "mov.u32 %r1, %tid.x; { .reg .b64 %r<2>; mov.u64 %r1, 5; { .reg .f64 %r1; mov.f64 %r1, 1.0; } add.u64 %r1, %r1, 1; } \
         add.u32 %r1, %r1, 1;",
    );
    assert_eq!(
        code(&kernel).len(),
        5,
        "each use finds a register of the right width, or it would be refused"
    );
}

#[test]
fn names_with_digits_belong_to_the_family_that_has_them() {
    let text = ".reg .b32 %a<3>; .reg .b64 %a1<3>; .reg .b16 %a12; mov.u32 %a1, 1; mov.u64 %a11, 2; mov.u16 %a12, 3;";
    assert_eq!(code(&kernel(text)).len(), 3);
    assert!(super::refusal(".reg .b32 %a<3>; mov.u32 %a3, 1;").contains("`%a3` is not declared"));
    assert!(super::refusal(".reg .b32 %a<3>; mov.u32 %a01, 1;").contains("`%a01` is not declared"));
}

#[test]
fn comments_and_blanks_are_nothing() {
    let spaced = kernel("/* a\n b */ add .s32\t%r1 ,\r\n %r2,%r3 ; // add.s32 nothing\n;;");
    let dense = kernel("add.s32 %r1,%r2,%r3;");
    let ops = |k: &cuda_emulator::isa::Kernel| code(k).iter().map(|i| i.op).collect::<Vec<_>>();
    assert_eq!(ops(&spaced), ops(&dense));
}

#[test]
fn instructions_know_their_source() {
    let module = module(
        ".version 8.5\n.target sm_80\n.address_size 64\n.entry k() { .reg .b32 %r<3>;\n.loc 7 100 1\nmov.u32 %r1, 1;\n\
         mov.u32 %r2, 2;\n.loc 3 5 1, function_name $L__info_string0+12, inlined_at 7 101 2\nmov.u32 %r1, 3;\n.loc 9 1 1\nret;\n}\n\
         .file 3 \"inner.cuh\"\n.file 7 \"outer.cu\"",
    );
    let kernel = &module.kernels[0];
    let place = |i: usize| {
        let inst = &kernel.code[i];
        let loc = (inst.loc != NONE).then(|| kernel.locs[inst.loc as usize]);
        (inst.line, loc.map(|loc| (module.files[loc.file as usize].as_str(), loc.line)))
    };
    assert_eq!(place(0), (6, Some(("outer.cu", 100))));
    assert_eq!(place(1), (7, Some(("outer.cu", 100))));
    assert_eq!(place(2), (9, Some(("inner.cuh", 5))));
    assert_eq!(place(3), (11, None), "file 9 is not declared");
}

#[test]
fn an_indexed_branch_has_its_targets() {
    let kernel = kernel("LIST: .branchtargets B, A, B; A: brx.idx %r1, LIST; B: ret;");
    let Op::Brx { targets, .. } = kernel.code[0].op else { panic!("brx") };
    assert_eq!(kernel.lists[targets.start as usize..][..3], [1, 0, 1]);
}
