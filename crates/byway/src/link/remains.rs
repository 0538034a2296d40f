//! What is left of connections that have ended: what QUIC received whole, and their readers have not handed over yet.
//!
//! A reader that does not wait hands it all over at once. One that waits, for its program, for memory or for a rate, keeps up to a
//! connection's window alive that no budget counts, so it may do so for a while only, and for one connection of each peer: what a
//! peer leaves behind again and again is one window, and what many peers do is what the line brings in that while.

use std::{collections::BTreeMap, time::Duration};

use byway_proto::PeerId;
use quinn::Connection;
use tokio::time;

use crate::watched::Watched;

/// How long the readers of a connection that has ended may wait: a program that is behind by a connection's window catches up in
/// that time if it takes 28 Mbit/s.
const GRACE: Duration = Duration::from_secs(10);

/// The last connection of each peer that has ended and has readers that wait.
#[derive(Debug, Default)]
pub(crate) struct Remains(Watched<BTreeMap<PeerId, usize>>);

/// A reader that waits though its connection has ended.
struct Waiting<'a> {
    remains: &'a Remains,
    peer: PeerId,
    connection: usize,
}

impl Remains {
    /// Waits until a peer's connection has ended and its readers have had their time, or another one of the peer has ended.
    pub(super) async fn are_over(&self, peer: PeerId, connection: &Connection) {
        connection.closed().await;
        self.wait(peer, connection.stable_id()).await;
    }

    async fn wait(&self, peer: PeerId, connection: usize) {
        let _waiting = Waiting::new(self, peer, connection);
        let another = self.0.wait(|last| last.get(&peer).is_some_and(|last| *last != connection).then_some(()));
        let _ = time::timeout(GRACE, another).await; // either is the end
    }
}

impl<'a> Waiting<'a> {
    fn new(remains: &'a Remains, peer: PeerId, connection: usize) -> Self {
        remains.0.change(|last| {
            last.insert(peer, connection);
        });
        Waiting { remains, peer, connection }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut last = self.remains.0.read();
        if last.get(&self.peer) == Some(&self.connection) {
            last.remove(&self.peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn peer(n: u8) -> PeerId {
        PeerId::ed25519([n; 32])
    }

    #[tokio::test(start_paused = true)]
    async fn readers_of_an_ended_connection_wait_as_long_as_they_may_or_until_another_of_the_peer_ends() {
        let remains = Remains::default();
        let start = time::Instant::now();
        remains.wait(peer(1), 1).await;
        assert!(start.elapsed() >= GRACE && start.elapsed() < GRACE + Duration::from_millis(10));
        let mut waits = [(1, 1), (1, 1), (2, 2)].map(|(n, connection)| Box::pin(remains.wait(peer(n), connection)));
        assert!(waits.iter_mut().all(|wait| wait.now_or_never().is_none()));
        let mut next = Box::pin(remains.wait(peer(1), 3));
        assert!((&mut next).now_or_never().is_none());
        let over = waits.each_mut().map(|wait| wait.now_or_never().is_some());
        assert_eq!(over, [true, true, false]);
        drop((waits, next));
        assert!(remains.0.read().is_empty());
    }
}
