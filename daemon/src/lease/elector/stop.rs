//! How the elector is told to end.

use std::sync::Arc;

use tokio::sync::watch;

/// What comes after the services of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Nothing: another node may lead at once.
    Stopped,
    /// The next process of this node, which goes on with the term of this one.
    Replaced,
}

/// Tells the elector, and what ends with it, to end. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    ordered: Arc<watch::Sender<Option<Ending>>>,
}

impl Stop {
    /// Orders the end. Only the first order counts.
    pub fn order(&self, ending: Ending) {
        self.ordered.send_if_modified(|ordered| {
            let first = ordered.is_none();
            *ordered = ordered.or(Some(ending));
            first
        });
    }

    pub fn is_ordered(&self) -> bool {
        self.ordered.borrow().is_some()
    }

    /// Returns when the end is ordered.
    pub async fn ordered(&self) -> Ending {
        let mut ordered = self.ordered.subscribe();
        loop {
            if let Some(ending) = *ordered.borrow_and_update() {
                return ending;
            }
            // The sender is `self`, so that waiting cannot fail.
            let _ = ordered.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_order_counts() {
        let stop = Stop::default();
        let waiting = tokio::spawn({
            let stop = stop.clone();
            async move { stop.ordered().await }
        });
        assert!(!stop.is_ordered());
        stop.order(Ending::Replaced);
        stop.order(Ending::Stopped);
        assert!(stop.is_ordered());
        assert_eq!(waiting.await.unwrap(), Ending::Replaced);
        assert_eq!(stop.ordered().await, Ending::Replaced);
    }
}
