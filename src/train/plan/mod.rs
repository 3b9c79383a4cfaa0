//! What a run will take, before it is run: parameters, arithmetic, memory, data.
//!
//! Memory is an estimate of what the device's pool holds after two steps ([`crate::device::Cpu::bytes_held`]). The pool
//! keeps one block for each tensor that is alive at the same time as others of its size, so the peak is counted size by
//! size; with L blocks of width C on n rows (one micro-batch):
//!
//! ```text
//! n·C   stage 1      5·L + 4   h, m, z, silu(z), u of every block; the last h and m; two gradients
//!       stage 2      2·L + 4   h and z of every block; four in flight
//!       detached           6   nothing is kept
//!       post-norm    one more for every block kept, or one
//! P·C   the path, direct or groups: z1, silu(z1), c, silu(c), tables of 3·C (2·C at the end), in stage 1 their gradients
//! ```
//! Scratch (packed operands, partial sums) is estimated from the largest products. Small batches of an MLP go through it in strips
//! ([`crate::flow::objective`]) that hold a few MiB more for scratch memory of their own, which is not counted.

mod autoencoder;
mod dit;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::data::source::Source;
use crate::device::Isa;
use crate::error::Result;
use crate::float::DType;
use crate::nn::modulation_path::EMBEDDING;
use crate::nn::{Autoencoder, Conditioning, Form, Layout, MlpConfig, VelocityConfig, VelocityNet};
use crate::ops::{rows_per_block, rows_per_partial};
use crate::optim::OptimKind;
use crate::train::align;
use crate::train::config::{Config, Stage, Target};
use crate::train::cost::{Coding, Cost, Purpose, Work};
use crate::train::features::{self, RowShape};
use crate::train::timing::made_up;

/// Bytes of one f32.
const F32: u64 = size_of::<f32>() as u64;

/// What a run will take.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The sizes of a step.
    pub work: Work,
    /// Trained parameters by the first part of their names, in order.
    pub parameters: Vec<(String, u64)>,
    /// Parameters of the frozen prior, in stage 2.
    pub frozen: u64,
    /// Steps of the run.
    pub steps: u64,
    /// FLOP of one step.
    pub cost: Cost,
    /// Bytes that the device holds after two steps.
    pub memory: Memory,
    /// Bytes of features that one step reads.
    pub data_bytes: u64,
}

/// Bytes of device memory, by what they hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Trained weights in the storage type.
    pub weights: u64,
    /// Their gradients, in f32.
    pub gradients: u64,
    /// First and second moments, in f32.
    pub moments: u64,
    /// Averages of the weights, in f32.
    pub averages: u64,
    /// f32 weights beside narrower ones.
    pub master: u64,
    /// The frozen prior with its modulation tables, and its packed weights where they are kept.
    pub prior: u64,
    /// Activations and their gradients.
    pub activations: u64,
    /// Packed operands and partial sums.
    pub scratch: u64,
}

impl Plan {
    /// Plans the run of a configuration; `prior` is the network that stage 2 aligns to, where it is known.
    ///
    /// # Errors
    /// Data that are configured and cannot be opened; sizes that contradict each other.
    pub fn new(config: &Config, prior: Option<VelocityConfig>) -> Result<Self> {
        let (shape, row_bytes) = data(config)?;
        let work = Work::of(config, shape, prior)?;
        let layout = trained(config, &work)?;
        let frozen = match config.stage {
            Stage::Pretrain => 0,
            Stage::Align => VelocityNet::new(work.net)?.layout().count() as u64,
        };
        let free_latents = config.stage == Stage::Align && config.align.target == Target::Latents;
        let rows = if free_latents { 0 } else { config.train.batch as u64 };
        Ok(Self {
            parameters: groups(&layout),
            frozen,
            steps: config.train.steps,
            cost: work.cost(),
            memory: memory(config, &work, &layout)?,
            data_bytes: rows * row_bytes,
            work,
        })
    }

