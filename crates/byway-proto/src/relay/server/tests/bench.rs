//! A relay under test, and short forms for its clients.

use alloc::vec::Vec;
use core::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use super::super::*;
use super::ID;
use crate::hello::OpenFailure;

pub(super) const LOAD: Load = Load { len: 1_200, segments: 1 };

/// A relay with clients whose link, peer and address have the same number.
pub(super) struct Bench {
    pub(super) server: RelayServer,
    pub(super) now: Instant,
}

impl Bench {
    pub(super) fn new(config: RelayConfig, clients: &[u8]) -> Self {
        let mut bench = Bench { server: RelayServer::new(config, Instant::START), now: Instant::START };
        for client in clients {
            bench.client(*client);
        }
        bench
    }

    pub(super) fn with_clients(clients: &[u8]) -> Self {
        Bench::new(RelayConfig::default(), clients)
    }

    /// Clients 1 and 2 with one allocation.
    pub(super) fn with_pair() -> Self {
        let mut bench = Bench::with_clients(&[1, 2]);
        bench.open(1, ID, 2);
        bench
    }

    pub(super) fn config(&self) -> &RelayConfig {
        &self.server.config
    }

    pub(super) fn client(&mut self, n: u8) {
        assert_eq!(self.connect(n.into(), n, 100), []);
        assert_eq!(self.control(n.into(), Control::Register).len(), 1);
    }

    pub(super) fn connect(&mut self, conn: u64, who: u8, instance: u64) -> Vec<Output> {
        self.connect_at(conn, who, instance, addr(who))
    }

    pub(super) fn connect_at(&mut self, conn: u64, who: u8, instance: u64, addr: SocketAddr) -> Vec<Output> {
        self.input(Input::Connected { conn, peer: peer(who), instance, addr, source: Source::of(addr) })
    }

    pub(super) fn open(&mut self, conn: u64, alloc: AllocId, other: u8) -> Vec<Output> {
        self.control(conn, Control::Open { alloc, peer: peer(other) })
    }

    pub(super) fn control(&mut self, conn: u64, message: Control) -> Vec<Output> {
        self.input(Input::Control { conn, message })
    }

    pub(super) fn input(&mut self, input: Input) -> Vec<Output> {
        self.server.handle_input(input, self.now);
        self.drained()
    }

    pub(super) fn drained(&mut self) -> Vec<Output> {
        core::iter::from_fn(|| self.server.poll_output()).collect()
    }

    pub(super) fn data(&mut self, from: u8, id: AllocId) -> Forward {
        self.server.forward(addr(from), id, LOAD, self.now)
    }

    pub(super) fn hold(&mut self, from: u8, id: AllocId) -> Result<(), RelayDrop> {
        self.server.hold(addr(from), id, &[0; 9], self.now)
    }

    pub(super) fn wait(&mut self, time: Duration) {
        self.now += time;
        self.input(Input::Timeout);
    }
}

pub(super) fn failed(conn: u64, alloc: AllocId, other: u8, reason: OpenFailure) -> Output {
    Output::Send { conn, message: Control::OpenFailed { alloc, peer: peer(other), reason } }
}

pub(super) fn peer(n: u8) -> PeerId {
    PeerId::ed25519([n; 32])
}

pub(super) fn addr(n: u8) -> SocketAddr {
    (Ipv4Addr::new(192, 0, 2, n), 1_000).into()
}
