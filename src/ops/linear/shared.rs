//! Memory that several threads fill at once: each part is handed out once, so no two threads ever hold the same.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Divides `count` things into `parts` runs whose lengths differ by one at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    /// How many there are.
    pub count: usize,
    /// Into how many parts.
    pub parts: usize,
}

impl Split {
    /// Returns the run of part `i`.
    pub(super) fn part(self, i: usize) -> Range<usize> {
        i * self.count / self.parts..(i + 1) * self.count / self.parts
    }
}

/// Numbers from 0 on, each handed out once: to every thread those of its own share, the same in every product, so that it
/// finds rows that it wrote before in its own cache; then those that others have not come to.
struct Shares(Vec<(AtomicUsize, usize)>);

impl Shares {
    fn new(count: usize, threads: usize) -> Self {
        let share = Split { count, parts: threads.max(1) };
        Self((0..share.parts).map(|i| share.part(i)).map(|part| (part.start.into(), part.end)).collect())
    }

    fn next(&self, me: usize) -> Option<usize> {
        let (before, from_me) = self.0.split_at(me % self.0.len());
        from_me.iter().chain(before).find_map(|(next, end)| {
            let left = next.load(Ordering::Relaxed) < *end;
            let i = if left { next.fetch_add(1, Ordering::Relaxed) } else { *end };
            (i < *end).then_some(i)
        })
    }
}

/// Hands out consecutive chunks of a slice for writing, and the whole for reading when all have come back.
pub(super) struct Chunks<'a> {
    start: *mut u32,
    len: usize,
    period: usize,
    chunk: usize,
    next: Shares,
    done: AtomicUsize,
    memory: PhantomData<&'a mut [u32]>,
}

// SAFETY: threads share a `Chunks` only through `next`, which gives each part of the slice to one caller, and `wait`,
// which gives it to readers after the last writer's release.
unsafe impl Sync for Chunks<'_> {}

impl<'a> Chunks<'a> {
    /// Takes a slice of periods of `period` elements; each is cut into chunks of `chunk`, the last one what is left.
    ///
    /// Panics when the slice is not a number of whole periods.
    pub(super) fn new(slice: &'a mut [u32], period: usize, chunk: usize, threads: usize) -> Self {
        let (period, chunk) = (period.max(1), chunk.max(1));
        assert!(slice.len().is_multiple_of(period));
        let count = slice.len() / period * period.div_ceil(chunk);
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            period,
            chunk,
            next: Shares::new(count, threads),
            done: AtomicUsize::new(0),
            memory: PhantomData,
        }
    }

    fn count(&self) -> usize {
        self.len / self.period * self.period.div_ceil(self.chunk)
    }

    /// Hands out the next chunk for thread `me`, with the number of its period and its own number there.
    pub(super) fn next(&self, me: usize) -> Option<(usize, usize, Chunk<'_>)> {
        let i = self.next.next(me)?;
        let per_period = self.period.div_ceil(self.chunk);
        let (i, j) = (i / per_period, i % per_period);
        let range = j * self.chunk..self.period.min((j + 1) * self.chunk);
        // SAFETY: the range is inside a period of the slice borrowed by `new`, and disjoint from all others, as
        // `Shares` gives each number to one caller.
        let slice = unsafe {
            std::slice::from_raw_parts_mut(self.start.add(i * self.period + range.start), range.len())
        };
        Some((i, j, Chunk { slice, done: &self.done }))
    }

    /// Waits until every chunk was handed out and came back, and returns the whole slice.
    ///
    /// To be called after `next` returned `None`: then the chunks that are missing are in the hands of running threads.
    pub(super) fn wait(&self) -> &[u32] {
        let mut spins = 0;
        while self.done.load(Ordering::Acquire) < self.count() {
            spins += 1;
            if spins < 2000 {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        // SAFETY: all chunks were dropped (each counted itself with release order), and none is handed out twice, so no
        // one writes any more.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

/// A chunk to write; it comes back when dropped.
pub(super) struct Chunk<'a> {
    slice: &'a mut [u32],
    done: &'a AtomicUsize,
}

impl Drop for Chunk<'_> {
    fn drop(&mut self) {
        self.done.fetch_add(1, Ordering::Release);
    }
}

impl Deref for Chunk<'_> {
    type Target = [u32];
    fn deref(&self) -> &[u32] {
        self.slice
    }
}

