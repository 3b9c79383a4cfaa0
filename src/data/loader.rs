//! A background thread that prepares batches ahead of the step that needs them.
//!
//! It decides nothing: batch k is [`Source::fill_stored`] of k. `depth` batches are ready at most; buffers that the training
//! loop hands back are filled again, so that a long run allocates nothing.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use crate::data::source::Source;
use crate::error::{Error, Result};

/// One batch in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The number of the batch since the beginning of the run.
    pub index: u64,
    /// The rows as they are stored, (batch, stored width).
    pub features: Vec<f32>,
    /// One label per row, where the source has them.
    pub labels: Option<Vec<u32>>,
}

impl Batch {
    fn empty(source: &Source, batch: usize) -> Self {
        let labels = source.has_labels().then(|| vec![0; batch]);
        Self { index: 0, features: vec![0.0; batch * source.stored_width()], labels }
    }
}

/// Prefetches batches in order.
pub struct Loader {
    // Both are options only so that `drop` can close the channels before it waits for the thread.
    ready: Option<Receiver<Result<Batch>>>,
    used: Option<Sender<Batch>>,
    thread: Option<JoinHandle<()>>,
}

impl Loader {
    /// Starts the thread at batch number `first_batch`; it keeps up to `depth` (at least 1) batches ready.
    ///
    /// # Errors
    /// An empty batch, or a thread that the system refuses.
    pub fn start(
        source: Arc<Source>,
        seed: u64,
        batch: usize,
        first_batch: u64,
        depth: usize,
    ) -> Result<Self> {
        if batch == 0 {
            return Err(Error::argument("loader", "batch", "at least 1 row", "0 rows"));
        }
        let (send_ready, ready) = sync_channel(depth.max(1));
        let (used, take_used) = channel();
        let thread = std::thread::Builder::new()
            .name("flowprior-loader".to_owned())
            .spawn(move || produce(&source, seed, batch, first_batch, &send_ready, &take_used))
            .map_err(|e| Error::Device(format!("cannot start the loader thread: {e}")))?;
        Ok(Self { ready: Some(ready), used: Some(used), thread: Some(thread) })
    }

    /// Waits for the next batch.
    ///
    /// # Errors
    /// Whatever stopped the thread; after an error there are no more batches.
    pub fn next_batch(&mut self) -> Result<Batch> {
        let stopped = || Error::Device("the loader has stopped after an earlier error".to_owned());
        self.ready.as_ref().and_then(|ready| ready.recv().ok()).unwrap_or_else(|| Err(stopped()))
    }

    /// Hands a batch back, so that its buffers are used again.
    pub fn recycle(&mut self, batch: Batch) {
        if let Some(used) = &self.used {
            let _ = used.send(batch); // a thread that has ended needs no buffers
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.ready = None;
        self.used = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there has already been printed
        }
    }
}

/// Fills and sends batches until there is nobody to receive them, or one fails.
fn produce(
    source: &Source,
    seed: u64,
    batch: usize,
    first: u64,
    ready: &SyncSender<Result<Batch>>,
    used: &Receiver<Batch>,
) {
    let fits = |b: &Batch| b.features.len() == batch * source.stored_width();
    for index in first.. {
        let mut next = used.try_recv().ok().filter(fits).unwrap_or_else(|| Batch::empty(source, batch));
        next.index = index;
        let filled = source.fill_stored(seed, index, batch, &mut next.features, next.labels.as_deref_mut());
        let last = filled.is_err();
        if ready.send(filled.map(|()| next)).is_err() || last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::source::Memory;
    use crate::data::toy::Toy;

    fn memory() -> Arc<Source> {
        let values = (0..70).map(|i| i as f32).collect();
        Arc::new(Source::Memory(Memory::new(values, 2, Some((0..35).collect())).unwrap()))
    }

    #[test]
    fn batches_come_in_order_whatever_the_depth() {
        for depth in [0, 1, 5] {
            let source = memory();
            let mut loader = Loader::start(source.clone(), 3, 8, 2, depth).unwrap();
            for index in 2..30 {
                let batch = loader.next_batch().unwrap();
                let mut expected = Batch::empty(&source, 8);
                source.fill(3, index, 8, &mut expected.features, expected.labels.as_deref_mut()).unwrap();
                expected.index = index;
                assert_eq!(batch, expected);
                loader.recycle(batch);
            }
        }
    }

    #[test]
    fn recycled_buffers_are_used_again() {
        let mut loader = Loader::start(Arc::new(Source::Toy(Toy::Rings)), 0, 4, 0, 1).unwrap();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..50 {
            let batch = loader.next_batch().unwrap();
            seen.insert(batch.features.as_ptr() as usize);
            loader.recycle(batch);
        }
        // One in hand, one ready, one being filled, and one that came back too late for the third.
        assert!(seen.len() <= 4, "{} buffers", seen.len());
    }

    #[test]
    fn dropping_a_loader_ends_its_thread() {
        let source = memory();
        let loader = Loader::start(source.clone(), 0, 4, 0, 3).unwrap();
        drop(loader);
        assert_eq!(Arc::strong_count(&source), 1);
    }

    #[test]
    fn an_error_reaches_the_reader() {
        let source =
            Arc::new(Source::Memory(Memory { rows: Vec::new(), width: 2, labels: None, shape: None }));
        let mut loader = Loader::start(source, 0, 4, 0, 2).unwrap();
        let first = loader.next_batch().unwrap_err().to_string();
        assert_eq!(first, "permutation: `rows` has 0, expected between 1 and 2⁶² rows");
        assert!(loader.next_batch().unwrap_err().to_string().contains("earlier error"));
    }
}
