//! For how long an idle mapping lives: it is left alone for ever longer, then looked at without touching it first.
//!
//! A server that knows RESPONSE-PORT, as our relays do, sends to the idle mapping on behalf of the node's own socket (RFC 5780
//! §4.5). Without one, the idle socket asks again, and a NAT that would not give the same port twice shows whether it still had
//! the mapping. Which way it is, is tried out: by a server that tells another address, and wherever there is no other way.

use core::{net::SocketAddr, time::Duration};

use super::ask::{Ask, Asks, Purpose, Tools};
use crate::{
    Instant,
    nat::{Ports, SocketId},
};

/// The first wait; home routers forget after 30 s and more, a few after less.
const FIRST_WAIT: Duration = Duration::from_secs(15);

/// Not tried below this: nobody keeps a way open at that price.
const MIN_WAIT: Duration = Duration::from_secs(1);

/// The longest wait: as much as anybody makes use of, and RFC 4787 §4.3 asks for no more than twice two minutes.
const MAX_WAIT: Duration = Duration::from_secs(240);

/// A look that finds the mapping gone says nothing if it ends later than this after it was due (its tries take 3 s): the machine
/// slept.
const LATE: Duration = Duration::from_secs(6);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The scratch socket asks how it is seen, to begin anew.
    Arm,
    /// The server sends to the mapping at once: does it know how?
    TryOut {
        mapped: SocketAddr,
    },
    /// The mapping is left alone since `since`.
    Idle {
        mapped: SocketAddr,
        since: Instant,
    },
    /// It is looked at.
    Look {
        mapped: SocketAddr,
        since: Instant,
    },
    /// It was not reached, at this time: has it died, or the whole NAT another address?
    Doubt {
        mapped: SocketAddr,
        since: Instant,
        looked: Instant,
    },
    Done,
}

/// The search for the lifetime of idle mappings.
#[derive(Debug)]
pub(super) struct Lifetime {
    socket: SocketId,
    server: SocketAddr,
    step: Step,
    wait: Duration,
    /// The longest wait that a mapping survived.
    survived: Option<Duration>,
    /// Whether the server sends to other ports; `None` until tried.
    response_port: Option<bool>,
    /// Whether a mapping made anew would show by its port.
    renumbers: bool,
}

impl Lifetime {
    /// Begins, by a socket that is used for nothing else any more.
    pub(super) fn begin(
        (socket, server): (SocketId, SocketAddr),
        ports: Option<Ports>,
        knows_rfc_5780: bool,
        asks: &mut Asks,
        tools: &mut Tools<'_>,
    ) -> Self {
        let renumbers = matches!(ports, Some(Ports::Sequential { .. } | Ports::Random));
        let mut lifetime = Lifetime {
            socket,
            server,
            step: Step::Arm,
            wait: FIRST_WAIT,
            survived: None,
            response_port: (renumbers && !knows_rfc_5780).then_some(false),
            renumbers,
        };
        lifetime.arm(asks, tools);
        lifetime
    }

    /// The longest wait that a mapping survived, once it is known that no longer one is worth a try.
    pub(super) fn found(&self) -> Option<Duration> {
        self.survived.filter(|_| self.is_done())
    }

    pub(super) fn is_done(&self) -> bool {
        self.step == Step::Done
    }

    /// When the mapping is to be looked at.
    pub(super) fn next(&self) -> Option<Instant> {
        match self.step {
            Step::Idle { since, .. } => Some(since + self.wait),
            _ => None,
        }
    }

    pub(super) fn tick(&mut self, asks: &mut Asks, tools: &mut Tools<'_>) {
        let Step::Idle { mapped, since } = self.step else { return };
        if tools.now < since + self.wait {
            return;
        }
        self.step = Step::Look { mapped, since };
        if self.response_port == Some(true) {
            self.send_to_mapping(mapped, asks, tools);
        } else {
            asks.begin(Ask::new(Purpose::Scratch, self.socket, self.server), tools);
        }
    }