    /// Returns the number of trained parameters.
    pub fn total_parameters(&self) -> u64 {
        self.parameters.iter().map(|(_, count)| count).sum()
    }

    /// Returns the FLOP of the whole run.
    pub fn total_flop(&self) -> f64 {
        self.cost.total() as f64 * self.steps as f64
    }

    /// Returns the seconds that the run takes at a rate in GFLOP/s.
    pub fn seconds(&self, gflops: f64) -> f64 {
        self.total_flop() / (gflops * 1e9)
    }
}

impl Memory {
    /// Returns all bytes.
    pub fn total(&self) -> u64 {
        let state = self.weights + self.gradients + self.moments + self.averages + self.master;
        state + self.prior + self.activations + self.scratch
    }
}

/// Returns what the rows of the configured data are, and the bytes of one where it is stored.
fn data(config: &Config) -> Result<(RowShape, u64)> {
    if config.data.source().is_err() {
        let rows = made_up(config);
        return Ok((rows, rows.width as u64 * F32));
    }
    let source = features::open_source(config)?;
    let bytes = match &source {
        Source::Dataset(dataset) => dataset.dtype().bytes() as u64,
        Source::Toy(_) | Source::Memory(_) => F32,
    };
    Ok((RowShape::of(&source), source.stored_width() as u64 * bytes))
}

/// Lays out what the run trains.
fn trained(config: &Config, work: &Work) -> Result<Layout> {
    let mut latents = Layout::default();
    match (config.stage, config.align.target) {
        (Stage::Pretrain, _) => Ok(Layout::clone(VelocityNet::new(work.net)?.layout())),
        (Stage::Align, Target::Latents) => {
            let shape = [work.samples, work.net.data_width()];
            latents.add(align::LATENTS, shape, crate::nn::Init::Zeros);
            Ok(latents)
        }
        (Stage::Align, Target::Autoencoder) => {
            let Some(coding) = &work.autoencoder else { return Ok(latents) };
            let net = Autoencoder::new(coding.net.clone())?;
            let prior = VelocityNet::new(work.net)?;
            Ok(align::Trained::new(&net, &prior, &config.align).layout)
        }
    }
}

fn groups(layout: &Layout) -> Vec<(String, u64)> {
    let mut groups: Vec<(String, u64)> = Vec::new();
    for entry in layout.entries() {
        let name = entry.name.split('.').next().unwrap_or_default();
        let count = entry.shape.len() as u64;
        match groups.last_mut() {
            Some((last, sum)) if last == name => *sum += count,
            _ => match groups.iter_mut().find(|(known, _)| known == name) {
                Some((_, sum)) => *sum += count,
                None => groups.push((name.to_owned(), count)),
            },
        }
    }
    groups
}

fn memory(config: &Config, work: &Work, layout: &Layout) -> Result<Memory> {
    let free_latents = work.purpose != Purpose::Params && work.autoencoder.is_none();
    // Free latents are f32 whatever the storage type of the network.
    let storage = if free_latents { DType::F32 } else { config.dtype };
    let count = layout.len() as u64;
    let moments = if matches!(config.optim.kind, OptimKind::Adam | OptimKind::Adamw) { 2 } else { 1 };
    let prior = match (work.purpose, &work.autoencoder) {
        (Purpose::Params, None) => 0,
        // Trained too: a copy of its weights, and gradients of its own.
        (Purpose::Params, Some(_)) => {
            VelocityNet::new(work.net)?.layout().len() as u64 * (config.dtype.bytes() as u64 + F32)
        }
        _ => {
            let tables = if let Form::Nodes(r) = work.form { r * work.table_columns() } else { 0 };
            let net = VelocityNet::new(work.net)?;
            let kept = align::keeps_panels(micro_rows(work) * work.tokens());
            let panels = if kept { net.panel_bytes(config.dtype) } else { 0 };
            net.layout().len() as u64 * config.dtype.bytes() as u64 + tables as u64 * F32 + panels
        }
    };
    let activations = activations(config, work);
    let mut scratch = products(config, work);
    scratch.extend(partial_sums(work));
    scratch.retain(|bytes| !activations.contains_key(bytes)); // between their uses, those blocks serve as scratch
    Ok(Memory {
        weights: count * storage.bytes() as u64,
        gradients: count * F32,
        moments: moments * count * F32,
        averages: config.optim.ema.len() as u64 * count * F32,
        master: if storage == DType::F32 { 0 } else { count * F32 },
        prior,
        activations: activations.iter().map(|(bytes, count)| bytes * count).sum(),
        scratch: scratch.iter().sum(),
    })
}

