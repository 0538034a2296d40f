//! One port at one gateway: who is asked for it, what was granted, when it is renewed.

use core::{net::SocketAddr, time::Duration};

use super::{
    Dialect, EXTERNAL_PORTS, Gateway, LIFETIME, MIN_RENEWAL, Mapping, NATPMP_TRIES, PCP_TRIES, Port, REFUSED_RETRY,
    SILENT_RETRY, Turn, UPNP_REFRESH, UPNP_TIMEOUT, Why, is_public,
};
use crate::{Instant, Rng, wire::pcp};

/// How often a removal is sent, and the pause between: the last one leaves in time for an answer before the deadline.
const REMOVAL: (u8, Duration) = (3, Duration::from_millis(250));

/// A NAT-PMP request's first retransmission comes after this (RFC 6886 §3.1).
const NATPMP_INTERVAL: Duration = Duration::from_millis(250);

/// A PCP request's first retransmission comes after this, give or take a tenth (RFC 6887 §8.1.1, IRT and RAND).
const PCP_INTERVAL: Duration = Duration::from_secs(3);

/// Lowest external port that is asked for: below lie the well-known ones.
const MIN_EXTERNAL: u16 = 1_024;

/// A request under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tries {
    pub(super) next: Instant,
    sent: u8,
}

impl Tries {
    /// For a request that is sent now.
    pub(super) fn first(by: Dialect, turn: &mut Turn<'_>) -> Self {
        let mut tries = Tries { next: turn.now, sent: 0 };
        tries.sent(by, turn);
        tries
    }

    /// Whether it may be sent once more; `false` ends it.
    pub(super) fn again(&mut self, by: Dialect, turn: &mut Turn<'_>) -> bool {
        let limit = match by {
            Dialect::Pcp => PCP_TRIES,
            Dialect::NatPmp => NATPMP_TRIES,
            Dialect::Upnp => 1, // the driver repeats what needs repeating
        };
        let more = self.sent < limit;
        if more {
            self.sent(by, turn);
        }
        more
    }

    fn sent(&mut self, by: Dialect, turn: &mut Turn<'_>) {
        let doubled = 1 << self.sent.min(7);
        let pause = match by {
            Dialect::Pcp => PCP_INTERVAL * doubled * (900 + turn.rng.below(201) as u32) / 1_000,
            Dialect::NatPmp => NATPMP_INTERVAL * doubled,
            Dialect::Upnp => UPNP_TIMEOUT,
        };
        self.sent += 1;
        self.next = turn.now + pause;
    }
}

/// A port at a gateway.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) port: Port,
    /// The same for all requests for this port here: it proves that the mapping is ours (RFC 6887 §11.2).
    pub(super) nonce: [u8; pcp::NONCE_LEN],
    pub(super) state: State,
    /// Dialects that were asked in this round.
    tried: [bool; 3],
    /// Where it was mapped last, to be asked for again.
    last: Option<SocketAddr>,
    /// External ports found taken in this round.
    taken: u16,
    /// The gateway makes UPnP mappings without an end only (error 725).
    pub(super) permanent: bool,
    /// The reason of the last refusal in this round, and how long it holds.
    refused: Option<(Why, Duration)>,
    pause: Duration,
}

#[derive(Debug)]
pub(super) enum State {
    /// Until a dialect is known to be spoken.
    Waiting,
    /// All dialects have refused, or none is spoken.
    Resting { until: Instant },
    /// A request is under way.
    Asking { by: Dialect, tries: Tries },
    /// Mapped.
    Held { mapping: Mapping, renew_at: Instant },
    /// Being removed.
    Removing { by: Dialect, external: u16, sent: u8, next: Instant },
    /// Removed, or given up.
    Gone,
}

/// What a gateway grants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grant {
    pub(super) by: Dialect,
    pub(super) external: SocketAddr,
    /// `None` for a mapping without an end.
    pub(super) lifetime: Option<Duration>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wish {
    /// A mapping to this external port, if that can be had.
    Map(u16),
    /// The removal of the mapping to it.
    Remove(u16),
}

/// What a grant means for a lease.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Granted {
    /// It is the mapping from now on.
    Taken,
    /// Another dialect made the mapping already, and this one is a second one that nobody needs.
    Superfluous,
    /// Nothing.
    Ignored,
}

impl Lease {
    pub(super) fn new(port: Port, rng: &mut Rng) -> Self {
        Lease {
            port,
            nonce: rng.bytes(),
            state: State::Waiting,
            tried: [false; 3],
            last: None,
            taken: 0,
            permanent: false,
            refused: None,
            pause: REFUSED_RETRY.0,
        }
    }

    /// What the gateway is asked for: what there was, or the internal port, or one of those after it.
    pub(super) fn external(&self) -> u16 {
        match self.last {
            Some(last) if self.taken == 0 => last.port(),
            _ => {
                let range = u32::from(u16::MAX - MIN_EXTERNAL) + 1;
                let wish = u32::from(self.port.number.max(MIN_EXTERNAL) - MIN_EXTERNAL) + u32::from(self.taken);
                MIN_EXTERNAL + (wish % range) as u16
            }
        }
    }

    pub(super) fn mapping(&self) -> Option<Mapping> {
        match self.state {
            State::Held { mapping, .. } => Some(mapping),
            _ => None,
        }
    }

