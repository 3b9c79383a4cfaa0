//! Names the shared library as the real driver is named, so that a loader that has it open by its path finds it again when
//! a program asks for `libcuda.so`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
}
