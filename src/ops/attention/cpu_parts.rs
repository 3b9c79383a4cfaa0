//! Parts of a matrix that several threads write at once: each part is handed out once, so no two threads ever hold the same.

use std::marker::PhantomData;
use std::ops::Range;

/// Some rows of some columns of a matrix, to write.
pub(super) struct Part<'a, X> {
    start: *mut X,
    rows: usize,
    stride: usize,
    width: usize,
    memory: PhantomData<&'a mut [X]>,
}

// SAFETY: a part is the only way to its elements, as a `&mut [X]` would be.
unsafe impl<X: Send> Send for Part<'_, X> {}

impl<X> Part<'_, X> {
    /// Returns the number of rows.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Returns row `i`.
    ///
    /// Panics when there is none.
    #[inline(always)]
    pub(super) fn row(&mut self, i: usize) -> &mut [X] {
        assert!(i < self.rows);
        // SAFETY: `parts` checked that all rows of the part lie inside its matrix, which is borrowed as long as the part lives; the
        // elements belong to this part alone, and `&mut self` keeps two calls on it apart.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(i * self.stride), self.width) }
    }
}

/// Cuts a row-major matrix into the given rows times blocks of `width` columns, in this order.
///
/// Panics when rows overlap, go backwards or lie outside, or columns are no whole blocks.
pub(super) fn parts<'a, X>(
    matrix: &'a mut [X],
    columns: usize,
    rows: impl Iterator<Item = Range<usize>>,
    width: usize,
) -> Vec<Part<'a, X>> {
    assert!(width > 0 && columns.is_multiple_of(width));
    let (len, start) = (matrix.len(), matrix.as_mut_ptr());
    let (mut parts, mut end) = (Vec::new(), 0);
    for rows in rows {
        assert!(end <= rows.start && rows.start <= rows.end && rows.end * columns <= len);
        end = rows.end;
        for column in (0..columns).step_by(width) {
            // No access yet: inside the matrix, or just behind it when there are no rows.
            let start = start.wrapping_add(rows.start * columns + column);
            parts.push(Part { start, rows: rows.len(), stride: columns, width, memory: PhantomData });
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_a_matrix_without_overlap() {
        let mut matrix = vec![0; 5 * 6];
        for (i, part) in parts(&mut matrix, 6, [0..2, 2..5].into_iter(), 3).iter_mut().enumerate() {
            for row in 0..part.rows() {
                part.row(row).iter_mut().for_each(|x| *x += 1 + i);
            }
        }
        assert_eq!(matrix[..6], [1, 1, 1, 2, 2, 2]);
        assert_eq!(matrix[24..], [3, 3, 3, 4, 4, 4]);
        assert!(matrix.iter().all(|x| (1..=4).contains(x)));
    }

    #[test]
    #[should_panic]
    fn rows_that_overlap_are_refused() {
        parts(&mut [0; 12], 3, [0..2, 1..3].into_iter(), 3);
    }
}
