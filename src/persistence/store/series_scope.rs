//! Where a series is unique.

use crate::model::generation::{GenerationId, Writer, WriterPart};

/// Where a series is unique. A number is never shared across scopes, so no two writers share a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SeriesScope {
    /// Generation 0, whose series all shards share.
    Ingest,
    /// One writer of another generation.
    Writer(GenerationId, Writer),
}

impl SeriesScope {
    /// The generation that has the series.
    pub fn generation(self) -> GenerationId {
        match self {
            SeriesScope::Ingest => GenerationId::INGEST,
            SeriesScope::Writer(generation, _) => generation,
        }
    }

    /// Which of a shard's writers it is; `None` for ingest.
    pub(super) fn part(self) -> Option<WriterPart> {
        match self {
            SeriesScope::Ingest => None,
            SeriesScope::Writer(_, writer) => Some(writer.part),
        }
    }
}
