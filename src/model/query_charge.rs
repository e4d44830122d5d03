//! Memory and points that a query holds, charged to its budget until dropped. Pure.

use super::budget::QueryBudget;

/// A query's charge; dropping it releases everything.
#[derive(Debug)]
pub struct QueryCharge<'a> {
    budget: &'a QueryBudget,
    bytes: usize,
    points: usize,
}

impl<'a> QueryCharge<'a> {
    /// Starts with nothing charged.
    pub fn new(budget: &'a QueryBudget) -> Self {
        Self { budget, bytes: 0, points: 0 }
    }

    /// The budget that is charged.
    pub fn budget(&self) -> &'a QueryBudget {
        self.budget
    }

    /// Charges memory. Aborts the query if its budget is exhausted.
    pub fn add_bytes(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.budget.charge(bytes);
    }

    /// Counts a point. Aborts the query if it has more than `max`.
    pub fn add_point(&mut self, max: usize) {
        self.points += 1;
        self.budget.count_point(max);
    }
}

impl Drop for QueryCharge<'_> {
    fn drop(&mut self) {
        self.budget.release(self.bytes);
        self.budget.release_points(self.points);
    }
}
