//! A stored rollup, as far as it is compared.

use std::sync::Arc;

use crate::model::flush::SeriesInfo;
use crate::model::rollup::RollupFigures;

/// A stored rollup. Its bytes are kept as a digest, because all rows of the range are in memory.
pub(super) struct StoredRow {
    pub(super) info: Arc<SeriesInfo>,
    pub(super) figures: RollupFigures,
    pub(super) digest: u128,
}

/// The digest by which rollups are compared.
pub(super) fn digest(bytes: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(bytes)
}