    /// Takes in how the scratch socket is seen now: at another address, the NAT has got one, or is another, which says nothing of
    /// this one's mappings.
    pub(super) fn seen(&mut self, now_mapped: SocketAddr, asks: &mut Asks, tools: &mut Tools<'_>) {
        match self.step {
            Step::Arm if self.response_port.is_none() => {
                self.step = Step::TryOut { mapped: now_mapped };
                self.send_to_mapping(now_mapped, asks, tools);
            }
            Step::Arm if self.response_port == Some(true) || self.renumbers => {
                self.step = Step::Idle { mapped: now_mapped, since: tools.now };
            }
            Step::Arm => self.step = Step::Done, // no way to tell an old mapping from a new one
            Step::Look { mapped, .. } | Step::Doubt { mapped, .. } if mapped.ip() != now_mapped.ip() => self.stop(),
            Step::Look { mapped, since } => {
                self.judge(mapped == now_mapped, since, tools.now);
                self.leave_alone(now_mapped, tools.now);
            }
            Step::Doubt { since, looked, .. } => {
                self.judge(false, since, looked);
                self.leave_alone(now_mapped, tools.now);
            }
            Step::TryOut { .. } | Step::Idle { .. } | Step::Done => {}
        }
    }

    /// Takes in that the server reached the mapping, or did not.
    pub(super) fn reached(&mut self, reached: bool, asks: &mut Asks, tools: &mut Tools<'_>) {
        match self.step {
            Step::TryOut { mapped } => {
                self.response_port = Some(reached);
                let on = reached || self.renumbers;
                self.step = if on { Step::Idle { mapped, since: tools.now } } else { Step::Done };
            }
            Step::Look { since, .. } if reached => {
                self.judge(true, since, tools.now);
                if self.step != Step::Done {
                    self.arm(asks, tools); // what came in need not have refreshed the mapping (RFC 4787 REQ-6)
                }
            }
            Step::Look { mapped, since } => {
                self.arm(asks, tools);
                self.step = Step::Doubt { mapped, since, looked: tools.now };
            }
            Step::Arm | Step::Idle { .. } | Step::Doubt { .. } | Step::Done => {}
        }
    }

    /// Gives up: a server fell silent, or the packets are spent.
    pub(super) fn stop(&mut self) {
        self.step = Step::Done;
    }

    fn arm(&mut self, asks: &mut Asks, tools: &mut Tools<'_>) {
        self.step = Step::Arm;
        asks.begin(Ask::new(Purpose::Scratch, self.socket, self.server), tools);
    }

    fn send_to_mapping(&self, mapped: SocketAddr, asks: &mut Asks, tools: &mut Tools<'_>) {
        let mut ask = Ask::new(Purpose::Idle, SocketId::MAIN, self.server);
        ask.receiver = self.socket;
        ask.request.response_port = Some(mapped.port());
        asks.begin(ask, tools);
    }

    fn leave_alone(&mut self, mapped: SocketAddr, now: Instant) {
        if self.step != Step::Done {
            self.step = Step::Idle { mapped, since: now };
        }
    }

    /// Doubles the wait until a mapping dies, or halves it until one survives.
    fn judge(&mut self, alive: bool, since: Instant, looked: Instant) {
        let overslept = looked.since(since) > self.wait + LATE;
        match (alive, self.survived) {
            (true, _) => {
                let falling = self.wait < FIRST_WAIT;
                self.survived = Some(self.wait);
                self.wait = (self.wait * 2).min(MAX_WAIT);
                if falling || self.survived == Some(MAX_WAIT) {
                    self.step = Step::Done;
                }
            }
            (false, _) if overslept => {}
            (false, None) if self.wait / 2 >= MIN_WAIT => self.wait /= 2,
            (false, _) => self.step = Step::Done,
        }
    }
}
