//! Rules that are compiled once in a process, however many shards and replays apply them.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use super::{RuleMistakes, RuleSet, RulesFormat};

/// What is in use, by its canonical text. Compiling is a function of the text, so whoever compiled
/// it first makes no difference.
static IN_USE: LazyLock<Mutex<BTreeMap<String, Weak<RuleSet>>>> = LazyLock::new(Mutex::default);

impl RuleSet {
    /// The rules of a canonical text, compiled unless somebody in this process has them already:
    /// expressions take memory, and a node runs many shards.
    ///
    /// # Errors
    /// If this build does not know them: a newer one wrote them.
    pub fn shared(canonical: &str) -> Result<Arc<Self>, RuleMistakes> {
        // Held while compiling, so that shards that start together compile once.
        let mut in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = in_use.get(canonical).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let rules = Arc::new(Self::parse(canonical, RulesFormat::Json)?);
        in_use.retain(|_, rules| rules.strong_count() > 0);
        in_use.insert(canonical.to_owned(), Arc::downgrade(&rules));
        Ok(rules)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_share_what_is_compiled_and_nothing_is_kept_for_nobody() {
        let text = r#"{"rule":[{"name":"shared once","drop":true}]}"#;
        let (one, other) = (RuleSet::shared(text).expect("one"), RuleSet::shared(text));
        assert!(Arc::ptr_eq(&one, &other.expect("other")));
        let weak = Arc::downgrade(&one);
        drop(one);
        assert_eq!(weak.strong_count(), 0);
        assert_eq!(
            *RuleSet::shared(text).expect("again"),
            RuleSet::parse(text, RulesFormat::Json).expect("parsed")
        );
        assert!(RuleSet::shared("{").is_err());
    }
}
