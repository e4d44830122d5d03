//! Tidiness is tested: imports, purity, sizes, docs, invariants, decisions, dependencies.
#![allow(unreachable_pub)] // a test has no external callers

mod arrows;
mod decisions;
mod dependencies;
mod invariants;
mod keys;
mod pages;
mod shape;
mod source;
