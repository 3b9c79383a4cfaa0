//! A data set kept on a CUDA device: batches are gathered there, and only row numbers travel.
//!
//! Rows are kept as they are stored; standardised ones in f32. A batch has the bits of one that the host read.

use half::{bf16, f16};

use crate::data::source::Source;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::float::{DType, FloatX};
use crate::ops::gather::{Affine, Index, Sampling, gather_forward_to, gather_samples_to};
use crate::tensor::{Shape, Tensor};
use crate::train::config::OnDevice;
use crate::train::features::Standardise;

/// Numbers that are copied to the device at a time, about.
const BLOCK: usize = 1 << 20;

/// The rows of a data set (V, D), and the numbers of those that make up a batch.
pub struct Resident {
    rows: Rows,
    index: Index,
}

enum Rows {
    F32(Tensor<f32>),
    Bf16(Tensor<bf16>),
    F16(Tensor<f16>),
}

impl Resident {
    /// Copies the rows of `source` to the device if `wanted` there: `auto` does if they take at most half of its free memory.
    ///
    /// # Errors
    /// `yes` on the CPU, or for rows that are drawn, that are too many to be numbered, or that do not fit; a device that failed.
    pub fn of(
        source: &Source,
        standardise: Option<&Standardise>,
        batch: usize,
        wanted: OnDevice,
        device: &Device,
    ) -> Result<Option<Self>> {
        let refused = |why: &str| match wanted {
            OnDevice::Yes => Err(Error::Usage(format!("data.on_device=yes: {why}; leave it at `auto`"))),
            OnDevice::Auto | OnDevice::No => Ok(None),
        };
        let (Device::Cuda(queue), true) = (device, wanted != OnDevice::No) else {
            return refused("the device is the CPU, which reads rows where they are");
        };
        let Some(count) = source.rows() else { return refused("a toy's rows are drawn for each step") };
        if u32::try_from(count).is_err() {
            return refused(&format!("{count} rows are more than 32-bit numbers can name"));
        }
        let dtype = match (source, standardise) {
            (Source::Dataset(dataset), None) => dataset.dtype(),
            _ => DType::F32,
        };
        let bytes = count * source.stored_width() as u64 * dtype.bytes() as u64;
        let (free, _) = queue.memory()?;
        if wanted == OnDevice::Auto && bytes > free / 2 {
            return Ok(None);
        }
        let rows = match dtype {
            DType::F32 => Rows::F32(uploaded(source, standardise, device)?),
            DType::Bf16 => Rows::Bf16(uploaded(source, None, device)?),
            DType::F16 => Rows::F16(uploaded(source, None, device)?),
        };
        Ok(Some(Self { rows, index: Index::new(device, &vec![0; batch])? }))
    }

    /// Returns the bytes of the rows.
    pub fn bytes(&self) -> usize {
        match &self.rows {
            Rows::F32(rows) => rows.len() * size_of::<f32>(),
            Rows::Bf16(rows) => rows.len() * size_of::<bf16>(),
            Rows::F16(rows) => rows.len() * size_of::<f16>(),
        }
    }

    /// Gathers the rows `ids` to `out: (ids, D)`, drawn and mirrored as `sampling` says; the device is not waited for.
    ///
    /// # Errors
    /// A row that is not there; a device that failed.
    pub fn gather(&mut self, ids: &[u64], sampling: Option<&Sampling>, out: &mut Tensor<f32>) -> Result<()> {
        let numbers: Vec<u32> = ids.iter().map(|id| *id as u32).collect(); // fewer than 2^32 rows, see `of`
        self.index.put(&numbers)?;
        match &self.rows {
            Rows::F32(rows) => gather(out, rows, &self.index, sampling),
            Rows::Bf16(rows) => gather(out, rows, &self.index, sampling),
            Rows::F16(rows) => gather(out, rows, &self.index, sampling),
        }
    }
}

/// Gathers rows, drawn and mirrored if that was asked for.
fn gather<S: FloatX>(
    out: &mut Tensor<f32>,
    rows: &Tensor<S>,
    index: &Index,
    sampling: Option<&Sampling>,
) -> Result<()> {
    match sampling {
        Some(sampling) => gather_samples_to(out, rows, index, sampling),
        None => gather_forward_to(out, rows, index, Affine::IDENTITY),
    }
}

/// Copies all rows, block by block: through pinned memory, while the next block is read.
fn uploaded<S: FloatX>(
    source: &Source,
    standardise: Option<&Standardise>,
    device: &Device,
) -> Result<Tensor<S>> {
    let (count, width) = (source.rows().unwrap_or(0) as usize, source.stored_width());
    let mut rows = Tensor::<S>::uninit(device, [count, width]);
    let each = (BLOCK / width).clamp(1, count);
    let (mut read, mut stored) = (vec![0.0; each * width], Vec::with_capacity(each * width));
    for first in (0..count).step_by(each) {
        let ids: Vec<u64> = (first..(first + each).min(count)).map(|id| id as u64).collect();
        let read = &mut read[..ids.len() * width];
        source.gather_stored(&ids, read)?;
        if let Some(standardise) = standardise {
            standardise.apply(read);
        }
        stored.clear();
        stored.extend(read.iter().map(|x| S::from_f32(*x))); // exact: it was read from this type
        let part = (first * width, Shape::from([ids.len(), width]));
        let [mut part] = rows.view_mut().parts([part]);
        part.stage(&stored)?;
    }
    Ok(rows)
}
