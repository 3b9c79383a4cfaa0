//! The allocations that one launch sees.

use std::sync::Arc;

use super::Region;

/// The allocations at the moment a kernel starts, in ascending order.
#[derive(Clone, Debug, Default)]
pub struct View {
    regions: Vec<Arc<Region>>,
}

impl View {
    pub(super) fn new(regions: Vec<Arc<Region>>) -> Self {
        Self { regions }
    }

    /// Returns the region of a number that [`View::find`] gave.
    #[inline(always)]
    pub fn region(&self, index: u32) -> Option<&Region> {
        self.regions.get(index as usize).map(|r| &**r)
    }

    /// Finds the region that holds an address.
    pub fn find(&self, address: u64) -> Option<u32> {
        let after = self.regions.partition_point(|r| r.start() <= address);
        let index = after.checked_sub(1)?;
        (address < self.regions[index].end()).then_some(index as u32)
    }
}
