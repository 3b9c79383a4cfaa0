//! The cheapest one-to-one assignment, exactly: shortest augmenting paths with dual prices.
//!
//! Rows enter one after another; each takes the path of least reduced cost to a free column (Jonker and Volgenant 1987,
//! in the form of Crouse 2016). O(n³) at worst, on one thread.

use crate::error::{Error, Result};

/// Returns the column of each row that makes Σ cost[row][column] smallest: `cost: (n, n)`.
///
/// # Errors
/// A matrix that is not square, or values that are not finite.
pub fn assignment(cost: &[f64], n: usize) -> Result<Vec<usize>> {
    const OP: &str = "assignment";
    if cost.len() != n * n {
        return Err(Error::argument(
            OP,
            "cost",
            format!("{n} rows of {n} values"),
            format!("{} values", cost.len()),
        ));
    }
    if let Some(i) = cost.iter().position(|c| !c.is_finite()) {
        return Err(Error::argument(OP, "cost", "finite values", format!("{} in row {}", cost[i], i / n)));
    }
    let (rows, columns) = (vec![0.0; n], vec![0.0; n]);
    let mut duals = Duals { rows, columns, row_of: vec![None; n], column_of: vec![None; n] };
    (0..n).for_each(|row| duals.augment(cost, row));
    Ok(duals.column_of.into_iter().flatten().collect())
}

/// Prices under which no reduced cost, cost − rows − columns, is negative, and those of assigned pairs are 0.
struct Duals {
    rows: Vec<f64>,
    columns: Vec<f64>,
    /// The row of each column, and the column of each row.
    row_of: Vec<Option<usize>>,
    column_of: Vec<Option<usize>>,
}

impl Duals {
    /// Assigns one more row, by Dijkstra's algorithm on the reduced costs.
    fn augment(&mut self, cost: &[f64], start: usize) {
        let n = self.columns.len();
        let mut distance = vec![f64::INFINITY; n];
        let mut before = vec![start; n]; // the row a column is reached from
        let mut done = vec![false; n];
        let (mut row, mut reached) = (start, 0.0);
        let end = loop {
            let line = &cost[row * n..(row + 1) * n];
            let (mut least, mut next) = (f64::INFINITY, 0);
            for column in (0..n).filter(|c| !done[*c]) {
                let through = reached + line[column] - self.rows[row] - self.columns[column];
                if through < distance[column] {
                    (distance[column], before[column]) = (through, row);
                }
                if distance[column] < least {
                    (least, next) = (distance[column], column);
                }
            }
            (reached, done[next]) = (least, true);
            match self.row_of[next] {
                Some(other) => row = other,
                None => break next,
            }
        };
        self.rows[start] += reached;
        for column in (0..n).filter(|c| done[*c] && *c != end) {
            let lead = reached - distance[column];
            self.columns[column] -= lead;
            self.row_of[column].iter().for_each(|row| self.rows[*row] += lead);
        }
        self.flip(&before, end);
    }

    /// Gives each column of the path that ends at `column` to the row it was reached from.
    fn flip(&mut self, before: &[usize], mut column: usize) {
        loop {
            let row = before[column];
            self.row_of[column] = Some(row);
            match self.column_of[row].replace(column) {
                Some(left) => column = left,
                None => return, // the row that came in
            }
        }
    }
}
