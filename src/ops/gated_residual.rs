//! Gated residual: `y = h + gate · u`, or `y = gate · u` without h; the gate comes from a modulation table.
//!
//! Backward: `du = gate · dy`, `dgate = dy · u`, `dh = dy` (the caller keeps dy). Elementwise: forward reads h and u and
//! writes y, backward reads dy and u and writes du: memory bound.

use crate::device::cuda::{Grid, Read};
use crate::device::{Arch, Cpu, Device, Queue};
use crate::error::Result;
use crate::float::FloatX;
use crate::kernels;
use crate::ops::modulation::{
    GradBlock, GradScratch, HostModulation, MOD_ROWS, Modulation, ModulationGrad, Slices, block_rows,
    weights_shared,
};
use crate::ops::{pack, rows_per_block, rows_per_partial, warp_grid};
use crate::tensor::Tensor;

/// `u, h: (N, C)`, gate in columns `offset .. offset + C` of the table → `y: (N, C)`.
pub fn gated_residual_forward<X: FloatX>(
    u: &Tensor<X>,
    h: Option<&Tensor<X>>,
    gate: &Modulation<'_, X>,
    offset: usize,
) -> Result<Tensor<X>> {
    const OP: &str = "gated_residual_forward";
    let (n, c) = u.rows_cols();
    gate.check(OP, n, offset, c)?;
    if let Some(h) = h {
        h.expect(OP, "h", u.shape())?;
    }
    let mut y = Tensor::like(u);
    match u.device() {
        Device::Cpu(cpu) => {
            let h = h.map(|h| h.host()).transpose()?;
            forward_cpu(cpu, y.host_mut()?, u.host()?, h, Gate { table: gate.host()?, offset, c })?;
        }
        Device::Cuda(queue) => {
            let m = gate.on_device()?;
            let grid = strips::<X>(n, c, m.r);
            let (y, u, h) = (y.write()?, u.read()?, h.map_or(Ok(Read::none()), Tensor::read)?);
            let (offset, n, c) = (offset as u32, n as u32, c as u32);
            kernels::gated_residual_forward(
                queue, grid, y, u, h, m.table, m.nodes, m.weights, m.columns, m.share, m.r, offset, n, c,
            )?;
        }
    }
    Ok(y)
}