    pub(super) fn was_asked(&self, by: Dialect) -> bool {
        self.tried.get(by as usize).copied().unwrap_or(false)
    }

    pub(super) fn ask(&mut self, by: Dialect, turn: &mut Turn<'_>) {
        if let Some(tried) = self.tried.get_mut(by as usize) {
            *tried = true;
        }
        self.state = State::Asking { by, tries: Tries::first(by, turn) };
    }

    /// Begins a new round: all dialects may be asked again.
    pub(super) fn begin_anew(&mut self) {
        (self.tried, self.taken, self.refused, self.state) = ([false; 3], 0, None, State::Waiting);
    }

    /// Waits after a round without success, and says why; longer each time.
    pub(super) fn rest(&mut self, now: Instant) -> Why {
        let (why, pause) = match self.refused.take() {
            Some((why, held)) => {
                let pause = self.pause.max(held.min(REFUSED_RETRY.1));
                self.pause = (self.pause * 2).min(REFUSED_RETRY.1);
                (why, pause)
            }
            None => (Why::Silent, SILENT_RETRY),
        };
        self.state = State::Resting { until: now + pause };
        why
    }

    /// Takes a refusal of the dialect that is being asked; `true` if the next external port is to be asked for.
    pub(super) fn note_refusal(&mut self, why: Why, held: Duration) -> bool {
        let taken = matches!(why, Why::PortsTaken);
        if taken && self.taken + 1 < EXTERNAL_PORTS {
            self.taken += 1;
            return true;
        }
        self.taken = 0;
        self.last = self.last.filter(|_| !taken);
        self.refused = Some((why, held));
        self.state = State::Waiting;
        false
    }

    /// Takes a grant.
    pub(super) fn grant(&mut self, gateway: Gateway, grant: Grant, turn: &mut Turn<'_>) -> Granted {
        let Grant { by, external, lifetime } = grant;
        match &self.state {
            State::Removing { .. } | State::Gone => return Granted::Ignored,
            State::Held { mapping, .. } if mapping.by != by => {
                let same = mapping.external.port() == external.port();
                return if same { Granted::Ignored } else { Granted::Superfluous };
            }
            _ => {}
        }
        // Whatever the gateway grants, it is not asked more often than that.
        let lifetime = lifetime.map(|lifetime| lifetime.max(MIN_RENEWAL * 2));
        let carrier = external.is_ipv4() && !is_public(external.ip());
        let expires = lifetime.map(|lifetime| turn.now + lifetime);
        let mapping = Mapping { gateway, port: self.port, external, by, expires, carrier };
        // Between a half and five eighths (RFC 6887 §11.2.1), so that the machines behind a gateway do not ask all at once.
        let span = lifetime.unwrap_or(LIFETIME);
        let jitter = Duration::from_millis(turn.rng.below((span / 8).as_millis().try_into().unwrap_or(u64::MAX)));
        let renewal = span / 2 + jitter;
        let renewal = if by == Dialect::Upnp { renewal.min(UPNP_REFRESH) } else { renewal };
        self.state = State::Held { mapping, renew_at: turn.now + renewal };
        (self.last, self.pause, self.taken, self.refused) = (Some(external), REFUSED_RETRY.0, 0, None);
        Granted::Taken
    }

    /// Sets the next renewal, when one has just been sent: at half of what is left.
    pub(super) fn renewed(&mut self, now: Instant) {
        if let State::Held { mapping, renew_at } = &mut self.state {
            let left = mapping.expires.map_or(UPNP_REFRESH * 2, |expires| expires.since(now));
            let pause = if mapping.by == Dialect::Upnp { (left / 2).min(UPNP_REFRESH) } else { left / 2 };
            *renew_at = now + pause.max(MIN_RENEWAL);
        }
    }

    /// Begins the removal of what was granted, or may have been; `true` if there is something to remove.
    pub(super) fn remove(&mut self, now: Instant) -> bool {
        let (by, external) = match &self.state {
            State::Held { mapping, .. } => (mapping.by, mapping.external.port()),
            State::Asking { by, .. } => (*by, self.external()),
            _ => {
                self.state = State::Gone;
                return false;
            }
        };
        self.state = State::Removing { by, external, sent: 1, next: now + REMOVAL.1 };
        true
    }

    /// Whether the removal is to be sent once more now; UPnP's is the driver's to repeat.
    pub(super) fn remove_again(&mut self, now: Instant) -> bool {
        let State::Removing { by, sent, next, .. } = &mut self.state else { return false };
        let due = now >= *next && *sent < REMOVAL.0 && *by != Dialect::Upnp;
        if due {
            (*sent, *next) = (*sent + 1, now + REMOVAL.1);
        }
        due
    }

    pub(super) fn next_timer(&self) -> Option<(Instant, &'static str)> {
        match &self.state {
            State::Waiting | State::Gone => None,
            State::Resting { until } => Some((*until, "ask the gateway again")),
            State::Asking { tries, .. } => Some((tries.next, "gateway's answer")),
            State::Held { mapping, renew_at } => {
                let expiry = mapping.expires.map(|at| (at, "mapping expires"));
                [Some((*renew_at, "mapping's renewal")), expiry].into_iter().flatten().min()
            }
            State::Removing { by, sent, next, .. } => {
                (*sent < REMOVAL.0 && *by != Dialect::Upnp).then_some((*next, "removal's answer"))
            }
        }
    }
}
