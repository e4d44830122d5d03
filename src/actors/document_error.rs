//! Why a document is not in the archive yet.

use crate::persistence::archive::ArchiveError;
use crate::persistence::store::StoreError;

/// Why a document is not put yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the names say it")]
pub enum DocumentError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}