/// `dy: (N, C)` → `du: (N, C)`. With `u: (N, C)` and the table's gradient given, also writes the gate's columns of the
/// latter; a frozen network needs neither.
pub fn gated_residual_backward<X: FloatX>(
    dy: &Tensor<X>,
    gate: &Modulation<'_, X>,
    offset: usize,
    dgate: Option<(&Tensor<X>, ModulationGrad<'_, X>)>,
) -> Result<Tensor<X>> {
    const OP: &str = "gated_residual_backward";
    let (n, c) = dy.rows_cols();
    gate.check(OP, n, offset, c)?;
    if let Some((u, grad)) = &dgate {
        u.expect(OP, "u", dy.shape())?;
        grad.check(OP, gate)?;
    }
    let mut du = Tensor::like(dy);
    match dy.device() {
        Device::Cpu(cpu) => backward_cpu(cpu, &mut du, dy, gate, offset, dgate)?,
        Device::Cuda(queue) => backward_cuda(queue, &mut du, dy, gate, offset, dgate)?,
    }
    Ok(du)
}

/// Covers (N, C) with blocks of 8 warps, each 4 rows by 32 packs, and the weights of r nodes: `kernels/gated_residual.cu`.
fn strips<X: FloatX>(n: usize, c: usize, r: u32) -> Grid {
    let blocks = n.div_ceil(block_rows(4)) * c.div_ceil(32 * pack::<X>());
    let shared = weights_shared(r) as u32;
    Grid { blocks: [u32::try_from(blocks).unwrap_or(u32::MAX), 1, 1], threads: 256, shared }
}

fn backward_cuda<X: FloatX>(
    queue: &Queue,
    du: &mut Tensor<X>,
    dy: &Tensor<X>,
    gate: &Modulation<'_, X>,
    offset: usize,
    dgate: Option<(&Tensor<X>, ModulationGrad<'_, X>)>,
) -> Result<()> {
    let ((n, c), at) = (dy.rows_cols(), offset as u32);
    let (rows, width, m) = (n as u32, c as u32, gate.on_device()?);
    let (grid, du, dy_read) = (strips::<X>(n, c, m.r), du.write()?, dy.read()?);
    kernels::gated_residual_backward(
        queue, grid, du, dy_read, m.table, m.nodes, m.weights, m.columns, m.share, m.r, at, rows, width,
    )?;
    match dgate {
        Some((u, ModulationGrad::Index(dtable))) => {
            let groups = n / m.share as usize;
            let (grid, dtable, u) = (warp_grid::<X>(groups, c, 1), dtable.write()?, u.read()?);
            let groups = groups as u32;
            kernels::gated_residual_index(
                queue, grid, dtable, dy_read, u, groups, m.share, m.columns, at, width,
            )
        }
        Some((u, ModulationGrad::Interpolate(dtable))) => {
            let (slices, r) = (Slices::of(n), m.r as usize);
            let mut partials = Tensor::<f32>::uninit(dy.device(), [slices.count, r * c]);
            let (grid, each, out) = (slices.grid(c, 1, r), slices.rows as u32, partials.write()?);
            kernels::gated_residual_sums(
                queue,
                grid,
                out,
                dy_read,
                u.read()?,
                m.weights,
                rows,
                each,
                m.r,
                width,
            )?;
            let (grid, count) = (Grid::covering(r * c.div_ceil(4), 1, 256), slices.count as u32);
            let (dtable, partials) = (dtable.write()?, partials.read()?);
            kernels::gated_residual_table(queue, grid, dtable, partials, count, m.r, m.columns, at, width)
        }
        None => Ok(()),
    }
}

#[derive(Clone, Copy)]
struct Gate<'a, X: FloatX> {
    table: HostModulation<'a, X>,
    offset: usize,
    c: usize,
}

fn forward_cpu<X: FloatX>(cpu: &Cpu, y: &mut [X], u: &[X], h: Option<&[X]>, gate: Gate<'_, X>) -> Result<()> {
    let c = gate.c;
    let rows = rows_per_block(c).next_multiple_of(MOD_ROWS);
    let blocks = (u.len() / c.max(1)).div_ceil(rows);
    let mut scratch = Tensor::<f32>::uninit(&Device::Cpu(cpu.clone()), [blocks, MOD_ROWS * c]);
    let isa = cpu.isa();
    let scratch = scratch.host_mut()?.chunks_mut((MOD_ROWS * c).max(1));
    let work = y.chunks_mut((rows * c).max(1)).zip(scratch).enumerate();
    cpu.each(work, |(block, (y, gates))| {
        isa.run(
            #[inline(always)]
            |arch| {
                let mut row = block * rows;
                for y in y.chunks_mut(MOD_ROWS * c) {
                    let at = row * c..row * c + y.len();
                    let gates = &mut gates[..y.len()];
                    gate.table.fetch(arch, gates, row, gate.offset, c);
                    apply_gate(arch, y, &u[at.clone()], h.map(|h| &h[at]), gates);
                    row += MOD_ROWS;
                }
            },
        );
    });
    Ok(())
}

#[inline(always)]
fn apply_gate<X: FloatX>(arch: Arch, y: &mut [X], u: &[X], h: Option<&[X]>, gates: &[f32]) {
    match h {
        Some(h) => {
            for (((y, u), h), g) in y.iter_mut().zip(u).zip(h).zip(gates) {
                *y = X::from_f32(arch.fma(*g, u.to_f32(), h.to_f32()));
            }
        }
        None => {
            for ((y, u), g) in y.iter_mut().zip(u).zip(gates) {
                *y = X::from_f32(g * u.to_f32());
            }
        }
    }
}

fn backward_cpu<X: FloatX>(
    cpu: &Cpu,
    du: &mut Tensor<X>,
    dy: &Tensor<X>,
    gate: &Modulation<'_, X>,
    offset: usize,
    dgate: Option<(&Tensor<X>, ModulationGrad<'_, X>)>,
) -> Result<()> {
    let (n, c) = dy.rows_cols();
    let rows = rows_per_partial(n, gate.unit());
    let blocks = n.div_ceil(rows);
    let mut scratch = Tensor::<f32>::uninit(dy.device(), [blocks, 2 * MOD_ROWS * c]);
    let (u, mut dtable) = match dgate {
        Some((u, dtable)) => (Some(u.host()?), Some(dtable)),
        None => (None, None),
    };
    let mut table_scratch = dtable.as_ref().map(|_| GradScratch::new(dy.device(), gate, blocks, c));
    let host = Gate { table: gate.host()?, offset, c };
    let dy = dy.host()?;
    let mut tables: Vec<Option<GradBlock<'_, X>>> = match (&mut dtable, &mut table_scratch) {
        (Some(grad), Some(scratch)) => scratch.blocks(grad, gate, rows)?.into_iter().map(Some).collect(),
        _ => (0..blocks).map(|_| None).collect(),
    };
    let isa = cpu.isa();
    let work = du.host_mut()?.chunks_mut((rows * c).max(1)).zip(tables.iter_mut());
    let work = work.zip(scratch.host_mut()?.chunks_mut((2 * MOD_ROWS * c).max(1))).enumerate();
    cpu.each(work, |(block, ((du, table), scratch))| {
        isa.run(
            #[inline(always)]
            |arch| {
                let first = block * rows;
                let at = first * c..first * c + du.len();
                let block = BackwardBlock { first, dy: &dy[at.clone()], u: u.map(|u| &u[at]), gate: host };
                block.run(arch, du, scratch, table);
            },
        );
    });
    drop(tables);
    match (&mut dtable, &table_scratch) {
        (Some(grad), Some(scratch)) => scratch.finish(grad, offset),
        _ => Ok(()),
    }
}

struct BackwardBlock<'a, X: FloatX> {
    first: usize,
    dy: &'a [X],
    u: Option<&'a [X]>,
    gate: Gate<'a, X>,
}

impl<X: FloatX> BackwardBlock<'_, X> {
    #[inline(always)]
    fn run(&self, arch: Arch, du: &mut [X], scratch: &mut [f32], table: &mut Option<GradBlock<'_, X>>) {
        let (c, offset) = (self.gate.c, self.gate.offset);
        let (gates, dgates) = scratch.split_at_mut(MOD_ROWS * c);
        for (tile, du) in du.chunks_mut(MOD_ROWS * c).enumerate() {
            let at = tile * MOD_ROWS;
            let span = at * c..at * c + du.len();
            let (gates, dy) = (&mut gates[..du.len()], &self.dy[span.clone()]);
            self.gate.table.fetch(arch, gates, self.first + at, offset, c);
            for ((du, dy), gate) in du.iter_mut().zip(dy).zip(gates.iter()) {
                *du = X::from_f32(dy.to_f32() * gate);
            }
            if let (Some(table), Some(u)) = (table.as_mut(), self.u) {
                let dgates = &mut dgates[..dy.len()];
                for ((dgate, dy), u) in dgates.iter_mut().zip(dy).zip(&u[span]) {
                    *dgate = dy.to_f32() * u.to_f32();
                }
                table.add(arch, dgates, at, offset, c);
            }
        }
    }
}