impl DerefMut for Chunk<'_> {
    fn deref_mut(&mut self) -> &mut [u32] {
        self.slice
    }
}

/// Hands out the tiles of one or two row-major (rows, cols) matrices, each tile once.
pub(super) struct Tiles<'a, T> {
    first: *mut T,
    second: Option<*mut T>,
    grid: Grid,
    next: Shares,
    memory: PhantomData<&'a mut [T]>,
}

/// Cuts a (rows, cols) matrix into tiles of whole panels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub cols: usize,
    /// Rows in a panel.
    pub panel_rows: usize,
    /// Columns in a panel.
    pub panel_cols: usize,
    /// Panels of rows into tiles.
    pub down: Split,
    /// Panels of columns into tiles.
    pub across: Split,
}

impl Grid {
    /// Returns the number of tiles.
    pub(super) fn tiles(&self) -> usize {
        self.down.parts * self.across.parts
    }
}

// SAFETY: threads share a `Tiles` only through `next`, which gives each tile to one caller.
unsafe impl<T: Send> Sync for Tiles<'_, T> {}

impl<'a, T> Tiles<'a, T> {
    /// Takes the matrices.
    ///
    /// Panics when a slice does not have the grid's rows × cols elements.
    pub(super) fn new(first: &'a mut [T], second: Option<&'a mut [T]>, grid: Grid, threads: usize) -> Self {
        let len = grid.rows * grid.cols;
        assert!(first.len() == len && second.as_ref().is_none_or(|s| s.len() == len));
        assert_eq!(grid.down.count, grid.rows.div_ceil(grid.panel_rows));
        assert_eq!(grid.across.count, grid.cols.div_ceil(grid.panel_cols));
        let (first, second) = (first.as_mut_ptr(), second.map(|s| s.as_mut_ptr()));
        Self { first, second, grid, next: Shares::new(grid.tiles(), threads), memory: PhantomData }
    }

    /// Hands out the next tile for thread `me`.
    pub(super) fn next(&self, me: usize) -> Option<Tile<'_, T>> {
        let (i, grid) = (self.next.next(me)?, self.grid);
        let row_panels = grid.down.part(i / grid.across.parts);
        let col_panels = grid.across.part(i % grid.across.parts);
        let rows = row_panels.start * grid.panel_rows..grid.rows.min(row_panels.end * grid.panel_rows);
        let cols = col_panels.start * grid.panel_cols..grid.cols.min(col_panels.end * grid.panel_cols);
        Some(Tile { row_panels, col_panels, rows, cols, tiles: self })
    }
}

/// A tile to write, in one or two matrices.
pub(super) struct Tile<'a, T> {
    /// Its panels of rows.
    pub row_panels: Range<usize>,
    /// Its panels of columns.
    pub col_panels: Range<usize>,
    rows: Range<usize>,
    cols: Range<usize>,
    tiles: &'a Tiles<'a, T>,
}

impl<T> Tile<'_, T> {
    /// Returns the tile's rows.
    pub(super) fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Returns the tile's columns.
    pub(super) fn cols(&self) -> Range<usize> {
        self.cols.clone()
    }

    /// Returns the tile's part of row `row` of each matrix.
    ///
    /// Panics when the row is not the tile's.
    #[inline(always)]
    pub(super) fn row(&mut self, row: usize) -> (&mut [T], Option<&mut [T]>) {
        assert!(self.rows.contains(&row));
        let (at, len) = (row * self.tiles.grid.cols + self.cols.start, self.cols.len());
        // SAFETY: `at..at + len` is inside rows × cols elements, the length that `new` checked; it belongs to this
        // tile alone, as runs of a `Split` are disjoint and `next` gives each pair of runs once; `&mut self` keeps two
        // calls on one tile apart.
        unsafe {
            let first = std::slice::from_raw_parts_mut(self.tiles.first.add(at), len);
            let second = self.tiles.second.map(|s| std::slice::from_raw_parts_mut(s.add(at), len));
            (first, second)
        }
    }
}
