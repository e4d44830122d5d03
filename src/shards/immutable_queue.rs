//! A persistent FIFO queue made of two immutable stacks, the classic construction (Okasaki, "Purely
//! Functional Data Structures", 5.2).
//!
//! Enqueue and dequeue are amortised O(1) if each version is dequeued once. Cloning is O(1) and
//! shares everything, and every version stays valid. Dropping a long queue does not recurse. The
//! shard keeps its committed batches in one: live readers hold a version at no cost and read it
//! without the shard's lock.

use std::sync::Arc;

struct Node<T> {
    item: Arc<T>,
    next: Stack<T>,
}

struct Stack<T>(Option<Arc<Node<T>>>);

impl<T> Clone for Stack<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Drop for Stack<T> {
    fn drop(&mut self) {
        // Iterative, because the derived drop would recurse once per node. Stops at the first node
        // that another version still shares.
        let mut next = self.0.take();
        while let Some(mut node) = next.and_then(Arc::into_inner) {
            next = node.next.0.take();
        }
    }
}

impl<T> Stack<T> {
    fn push(&self, item: Arc<T>) -> Self {
        Self(Some(Arc::new(Node { item, next: self.clone() })))
    }

    fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        std::iter::successors(self.0.as_deref(), |node| node.next.0.as_deref())
            .map(|node| &node.item)
    }
}

/// A persistent first-in, first-out queue; see the [module](self).
pub struct ImmutableQueue<T> {
    front: Stack<T>,
    back: Stack<T>,
    len: usize,
}

impl<T> Clone for ImmutableQueue<T> {
    fn clone(&self) -> Self {
        Self { front: self.front.clone(), back: self.back.clone(), len: self.len }
    }
}

impl<T> Default for ImmutableQueue<T> {
    fn default() -> Self {
        Self { front: Stack(None), back: Stack(None), len: 0 }
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for ImmutableQueue<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<T> ImmutableQueue<T> {
    /// Creates an empty queue.
    pub fn new() -> Self {
        Self::default()
    }
    /// Number of items in the queue.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether the queue is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Returns this queue with one more item at its end.
    #[must_use]
    pub fn enqueue(&self, item: impl Into<Arc<T>>) -> Self {
        Self { front: self.front.clone(), back: self.back.push(item.into()), len: self.len + 1 }
    }
    /// Returns the first item and the rest of the queue, or `None` if the queue is empty.
    pub fn dequeue(&self) -> Option<(Arc<T>, Self)> {
        if let Some(node) = &self.front.0 {
            let rest =
                Self { front: node.next.clone(), back: self.back.clone(), len: self.len - 1 };
            return Some((node.item.clone(), rest));
        }
        // The front is used up: reverse the back once. Each item is moved this way at most once per
        // version, which is what makes dequeue amortised O(1).
        let turned = self.back.iter().fold(Stack(None), |stack, item| stack.push(item.clone()));
        let node = turned.0.as_ref()?;
        let rest = Self { front: node.next.clone(), back: Stack(None), len: self.len - 1 };
        Some((node.item.clone(), rest))
    }
    /// The first item, which stays in the queue. O(n) while the front stack is empty.
    pub fn peek(&self) -> Option<&Arc<T>> {
        self.front.iter().next().or_else(|| self.back.iter().last())
    }
    /// Iterates from first to last. Allocates O(n) for the part that is still in the back stack.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        let mut back: Vec<_> = self.back.iter().collect();
        back.reverse();
        self.front.iter().chain(back)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_vecdeque_and_old_versions_stay(
            ops in proptest::collection::vec(any::<Option<u16>>(), 0..200),
        ) {
            let mut queue = ImmutableQueue::new();
            let mut model: VecDeque<u16> = VecDeque::new();
            let mut versions = Vec::new();
            for op in ops {
                match op {
                    Some(item) => {
                        queue = queue.enqueue(item);
                        model.push_back(item);
                    }
                    None => {
                        let dequeued = queue.dequeue();
                        let first = dequeued.as_ref().map(|(item, _)| **item);
                        prop_assert_eq!(first, model.pop_front());
                        queue = dequeued.map_or_else(ImmutableQueue::new, |(_, rest)| rest);
                    }
                }
                prop_assert_eq!(queue.len(), model.len());
                prop_assert_eq!(queue.peek().map(|item| **item), model.front().copied());
                versions.push((queue.clone(), model.clone()));
            }
            for (queue, model) in versions {
                prop_assert!(queue.iter().map(|item| **item).eq(model));
            }
        }
    }

    #[test]
    fn a_long_queue_drops_without_overflowing_the_stack() {
        let queue =
            (0..1_000_000u32).fold(ImmutableQueue::new(), |queue, item| queue.enqueue(item));
        let (_, turned) = queue.dequeue().expect("an item");
        drop(queue);
        assert_eq!(turned.len(), 999_999);
        drop(turned);
    }

    #[test]
    fn is_send_and_sync() {
        fn check<T: Send + Sync>() {}
        check::<ImmutableQueue<u64>>();
    }
}
