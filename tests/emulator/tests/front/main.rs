//! Reading PTX: syntax, every form of every instruction, errors, and the sharing of registers.

mod allocation;
mod errors;
mod lowering;
mod syntax;
mod vocabulary;

use cuda_emulator::isa::{Inst, Kernel, Module, Op};
use cuda_emulator::lower;

/// Registers of each kind that the bodies of tests may use, and a few variables.
const DECLARATIONS: &str = "
    .reg .pred %p<8>; .reg .b16 %rs<8>; .reg .b32 %r<32>; .reg .b64 %rd<16>; .reg .f32 %f<32>; .reg .f64 %fd<8>;
    .reg .b8 %b<4>;
    .shared .align 16 .b8 tile[1024]; .local .align 16 .b8 stack[64];
";

/// Makes a module with one kernel of this body.
pub fn text(body: &str) -> String {
    format!(
        ".version 8.5\n.target sm_90a\n.address_size 64\n\
         .global .align 16 .b8 data[256];\n.const .align 16 .b8 fixed[256];\n.extern .shared .align 16 .b8 more[];\n\
         .visible .entry k(.param .u64 out, .param .u32 n, .param .f32 x, .param .align 64 .b8 big[128])\n\
         {{{DECLARATIONS}\n{body}\n}}\n"
    )
}

/// Lowers a body that must be right.
pub fn kernel(body: &str) -> Kernel {
    let module = module(&text(body));
    module.kernels.into_iter().next().expect("one kernel")
}

/// Lowers a text that must be right.
pub fn module(text: &str) -> Module {
    match lower::module(text) {
        Ok(module) => module,
        Err(error) => panic!("{error}\n{text}"),
    }
}

/// Lowers a body that must be wrong, and returns the message.
pub fn refusal(body: &str) -> String {
    match lower::module(&text(body)) {
        Ok(_) => panic!("this should have been refused: {body}"),
        Err(error) => error.to_string(),
    }
}

/// Returns the instructions without the exit that is added at the end.
pub fn code(kernel: &Kernel) -> Vec<Inst> {
    let (last, rest) = kernel.code.split_last().expect("at least the exit");
    assert_eq!(last.op, Op::Exit);
    rest.to_vec()
}
