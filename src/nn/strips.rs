//! The backward of a small batch in strips: rows go their way strip by strip, parameter gradients are summed behind them.
//!
//! Operation by operation, a step of a small network is a hundred jobs of microseconds, and its threads wait for each other between
//! any two. Rows do not need each other, though, until the sums over all of them. So each strip of rows runs through the whole network
//! on one thread, and puts aside what gradients are made from; then the gradients of all layers are summed, several layers at a time.

use crate::device::{Cpu, Isa};
use crate::error::Result;
use crate::float::FloatX;
use crate::nn::mlp::{Mlp, Saved};
use crate::nn::modulation_path::{NodeTables, Saved as PathSaved};
use crate::nn::params::{Grads, Params};
use crate::nn::sink::{Aside, Sink};
use crate::ops::linear::{Start, linear_backward_weight_parts};
use crate::tensor::{Tensor, ViewMut};

/// Groups of layers whose gradients are summed at the same time: enough for the threads that so little work can use. They share
/// scratch memory, so they are fixed, whatever the number of threads.
const GROUPS: usize = 4;

/// What the parameter gradients of a strip are made from.
#[derive(Debug)]
pub(crate) struct StripGrads<X: FloatX> {
    aside: Aside<X>,
    /// The gradient of the table of each head.
    tables: Vec<Tensor<f32>>,
}

/// A sum of gradients, and about how many multiply-adds it takes.
type Sum<'a> = (usize, Box<dyn FnOnce() -> Result<()> + Send + 'a>);

impl Mlp {
    /// Evaluates the tables of all heads at r nodes, with what their backward needs.
    pub(crate) fn tables_at_nodes<X: FloatX>(
        &self,
        params: &Params<X>,
        r: usize,
    ) -> Result<(NodeTables, PathSaved<f32>)> {
        self.path.tables_at_nodes(params, r)
    }

    /// `dv: (N, D)` of a strip → what its parameter gradients are made from.
    pub(crate) fn backward_strip<X: FloatX>(
        &self,
        params: &Params<X>,
        saved: Saved<X>,
        dv: &Tensor<X>,
    ) -> Result<StripGrads<X>> {
        let mut sink = Sink::Aside(Aside::default());
        let (_, _, tables) = self.backward_rows(params, saved, dv, &mut sink)?;
        let aside = if let Sink::Aside(aside) = sink { aside } else { Aside::default() };
        Ok(StripGrads { aside, tables: tables.map_or_else(Vec::new, |tables| tables.at_nodes()) })
    }

    /// Accumulates the parameter gradients of all strips, in their order.
    pub(crate) fn add_strips<X: FloatX>(
        &self,
        cpu: &Cpu,
        params: &Params<X>,
        path: &PathSaved<f32>,
        strips: &[StripGrads<X>],
        grads: &mut Grads,
    ) -> Result<()> {
        let Some(first) = strips.first() else { return Ok(()) };
        let tables = table_sums(cpu, strips)?;
        let mut apart = grads.apart();
        let mut inputs = None;
        let mut sums: Vec<Sum<'_>> = Vec::new();
        let (slot, tables) = (&mut inputs, &tables);
        let heads = || self.path.heads.iter().zip(tables);
        sums.push((
            heads().map(|(_, table)| table.len() * path.s.rows_cols().1).sum(),
            Box::new(move || {
                *slot = self.path.backward_inputs(params, path, tables)?;
                Ok(())
            }),
        ));
        for (j, (layer, ..)) in first.aside.linears.iter().enumerate() {
            let parts = strips.iter().map(|strip| &strip.aside.linears[j]);
            sums.push(weight_sum(apart.take_layer(layer.ids()), parts.map(|(_, dz, x)| (dz, x)).collect()));
        }
        for (head, table) in heads() {
            sums.push(weight_sum(apart.take_layer(head.ids()), vec![(table, &path.s)]));
        }
        for (j, (ids, _)) in first.aside.norms.iter().enumerate() {
            let sum = ids.map(|id| apart.take(id));
            let parts: Vec<_> = strips.iter().map(|strip| &strip.aside.norms[j].1).collect();
            sums.push((0, Box::new(move || norm_sum(cpu.isa(), sum, &parts))));
        }
        in_groups(cpu, sums)?;
        match inputs {
            Some(inputs) => self.path.backward_embedding(path, &inputs, grads),
            None => Ok(()),
        }
    }
}

/// Adds the strips' gradients of each table, in order.
fn table_sums<X: FloatX>(cpu: &Cpu, strips: &[StripGrads<X>]) -> Result<Vec<Tensor<f32>>> {
    let mut sums: Vec<Tensor<f32>> =
        strips.first().map_or_else(Vec::new, |s| s.tables.iter().map(Tensor::like).collect());
    let mut work = Vec::with_capacity(sums.len());
    for (k, sum) in sums.iter_mut().enumerate() {
        let parts: Result<Vec<_>> = strips.iter().map(|strip| strip.tables[k].host()).collect();
        work.push((sum.host_mut()?, parts?));
    }
    cpu.each(work.into_iter(), |(sum, parts)| {
        sum.fill(0.0);
        parts.iter().for_each(|part| add(cpu.isa(), sum, part));
    });
    Ok(sums)
}

fn add(isa: Isa, sum: &mut [f32], part: &[f32]) {
    isa.run(
        #[inline(always)]
        |_| sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x),
    );
}

fn weight_sum<'a, T: FloatX>(
    ([dw, db], start): ([Option<ViewMut<'a, f32>>; 2], Start),
    parts: Vec<(&'a Tensor<T>, &'a Tensor<T>)>,
) -> Sum<'a> {
    let work = parts.iter().map(|(dz, x)| dz.len() * x.rows_cols().1).sum();
    let sum = move || dw.map_or(Ok(()), |dw| linear_backward_weight_parts(start, dw, db, &parts));
    (work, Box::new(sum))
}

fn norm_sum(isa: Isa, sums: [Option<ViewMut<'_, f32>>; 2], parts: &[&[Tensor<f32>; 2]]) -> Result<()> {
    for (i, sum) in sums.into_iter().enumerate() {
        let Some(mut sum) = sum else { continue };
        for part in parts {
            add(isa, sum.host_mut()?, part[i].host()?);
        }
    }
    Ok(())
}

/// Calculates all sums, in groups of about the same work.
fn in_groups(cpu: &Cpu, mut sums: Vec<Sum<'_>>) -> Result<()> {
    sums.sort_by_key(|(work, _)| std::cmp::Reverse(*work));
    let mut groups: [(usize, Vec<Sum<'_>>); GROUPS] = Default::default();
    for sum in sums {
        let [first, others @ ..] = &mut groups;
        let least =
            others.iter_mut().fold(first, |least, group| if group.0 < least.0 { group } else { least });
        least.0 += sum.0;
        least.1.push(sum);
    }
    let mut results: [Result<()>; GROUPS] = std::array::from_fn(|_| Ok(()));
    cpu.each_apart(groups.into_iter().zip(&mut results), |((_, group), result)| {
        *result = group.into_iter().try_for_each(|(_, sum)| sum());
    });
    results.into_iter().collect()
}
