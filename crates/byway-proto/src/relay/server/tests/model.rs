//! A reference model of who may reach whom, told from inputs and outputs alone.

use super::{bench::*, *};

#[derive(Debug, Clone)]
enum Step {
    Connect { conn: u64, peer: u8, instance: u64, addr: u8 },
    Disconnect(u64),
    Rebound(u64, u8),
    Register(u64),
    Open(u64, u64, u8),
    Data(u8, u64),
    Wait(u64),
    Drain,
}

fn step() -> impl Strategy<Value = Step> {
    let (conn, who, id) = (0u64..6, 0u8..5, 0u64..4);
    prop_oneof![
        4 => (conn.clone(), who.clone(), 0u64..2, who.clone())
            .prop_map(|(conn, peer, instance, addr)| Step::Connect { conn, peer, instance, addr }),
        1 => conn.clone().prop_map(Step::Disconnect),
        1 => (conn.clone(), who.clone()).prop_map(|(conn, addr)| Step::Rebound(conn, addr)),
        6 => conn.clone().prop_map(Step::Register),
        6 => (conn, id.clone(), who.clone()).prop_map(|(conn, id, peer)| Step::Open(conn, id, peer)),
        12 => (0u8..8, id).prop_map(|(from, id)| Step::Data(from, id)),
        2 => (0u64..200_000).prop_map(Step::Wait),
        1 => prop::bool::weighted(0.05).prop_map(|drain| if drain { Step::Drain } else { Step::Wait(1) }),
    ]
}

/// What must be true, told from inputs and outputs alone.
#[derive(Default)]
struct Model {
    links: BTreeMap<u64, (PeerId, SocketAddr)>,
    /// The link over which each peer is registered.
    registered: BTreeMap<PeerId, u64>,
    /// Where each was that is no longer registered.
    left: BTreeMap<PeerId, SocketAddr>,
    pairs: BTreeMap<AllocId, [PeerId; 2]>,
}

impl Model {
    fn addr_of(&self, peer: &PeerId) -> Option<SocketAddr> {
        Some(self.links.get(self.registered.get(peer)?)?.1)
    }

    fn forget(&mut self, conn: u64) {
        if let Some((peer, addr)) = self.links.remove(&conn)
            && self.registered.get(&peer) == Some(&conn)
        {
            self.left.insert(peer, addr);
        }
        self.registered.retain(|_, over| *over != conn);
    }

    fn may_go(&self, id: AllocId, from: Option<SocketAddr>, to: SocketAddr) -> bool {
        let Some([a, b]) = self.pairs.get(&id) else { return false };
        let sends = |peer| from.is_none() || self.addr_of(peer) == from || self.left.get(peer).copied() == from;
        let fits = |x, y| self.addr_of(y) == Some(to) && sends(x);
        fits(a, b) || fits(b, a)
    }

    fn check(&mut self, outputs: &[Output], step: &Step) {
        for output in outputs {
            match output {
                Output::Send { conn, message } => {
                    assert!(self.links.contains_key(conn), "{message:?} to a link that is gone, after {step:?}");
                    match message {
                        Control::Registered { .. } => {
                            self.registered.insert(self.links[conn].0, *conn);
                            self.left.remove(&self.links[conn].0);
                        }
                        Control::Opened { alloc, peer, .. } => {
                            let pair = [*peer, self.links[conn].0];
                            let known = self.pairs.entry(*alloc).or_insert(pair);
                            assert!(*known == pair || *known == [pair[1], pair[0]], "an allocation changed hands");
                        }
                        Control::OpenFailed { alloc, reason: OpenFailure::Idle, .. } => {
                            self.pairs.remove(alloc);
                        }
                        _ => {}
                    }
                }
                Output::Close { conn, .. } => self.forget(*conn),
                Output::Transmit { to, bytes } => {
                    let id = AllocId(bytes[0].into());
                    assert!(self.may_go(id, None, *to), "held data to {to}, after {step:?}");
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn data_stays_in_its_pair_and_nothing_goes_to_a_link_that_is_gone(steps in prop::collection::vec(step(), 0..300)) {
        let config = RelayConfig { max_clients: 4, max_allocations: 3, ..RelayConfig::default() };
        let mut relay = Bench::new(config, &[]);
        let mut model = Model::default();
        for step in steps {
            let outputs = match step {
                Step::Connect { conn, peer: who, instance, addr: at } => {
                    model.forget(conn);
                    model.links.insert(conn, (peer(who), addr(at)));
                    relay.connect_at(conn, who, instance, addr(at))
                }
                Step::Disconnect(conn) => {
                    model.forget(conn);
                    relay.input(Input::Disconnected { conn })
                }
                Step::Rebound(conn, at) => {
                    if let Some(link) = model.links.get_mut(&conn) {
                        link.1 = addr(at);
                    }
                    relay.input(Input::Rebound { conn, addr: addr(at), source: Source::of(addr(at)) })
                }
                Step::Register(conn) => relay.control(conn, Control::Register),
                Step::Open(conn, id, who) => relay.open(conn, AllocId(id), who),
                Step::Data(from, id) => {
                    let known = model.links.values().any(|link| link.1 == addr(from));
                    let before = relay.server.held();
                    match relay.data(from, AllocId(id)) {
                        Forward::To(to) => prop_assert!(model.may_go(AllocId(id), Some(addr(from)), to)),
                        Forward::Hold => drop(relay.server.hold(addr(from), AllocId(id), &[id as u8; 9], relay.now)),
                        Forward::Drop(_) => {}
                    }
                    prop_assert!(known || relay.server.held() == before, "a stranger cost memory");
                    relay.drained()
                }
                Step::Wait(ms) => {
                    relay.now += Duration::from_millis(ms);
                    relay.input(Input::Timeout)
                }
                Step::Drain => relay.input(Input::Drain { within: Duration::from_secs(10) }),
            };
            model.check(&outputs, &step);
            // Both ends of an allocation may be absent when it is forgotten: then nobody is told.
            model.pairs.retain(|id, _| relay.server.allocations.contains_key(id));
            prop_assert!(relay.server.allocations() <= 3 && relay.server.links.len() <= 8);
            prop_assert!(relay.server.clients.len() <= 4);
            prop_assert!(relay.server.held() <= 4 * MAX_HELD_PER_ALLOCATION);
            prop_assert!(relay.server.poll_timeout().is_none_or(|(at, _)| at > relay.now || at + SWEEP > relay.now));
        }
    }
}
