//! A program that takes no messages though some wait: what that costs the peers whose they are, if its protocol says so.
//!
//! A task for each such protocol looks a few times in the time that is allowed, and counts for each peer the looks at which it waited
//! and nothing had been taken since the one before. What counts is looks and not a clock: a machine that slept, or a process that was
//! stopped, has had no more of them, and its program no fewer chances.

use std::{collections::BTreeMap, ops::RangeInclusive, sync::Arc, time::Duration};

use byway_proto::PeerId;
use tokio::{sync::Notify, time};

use super::{
    Protocol,
    registry::{RegisterError, Registered},
    run::OnFailure,
};
use crate::{
    switch::{Command, Failure, SwitchRef},
    tasks::Tasks,
};

/// How long a program may be allowed to take nothing: below a second a busy machine would look like a stall, and above an hour nobody
/// gains by it.
const RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3_600);

/// Looks in the time that is allowed: what stalls is found out a quarter of it too late at most.
const LOOKS: u32 = 4;

/// How long a protocol's program may take nothing, and what it costs then.
#[derive(Debug)]
pub(crate) struct Stall {
    after: Duration,
    on_failure: OnFailure,
    /// Told when the protocol is not registered any more.
    ended: Notify,
}

impl Protocol {
    /// Says what it costs a peer that this node's program stalls: if messages of the peer wait on a channel, and the program takes
    /// nothing from that channel for `after`, whoever sent it, the protocol has failed with this peer, as if its task had
    /// ([`Peers::run`](crate::Peers::run)). That is told as [`Event::ProtocolFailed`](crate::Event::ProtocolFailed), and other
    /// protocols do not notice; what has come can still be received.
    ///
    /// `after` is 1 s to 1 h; it may take a quarter longer. Without this, a program may take as long as it likes: the queues are
    /// bounded. A slow program that takes a message now and then does not stall, a receiver that was dropped does not either, and
    /// byte streams do not count, for their users may pause them.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
    /// use std::time::Duration;
    ///
    /// use byway::{Channel, Config, Gone, Identity, Node, OnFailure, PeerEvent, Protocol, To};
    ///
    /// let (a, b) = (Node::bind(on_loopback()).await?, Node::bind(on_loopback()).await?);
    /// let mut orders = Protocol::new("orders", 1..=1).stalled_after(Duration::from_secs(1), OnFailure::DropProtocol);
    /// let (_tx, _rx) = orders.channel(Channel::new(1)); // which nobody reads
    /// let mut peers = a.register(orders)?;
    /// let mut theirs = Protocol::new("orders", 1..=1);
    /// let (tx, _theirs) = theirs.channel(Channel::new(1));
    /// let mut theirs = b.register(theirs)?;
    /// let peer = a.dial(b.ticket()).await?;
    /// assert_eq!(peers.next().await, Some(PeerEvent::Up { peer, version: 1 }));
    /// theirs.next().await;
    /// assert_eq!(tx.send(&To::All, "a pound of tea".into()).queued, 1);
    /// assert_eq!(peers.next().await, Some(PeerEvent::Down { peer, reason: Gone::Failed("orders".into()) }));
    /// assert_eq!(a.peers(), [peer], "the connection goes on");
    /// # Ok(())
    /// # }
    /// ```
    pub fn stalled_after(mut self, after: Duration, on_failure: OnFailure) -> Self {
        self.stall = Some(Stall { after, on_failure, ended: Notify::new() });
        self
    }
}

impl Stall {
    pub(super) fn check(&self, name: &str) -> Result<(), RegisterError> {
        if RANGE.contains(&self.after) { Ok(()) } else { Err(RegisterError::Stall(name.to_owned(), self.after)) }
    }

    /// Ends the looking.
    pub(super) fn end(&self) {
        self.ended.notify_one();
    }

    fn why(&self, channel: u32) -> String {
        let after = self.after;
        format!(
            "this node's program took no message from channel {channel} for {after:?} while some of this peer waited; let it \
             take them sooner, or allow it more time by `stalled_after`"
        )
    }
}

impl Registered {
    /// Begins to look whether the program takes messages, if the protocol says what it costs that it does not.
    pub(crate) fn watch(self: &Arc<Self>, tasks: &Tasks, switch: &SwitchRef) {
        if self.stall.is_some() {
            tasks.spawn(watch(Arc::clone(self), switch.clone()));
        }
    }
}

/// Looks until the protocol is not registered any more.
async fn watch(protocol: Arc<Registered>, switch: SwitchRef) {
    let Some(stall) = &protocol.stall else { return };
    protocol.channels.values().for_each(|(_, inbox)| inbox.count());
    let mut waits = BTreeMap::new();
    loop {
        tokio::select! {
            biased;
            () = stall.ended.notified() => return,
            () = time::sleep(stall.after / LOOKS) => {}
        }
        for failure in look(&protocol, stall, &mut waits) {
            switch.send(Command::Failed(failure)).await;
        }
    }
}

