//! Gated residual: `y = h + gate · u`, or `y = gate · u` without h; the gate comes from a modulation table.
//!
//! Backward: `du = gate · dy`, `dgate = dy · u`, `dh = dy` (the caller keeps dy). Elementwise: forward reads h and u and
//! writes y, backward reads dy and u and writes du: memory bound.

use rayon::prelude::*;

use crate::device::{Arch, Cpu, Device};
use crate::error::Result;
use crate::ops::modulation::{GradBlock, GradScratch, HostModulation, MOD_ROWS, Modulation, ModulationGrad};
use crate::ops::{rows_per_block, rows_per_partial};
use crate::tensor::{FloatX, Tensor};

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
    }
    Ok(y)
}

/// `dy, u: (N, C)` → `du: (N, C)`; writes the gate's columns of the table's gradient.
pub fn gated_residual_backward<X: FloatX>(
    dy: &Tensor<X>,
    u: &Tensor<X>,
    gate: &Modulation<'_, X>,
    offset: usize,
    dtable: Option<ModulationGrad<'_, X>>,
) -> Result<Tensor<X>> {
    const OP: &str = "gated_residual_backward";
    let (n, c) = u.rows_cols();
    gate.check(OP, n, offset, c)?;
    dy.expect(OP, "dy", u.shape())?;
    if let Some(grad) = &dtable {
        grad.check(OP, gate)?;
    }
    let mut du = Tensor::like(u);
    match u.device() {
        Device::Cpu(cpu) => backward_cpu(cpu, &mut du, dy, u, gate, offset, dtable)?,
    }
    Ok(du)
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
    let work = y.par_chunks_mut(rows * c).zip(scratch.host_mut()?.par_chunks_mut(MOD_ROWS * c)).enumerate();
    cpu.install(|| {
        work.for_each(|(block, (y, gates))| {
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
    u: &Tensor<X>,
    gate: &Modulation<'_, X>,
    offset: usize,
    mut dtable: Option<ModulationGrad<'_, X>>,
) -> Result<()> {
    let (n, c) = u.rows_cols();
    let rows = rows_per_partial(n, gate.unit());
    let blocks = n.div_ceil(rows);
    let mut scratch = Tensor::<f32>::uninit(u.device(), [blocks, 2 * MOD_ROWS * c]);
    let mut table_scratch = GradScratch::new(u.device(), gate, blocks, c);
    let host = Gate { table: gate.host()?, offset, c };
    let (dy, u) = (dy.host()?, u.host()?);
    let mut tables: Vec<Option<GradBlock<'_, X>>> = match &mut dtable {
        Some(grad) => table_scratch.blocks(grad, gate, rows)?.into_iter().map(Some).collect(),
        None => (0..blocks).map(|_| None).collect(),
    };
    let isa = cpu.isa();
    let work = du.host_mut()?.par_chunks_mut(rows * c).zip(tables.par_iter_mut());
    let work = work.zip(scratch.host_mut()?.par_chunks_mut(2 * MOD_ROWS * c)).enumerate();
    cpu.install(|| {
        work.for_each(|(block, ((du, table), scratch))| {
            isa.run(
                #[inline(always)]
                |arch| {
                    let at = block * rows * c..block * rows * c + du.len();
                    backward_block(arch, du, &dy[at.clone()], &u[at], host, block * rows, scratch, table);
                },
            );
        });
    });
    drop(tables);
    match &mut dtable {
        Some(grad) => table_scratch.finish(grad, offset),
        None => Ok(()),
    }
}

#[allow(clippy::too_many_arguments)] // one block's share of everything
#[inline(always)]
fn backward_block<X: FloatX>(
    arch: Arch,
    du: &mut [X],
    dy: &[X],
    u: &[X],
    gate: Gate<'_, X>,
    first: usize,
    scratch: &mut [f32],
    table: &mut Option<GradBlock<'_, X>>,
) {
    let c = gate.c;
    let (gates, dgates) = scratch.split_at_mut(MOD_ROWS * c);
    let mut at = 0;
    for ((du, dy), u) in du.chunks_mut(MOD_ROWS * c).zip(dy.chunks(MOD_ROWS * c)).zip(u.chunks(MOD_ROWS * c))
    {
        let (gates, dgates) = (&mut gates[..du.len()], &mut dgates[..du.len()]);
        gate.table.fetch(arch, gates, first + at, gate.offset, c);
        for i in 0..du.len() {
            let d = dy[i].to_f32();
            du[i] = X::from_f32(d * gates[i]);
            dgates[i] = d * u[i].to_f32();
        }
        if let Some(table) = table {
            table.add(arch, dgates, at, gate.offset, c);
        }
        at += MOD_ROWS;
    }
}
