//! What a query holds, charged to its budget until it is dropped. Pure.

use crate::model::budget::Budget;

/// Memory and points that a query holds.
#[derive(Debug)]
pub struct Charge<'a> {
    budget: &'a Budget,
    bytes: usize,
    points: usize,
}

impl<'a> Charge<'a> {
    /// Nothing yet.
    pub fn new(budget: &'a Budget) -> Self {
        Self { budget, bytes: 0, points: 0 }
    }

    /// The budget.
    pub fn budget(&self) -> &'a Budget {
        self.budget
    }

    /// Charges memory; the query ends if there is no more.
    pub fn bytes(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.budget.charge(bytes);
    }

    /// Counts a point; the query ends if it has more than `max`.
    pub fn point(&mut self, max: usize) {
        self.points += 1;
        self.budget.point(max);
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        self.budget.release(self.bytes);
        self.budget.release_points(self.points);
    }
}