/// Blocks of memory: bytes of one → how many are alive at once.
type Blocks = BTreeMap<u64, u64>;

/// All activations. An autoencoder's decoder is done before the alignment loss begins, so the two share blocks
/// of equal size.
fn activations(config: &Config, work: &Work) -> Blocks {
    let (coder, waiting) = autoencoder::activations(config, work);
    let mut loss = waiting;
    let network = match &work.net {
        VelocityConfig::Mlp(net) => mlp(config, work, net),
        VelocityConfig::Dit { dit } => dit::activations(config, work, dit),
    };
    for (bytes, count) in network.into_iter().chain(path(config, work)) {
        *loss.entry(bytes).or_default() += count;
    }
    for (bytes, count) in coder {
        let entry = loss.entry(bytes).or_default();
        *entry = count.max(*entry);
    }
    loss
}

/// Rows of one micro-batch.
fn micro_rows(work: &Work) -> usize {
    work.rows() / work.micro_batches
}

/// Activations of an MLP's trunk, with inputs, outputs and losses.
fn mlp(config: &Config, work: &Work, net: &MlpConfig) -> Vec<(u64, u64)> {
    let storage = config.dtype.bytes() as u64;
    let (n, samples) = (micro_rows(work) as u64, work.samples as u64);
    let (d, c, depth) = (net.channels as u64, net.width as u64, net.depth as u64);
    let post = net.post_norm as u64;
    let wide = match work.purpose {
        // h of every block, and one block at a time with all that is its own.
        Purpose::Params if config.train.recompute => depth + 4 + post + 4,
        Purpose::Params => (5 + post) * depth + 4,
        Purpose::Latents => (2 + post) * depth + 4,
        Purpose::Detached => 6 + post,
    };
    let nodes = if let Form::Nodes(r) = work.form { r as u64 } else { 0 };
    vec![
        (n * c * storage, wide),
        (n * d * storage, 3),                  // x_t, v and dv; later x_t, dv and dx_t
        (samples * d * F32, 3),                // data, dy, the sum of dy over micro-batches
        (n * F32, 2),                          // t, losses
        (n * 2 * F32, depth * (1 + post) + 1), // mean and rstd of each layer norm
        (n * nodes * F32, 1),                  // interpolation weights
    ]
}

/// Activations of the modulation path, tables and their gradients.
fn path(config: &Config, work: &Work) -> Vec<(u64, u64)> {
    let trained = work.purpose == Purpose::Params;
    let (rows, storage) = match work.form {
        Form::Nodes(_) if !trained => return Vec::new(), // tables exist, the path is not evaluated
        Form::Nodes(r) => (r as u64, F32),
        _ => ((work.path_rows() / work.micro_batches) as u64, config.dtype.bytes() as u64),
    };
    let (c, depth, each) = (work.width() as u64, work.depth() as u64, 1 + trained as u64);
    let (cond, added) = match work.net.conditioning() {
        Conditioning::Nothing => (0, 0),
        Conditioning::Vectors(width) => (width as u64, 0),
        Conditioning::Classes { .. } => (0, 1), // rows of the label table
    };
    let parts = work.table_parts() as u64;
    let columns =
        [(EMBEDDING as u64, 1), (cond, 1), (c, 4 + added), (parts * c, each * depth), (2 * c, each)];
    columns.map(|(columns, count)| (rows * columns * storage, count)).to_vec()
}

