//! Interventions at run time: a rule looks at every packet and says what becomes of it.

use std::{fmt, net::SocketAddr, time::Duration};

use crate::fabric::NodeId;

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on, as far as this rule is concerned.
    Pass,
    /// It goes on later; the delays of several rules add up.
    Delay(Duration),
    /// It is gone. A TCP segment is sent again until it gets through or the connection times out.
    Drop,
}

/// A packet at the point where it stops climbing towards the core and turns towards its receiver: in the core, or in
/// the NAT that sender and receiver share, also by its outer address (hairpin).
#[derive(Debug)]
#[non_exhaustive]
pub struct Packet<'a> {
    /// When it turned, since the world began.
    pub time: Duration,
    /// The host that sent it, or the NAT that answers for itself.
    pub sender: NodeId,
    /// The host that will get it, as far as NATs on the way have a mapping for it.
    pub receiver: Option<NodeId>,
    /// Its source as seen here, after the sender's NATs.
    pub from: SocketAddr,
    /// Its destination as seen here, before the receiver's NATs.
    pub to: SocketAddr,
    /// Which transport it belongs to.
    pub transport: Transport,
    /// What it carries, without IP and transport headers.
    pub payload: &'a [u8],
}

/// The transport that a packet belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// A UDP datagram.
    Udp,
    /// A TCP segment.
    Tcp,
}

/// Judges packets; any `FnMut(&Packet<'_>) -> Verdict` is one.
///
/// A rule runs while the world is locked: it must not call the world, its hosts or its sockets. Packets that a host
/// sends to itself are not judged.
///
/// ```
/// use byway_sim::{Packet, Rule, Transport, Verdict, World};
///
/// /// Loses every third packet, if it is a datagram.
/// struct EveryThird(u32);
///
/// impl Rule for EveryThird {
///     fn verdict(&mut self, packet: &Packet<'_>) -> Verdict {
///         self.0 += 1;
///         let lost = packet.transport == Transport::Udp && self.0 % 3 == 0;
///         if lost { Verdict::Drop } else { Verdict::Pass }
///     }
/// }
///
/// # fn main() -> std::io::Result<()> {
/// World::run(1, |world| async move {
///     let (a, b) = (world.host("a"), world.host("b"));
///     let (from, to) = (a.bind_udp((a.addr(), 7).into())?, b.bind_udp((b.addr(), 7).into())?);
///     let rule = world.rule(EveryThird(0));
///     (0..9).try_for_each(|_| from.send_to(b"hello", to.local_addr()))?;
///     tokio::time::sleep(std::time::Duration::from_secs(1)).await;
///     assert_eq!(b.traffic().received, 6);
///     rule.lift();
///     Ok(())
/// })
/// # }
/// ```
pub trait Rule: Send {
    /// Says what becomes of `packet`.
    fn verdict(&mut self, packet: &Packet<'_>) -> Verdict;
}

impl<F: FnMut(&Packet<'_>) -> Verdict + Send> Rule for F {
    fn verdict(&mut self, packet: &Packet<'_>) -> Verdict {
        self(packet)
    }
}

/// The rules in force, in the order in which they came.
#[derive(Default)]
pub(crate) struct Rules {
    rules: Vec<(u64, Box<dyn Rule>)>,
    next: u64,
}

impl Rules {
    /// Adds a rule and names it.
    pub(crate) fn add(&mut self, rule: Box<dyn Rule>) -> u64 {
        self.next += 1;
        self.rules.push((self.next, rule));
        self.next
    }

    /// Takes a rule out, to be dropped by the caller.
    pub(crate) fn remove(&mut self, id: u64) -> Option<Box<dyn Rule>> {
        let at = self.rules.iter().position(|(rule, _)| *rule == id)?;
        Some(self.rules.remove(at).1)
    }

    /// Whether there is nobody to ask.
    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The verdict of all rules together: the first to drop wins.
    pub(crate) fn judge(&mut self, packet: &Packet<'_>) -> Verdict {
        let mut delay = Duration::ZERO;
        for (_, rule) in &mut self.rules {
            match rule.verdict(packet) {
                Verdict::Pass => {}
                Verdict::Delay(more) => delay += more,
                Verdict::Drop => return Verdict::Drop,
            }
        }
        if delay.is_zero() { Verdict::Pass } else { Verdict::Delay(delay) }
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.rules.iter().map(|(id, _)| id)).finish()
    }
}
