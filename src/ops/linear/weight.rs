//! Weights as products take them: where they lie and, for many small products by the same weight, packed beforehand.

use crate::device::cpu::HostBuf;
use crate::device::{Cpu, Isa};
use crate::error::Result;
use crate::float::{DType, FloatX};
use crate::ops::linear::kernel::{COLS, Format};
use crate::ops::linear::pack::{Operand, Side, columns_of, rows_of};
use crate::ops::linear::product::{Right, extent, extent_of, format_of};
use crate::tensor::{Shape, View};

/// A weight (O, C).
#[derive(Clone, Copy)]
pub struct Weight<'a, W: FloatX> {
    /// Where it lies.
    pub view: View<'a, W>,
    panels: Option<&'a Panels>,
}

impl<'a, W: FloatX> From<View<'a, W>> for Weight<'a, W> {
    fn from(view: View<'a, W>) -> Self {
        Self { view, panels: None }
    }
}

impl<'a, W: FloatX> Weight<'a, W> {
    /// Takes a weight with its panels, if they were packed; from the same values, as whoever keeps both must see to.
    pub(crate) fn new(view: View<'a, W>, panels: Option<&'a Panels>) -> Self {
        Self { view, panels: panels.filter(|panels| panels.shape == view.shape()) }
    }

    /// Returns the right side of x·wᵀ.
    pub(super) fn forward<A: FloatX>(self, cpu: &Cpu, o: usize, c: usize) -> Result<Right<'a, W>> {
        let operand = rows_of(self.view.host()?, o, c);
        Ok(Right { operand, panels: self.panels.and_then(|p| p.fit::<A, W>(cpu, &p.forward)) })
    }

    /// Returns the right side of dy·w.
    pub(super) fn backward<A: FloatX>(self, cpu: &Cpu, o: usize, c: usize) -> Result<Right<'a, W>> {
        let operand = columns_of(self.view.host()?, o, c);
        Ok(Right { operand, panels: self.panels.and_then(|p| p.fit::<A, W>(cpu, &p.backward)) })
    }
}

/// A weight packed for both of its products, with inputs of its own storage type.
pub(crate) struct Panels {
    shape: Shape,
    isa: Isa,
    format: Format,
    /// Of x·wᵀ, summed over C.
    forward: HostBuf,
    /// Of dy·w, summed over O.
    backward: HostBuf,
}

impl std::fmt::Debug for Panels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Panels{}", self.shape)
    }
}

impl Panels {
    /// Takes memory for the panels of a weight (O, C).
    pub(crate) fn room<W: FloatX>(cpu: &Cpu, w: View<'_, W>) -> Result<Self> {
        let format = format_of::<W, W>(cpu);
        let [forward, backward] = operands(w)?;
        let room = |operand: &Operand<W>| cpu.take(extent(operand, format).0 * size_of::<u32>());
        let (forward, backward) = (room(&forward), room(&backward));
        Ok(Self { shape: w.shape(), isa: cpu.isa(), format, forward, backward })
    }

    /// Packs the weight.
    pub(crate) fn fill<W: FloatX>(&mut self, w: View<'_, W>) -> Result<()> {
        for (operand, memory) in operands(w)?.iter().zip([&mut self.forward, &mut self.backward]) {
            let (_, block, period) = extent(operand, self.format);
            let units = self.format.units(operand.depth);
            for (i, out) in memory.as_mut_slice().chunks_exact_mut(period.max(1)).enumerate() {
                let here = i * block..units.min((i + 1) * block);
                if !here.is_empty() {
                    let panels = 0..operand.across.div_ceil(COLS);
                    operand.pack(self.isa, self.format, Side::B, panels, here, (out, block));
                }
            }
        }
        Ok(())
    }

    /// Returns panels, if they are of the form that inputs of type A need.
    fn fit<'p, A: FloatX, W: FloatX>(&'p self, cpu: &Cpu, panels: &'p HostBuf) -> Option<&'p [u32]> {
        (format_of::<A, W>(cpu) == self.format && cpu.isa() == self.isa).then(|| panels.as_slice())
    }
}

/// Returns the bytes of the panels of a weight (O, …) on this machine.
pub(crate) fn panel_bytes(dtype: DType, shape: Shape) -> u64 {
    let format = Format::of(dtype, Isa::detect());
    let o = shape.dims().first().copied().unwrap_or(1).max(1);
    let c = shape.len() / o;
    let units = |across, depth| extent_of(across, depth, format).0;
    ((units(o, c) + units(c, o)) * size_of::<u32>()) as u64
}

fn operands<W: FloatX>(w: View<'_, W>) -> Result<[Operand<'_, W>; 2]> {
    let (data, [o, c]) = (w.host()?, crate::ops::linear::sizes(w.shape()).into());
    Ok([rows_of(data, o, c), columns_of(data, o, c)])
}
