//! Memory for what waits to be sent, of all peers together.
//!
//! Each lane has a bound of its own; this one holds where many are full at once. A lane that has little takes more whatever the
//! others hold, so nobody waits for another peer: who is refused has something in its own lane, and is told when that has had a turn.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::budget::SMALL;

/// What a lane takes at once, as much as small messages share: so a message costs no count that other threads share.
const PIECE: usize = 16 << 10;

/// What waits in the lanes of one node.
#[derive(Debug)]
pub(crate) struct Spool {
    used: AtomicUsize,
    pub(crate) limit: usize,
}

impl Spool {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Spool { used: AtomicUsize::new(0), limit })
    }

    /// Bytes in use, to the piece.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }
}

/// One lane's part of it; comes back when this is dropped.
#[derive(Debug)]
pub(super) struct Part {
    spool: Arc<Spool>,
    held: usize,
}

impl Part {
    pub(super) fn new(spool: &Arc<Spool>) -> Self {
        Part { spool: Arc::clone(spool), held: 0 }
    }

    /// Whether a lane that holds so many bytes may take a message.
    pub(super) fn may_grow(&self, bytes: usize) -> bool {
        bytes < SMALL || self.spool.used() < self.spool.limit
    }

    /// The lane holds so many bytes now.
    pub(super) fn fit(&mut self, bytes: usize) {
        let wanted = bytes.next_multiple_of(PIECE);
        if wanted > self.held {
            self.spool.used.fetch_add(wanted - self.held, Relaxed);
            self.held = wanted;
        } else if wanted < self.held {
            self.spool.used.fetch_sub(self.held - wanted, Relaxed);
            self.held = wanted;
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.fit(0);
    }
}
