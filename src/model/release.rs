//! The nouns of a release: what a quarantined event adds, and which writers have passed it.

use super::flush::{Delta, FillProgress, FlushBatch, GenerationDeltas};
use super::generation::{GenerationId, WriterPart};
use super::offset::Offset;

/// What the store transaction of a release merges. Guarded by a compare-and-set on the basis.
#[derive(Debug, Clone, Default)]
pub struct ReleasedEvent {
    /// What the event adds to generation 0.
    pub deltas: Vec<Delta>,
    /// What it adds to other generations, to the rows of the writer that has passed it. Series of
    /// the writer that are new are numbered as admitted at the offset of the event.
    pub generations: Vec<(WriterPart, GenerationDeltas)>,
    /// On what the list of generations was decided.
    pub basis: ReleaseBasis,
}

impl From<&FlushBatch> for ReleasedEvent {
    /// A release into generation 0 alone.
    fn from(batch: &FlushBatch) -> Self {
        Self { deltas: batch.deltas.clone(), ..Self::default() }
    }
}

/// Which writers of other generations have passed an event. The event is merged into the rows of
/// these. A fill that comes to it later counts it itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReleaseBasis {
    /// Version of the set that the shard writes under.
    pub set: u64,
    /// For each generation that has a cut in the shard, ascending: the writer that has passed the
    /// event, `None` if the fill has not come to it yet.
    pub cuts: Vec<(GenerationId, Option<WriterPart>)>,
}

impl ReleaseBasis {
    /// The basis of an event that lies below the checkpoint. `fills` are the shard's.
    pub fn new(set: u64, fills: &[(GenerationId, FillProgress)], offset: Offset) -> Self {
        let passed = |at: &FillProgress| match offset {
            _ if offset >= at.cut => Some(WriterPart::Live),
            _ if offset < at.cursor => Some(WriterPart::Fill),
            _ => None,
        };
        let mut cuts: Vec<_> = fills.iter().map(|(id, at)| (*id, passed(at))).collect();
        cuts.sort_unstable_by_key(|(id, _)| *id);
        Self { set, cuts }
    }

    /// The writer that has passed the event, in a generation of the set. A shard that began with
    /// the generation has no cut: all its records are the live writer's.
    pub fn writer(&self, generation: GenerationId) -> Option<WriterPart> {
        let cut = self.cuts.iter().find(|(id, _)| *id == generation);
        cut.map_or(Some(WriterPart::Live), |(_, passed)| *passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::offset::LogId;

    #[test]
    fn an_event_is_merged_where_the_writer_has_passed_it() {
        let at = |cut, cursor| FillProgress { log: LogId([1; 16]), cut, cursor };
        let fills = [(GenerationId(3), at(5, 2)), (GenerationId(1), at(9, 9))];
        let writers = |offset| {
            let basis = ReleaseBasis::new(7, &fills, offset);
            assert_eq!(basis.set, 7);
            [1, 2, 3].map(|id| basis.writer(GenerationId(id)))
        };
        let (live, fill) = (Some(WriterPart::Live), Some(WriterPart::Fill));
        assert_eq!(writers(1), [fill, live, fill]);
        assert_eq!(writers(2), [fill, live, None], "the fill comes to it");
        assert_eq!(writers(4), [fill, live, None]);
        assert_eq!(writers(5), [fill, live, live], "the cut itself is live");
        assert_eq!(writers(9), [live, live, live]);
        let basis = |offset| ReleaseBasis::new(7, &fills, offset);
        assert_ne!(basis(1), basis(2));
        assert_eq!(basis(2), basis(4), "nothing has moved past it");
    }
}
