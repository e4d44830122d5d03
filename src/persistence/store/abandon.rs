//! What a flush gives up, as a change of the book of generations.

use super::{AuditEntry, StoreError};
use crate::model::flush::{Abandonment, FlushGuard};
use crate::model::generation::GenerationId;
use crate::model::generation_book::GenerationBook;

/// The book without the generations that a flush was folded without, and what is noted of them in
/// the audit list; `None` if there are none, or if all of them have left already.
pub(super) fn without_abandoned(
    book: &GenerationBook,
    guard: &FlushGuard,
    abandons: &[Abandonment],
) -> Result<Option<(GenerationBook, Vec<AuditEntry>)>, StoreError> {
    let (mut next, mut entries) = (book.clone(), Vec::new());
    for abandonment in abandons {
        let why = abandonment.reason(guard.shard);
        // Two books of one version differ in the nonce of their sets, which no other flush has.
        let given_up = next.give_up(&abandonment.generations, &why, guard.revision());
        // Somebody has applied one of them meanwhile: its rows would lack events.
        let given_up = given_up.map_err(|_| StoreError::Refused { shard: guard.shard })?;
        let tenant = |id: &GenerationId| {
            next.generations().get(id).map(|of| of.tenant.clone()).unwrap_or_default()
        };
        entries.extend(given_up.iter().map(|id| AuditEntry {
            generation: *id,
            tenant: tenant(id),
            action: "give_up".to_owned(),
            at: abandonment.at,
            by: format!("shard {}", guard.shard),
            note: why.clone(),
        }));
    }
    Ok((!entries.is_empty()).then_some((next, entries)))
}