/// Looks at each channel, and tells with whom the protocol has failed; one failure for each peer, on whatever channels.
fn look(protocol: &Registered, stall: &Stall, waits: &mut BTreeMap<u32, Waits>) -> Vec<Failure> {
    let mut stalled = BTreeMap::new();
    for (channel, (_, inbox)) in &protocol.channels {
        let (taken, waiting) = inbox.progress();
        let members = protocol.members();
        let waiting = waiting.iter().filter_map(|peer| Some((*peer, members.get(peer)?.lanes)));
        for peer in waits.entry(*channel).or_default().look(taken, waiting) {
            if let Some(member) = members.get(&peer) {
                stalled.insert(peer, (Arc::clone(&member.link), *channel));
            }
        }
    }
    let failure = |(link, channel)| {
        let (protocol, on_failure) = (protocol.id, stall.on_failure);
        Failure { link, protocol, why: stall.why(channel), on_failure }
    };
    stalled.into_values().map(failure).collect()
}

/// The peers that wait on one channel.
#[derive(Debug, Default)]
struct Waits {
    /// What the program had taken at the last look.
    taken: u64,
    /// At how many looks after the first one at which a peer waited nothing had been taken; also by the number of the peer's lanes,
    /// so that its next connection begins anew. As many as speak the protocol at most.
    idle: BTreeMap<(PeerId, u32), u32>,
}

impl Waits {
    /// Takes in what a look shows, and gives the peers that have waited for too long; they begin anew if they still wait.
    fn look(&mut self, taken: u64, waiting: impl Iterator<Item = (PeerId, u32)>) -> Vec<PeerId> {
        let before = std::mem::take(&mut self.idle);
        let stands = std::mem::replace(&mut self.taken, taken) == taken;
        let mut stalled = Vec::new();
        for member in waiting {
            let looks = before.get(&member).filter(|_| stands).map_or(0, |looks| looks + 1);
            if looks < LOOKS {
                self.idle.insert(member, looks);
            } else {
                stalled.push(member.0);
            }
        }
        stalled
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::{super::registry::Registry, *};
    use crate::config::LinkConfig;

    fn peer(n: u8) -> PeerId {
        PeerId::ed25519([n; 32])
    }

    fn one(after: Duration) -> Protocol {
        Protocol::new("one", 1..=1).stalled_after(after, OnFailure::DropPeer)
    }

    #[test]
    fn who_waits_while_nothing_is_taken_has_waited_for_too_long_after_some_looks() {
        let mut waits = Waits::default();
        let member = |(n, lanes): &(u8, u32)| (peer(*n), *lanes);
        let mut look = |taken, waiting: &[(u8, u32)]| waits.look(taken, waiting.iter().map(member));
        let nobody: [PeerId; 0] = [];
        for _ in 0..LOOKS {
            assert_eq!(look(7, &[(1, 1)]), nobody);
        }
        assert_eq!(look(7, &[(1, 1), (2, 2)]), [peer(1)], "the other has come just now");
        assert_eq!(look(7, &[(1, 1), (2, 2)]), nobody, "it is told once");
        assert_eq!(look(7, &[(1, 1), (2, 2)]), nobody);
        assert_eq!(look(8, &[(1, 1), (2, 2)]), nobody, "a message was taken, of whomever");
        for _ in 1..LOOKS {
            assert_eq!(look(8, &[(1, 1), (2, 2)]), nobody);
        }
        assert_eq!(look(8, &[(1, 3), (2, 2)]), [peer(2)], "the first one has connected anew");
        assert_eq!(look(8, &[]), nobody);
        assert!(waits.idle.is_empty(), "who does not wait is forgotten");
    }

    #[test]
    fn a_time_that_is_out_of_its_range_is_refused() {
        let register = |after| Registry::new(&LinkConfig::default(), None).register(one(after)).map(|_| ());
        assert_eq!(register(Duration::ZERO), Err(RegisterError::Stall("one".into(), Duration::ZERO)));
        assert!(register(*RANGE.end() + Duration::from_millis(1)).is_err());
        assert_eq!((register(*RANGE.start()), register(*RANGE.end())), (Ok(()), Ok(())));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_looks_after_a_protocol_that_is_not_registered_any_more() {
        let registry = Registry::new(&LinkConfig::default(), None);
        let (switch, _inlets) = SwitchRef::new();
        let mut watching = Box::pin(watch(registry.register(one(*RANGE.end())).unwrap(), switch));
        assert!((&mut watching).now_or_never().is_none());
        assert!(registry.unregister("one").is_some());
        assert!((&mut watching).now_or_never().is_some());
    }
}
