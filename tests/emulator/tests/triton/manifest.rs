//! Reads `ptx/manifest.json`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::support::case::Case;
use crate::support::numbers::Element;

/// A snapshot.
#[derive(Debug, Deserialize)]
pub struct Entry {
    pub file: String,
    /// The function in `kernels.py`, and the name of the entry in the PTX.
    pub kernel: String,
    /// 80, 86, 89.
    pub target: u32,
    num_warps: u32,
    /// Dynamic shared memory in bytes.
    shared: u32,
    /// For each axis, factors ceil(argument / constant).
    grid: Vec<Vec<(String, Option<String>)>>,
    /// Values at compile time.
    pub constants: BTreeMap<String, i64>,
    /// Arguments that are multiples of 16.
    divisible_by_16: Vec<String>,
    /// Name and type, in order.
    pub arguments: Vec<(String, String)>,
    /// Pointers that follow the arguments.
    pub hidden_pointers: usize,
}

#[derive(Deserialize)]
struct Manifest {
    kernels: Vec<Entry>,
}

pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/triton/ptx")
}

pub fn read() -> Vec<Entry> {
    let text = std::fs::read_to_string(folder().join("manifest.json")).unwrap();
    serde_json::from_str::<Manifest>(&text).unwrap().kernels
}

impl Entry {
    pub fn ptx(&self) -> String {
        std::fs::read_to_string(folder().join(&self.file)).unwrap()
    }

    pub fn capability(&self) -> (u32, u32) {
        (self.target / 10, self.target % 10)
    }

    pub fn constant(&self, name: &str) -> usize {
        self.constants[name] as usize
    }

    /// The type of an array's elements.
    pub fn element(&self, name: &str) -> Element {
        let (_, kind) = self.arguments.iter().find(|a| a.0 == name).expect("an argument of that name");
        match kind.as_str() {
            "*fp32" => Element::F32,
            "*fp16" => Element::F16,
            "*bf16" => Element::Bf16,
            "*i32" => Element::I32,
            other => panic!("{name} is a {other}"),
        }
    }

    /// Whether the kernel takes it for granted that an argument is a multiple of 16.
    pub fn is_aligned(&self, argument: &str) -> bool {
        self.divisible_by_16.iter().any(|name| name == argument)
    }

    /// An empty case of this kernel; `sizes` are the arguments that the grid depends on.
    pub fn case(&self, sizes: &[(&str, usize)]) -> Case {
        let mut grid = [1; 3];
        for (axis, factors) in self.grid.iter().enumerate() {
            for (name, tile) in factors {
                let (_, size) = sizes.iter().find(|s| s.0 == name).expect("the size is given");
                let tile = tile.as_ref().map_or(1, |tile| self.constant(tile));
                grid[axis] *= size.div_ceil(tile) as u32;
            }
        }
        let mut case = Case::new(&self.kernel, grid, [self.num_warps * 32, 1, 1]);
        case.dynamic_shared = self.shared;
        case
    }
}