/// Packed operands of the matrix products, and the sums of each thread: blocks of a power of two, one for each size.
fn products(config: &Config, work: &Work) -> BTreeSet<u64> {
    let pairs = config.dtype == DType::Bf16 && Isa::detect() == Isa::Avx512Bf16;
    let in_place = pairs || config.dtype == DType::F32;
    let mut packed = Packed { pairs, in_place, sizes: BTreeSet::new() };
    let (trained, backward) = (work.purpose == Purpose::Params, work.purpose != Purpose::Detached);
    let (n, c) = (micro_rows(work) * work.tokens(), work.width());
    let of_net = match &work.net {
        VelocityConfig::Mlp(net) => vec![(c, c), (net.channels, c), (c, net.channels)],
        VelocityConfig::Dit { dit } => dit::layers(dit),
    };
    of_net.into_iter().for_each(|(inputs, outputs)| packed.layer(n, inputs, outputs, backward, trained));
    for [rows, inputs, outputs] in work.autoencoder.iter().flat_map(Coding::layers) {
        packed.layer(rows / work.micro_batches, inputs, outputs, true, true);
    }
    let path_rows = work.path_rows() / work.micro_batches;
    if matches!(work.form, Form::Nodes(_)) {
        (packed.pairs, packed.in_place) = (false, true); // the path at the nodes is f32
    }
    if path_rows > 0 {
        packed.layer(path_rows, c, work.table_parts() * c, trained, trained);
        packed.layer(path_rows, EMBEDDING, c, false, trained);
    }
    let threads = match config.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    // Each thread sums tiles of 128 × 192.
    packed.sizes.insert((threads * 128 * 192).next_power_of_two() as u64 * F32);
    packed.sizes
}

/// Sizes of the blocks that products pack their operands into (`ops::linear::product`).
struct Packed {
    /// Two bf16 numbers take the place of one f32.
    pairs: bool,
    /// Rows of activations are read where they lie: those of f32, and of bf16 in pairs.
    in_place: bool,
    sizes: BTreeSet<u64>,
}

impl Packed {
    fn layer(&mut self, rows: usize, inputs: usize, outputs: usize, input: bool, weight: bool) {
        /// A product packs at most this many elements of its first operand at a time.
        const PASS: u64 = 1 << 23;
        let (n, i, o) = (rows as u64, inputs as u64, outputs as u64);
        let rows_of = |width: u64| if self.in_place { 0 } else { (n * width).min(PASS) };
        let elements = [
            Some(rows_of(i) + i * o),
            input.then_some(rows_of(o) + i * o),
            weight.then_some((n * o).min(PASS) + (n * i).min(PASS)),
        ];
        for elements in elements.into_iter().flatten() {
            let units = if self.pairs { elements.div_ceil(2) } else { elements };
            self.sizes.insert(units.next_multiple_of(1 << 12).next_power_of_two() * F32);
        }
    }
}

/// Work space of layer norm and gated residual: blocks of rows times rows of C each (`ops::layer_norm`,
/// `ops::gated_residual`, and the gradients of their tables in `ops::modulation`).
fn partial_sums(work: &Work) -> Vec<u64> {
    let (n, c) = (micro_rows(work) * work.tokens(), work.width());
    let streaming = n.div_ceil(rows_per_block(c).next_multiple_of(8));
    let summing = n.div_ceil(rows_per_partial(n, work.tokens()));
    let table_rows = if let Form::Nodes(r) = work.form { r } else { 1 };
    let mut sizes = vec![streaming * 17, streaming * 8];
    if work.purpose != Purpose::Detached {
        sizes.extend([summing * 37, summing * 16, summing * 2 * table_rows]);
    }
    if work.purpose == Purpose::Params {
        sizes.push(summing * table_rows);
    }
    sizes.into_iter().map(|rows| (rows * c) as u64 * F32).collect()
}
