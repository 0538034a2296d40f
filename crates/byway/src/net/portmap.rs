//! The one task that keeps this node's port, and a relay's TCP port, mapped at its gateways: it drives `byway_proto`'s [`PortMap`].
//!
//! Its questions leave from sockets of its own: an answer cannot be mistaken for a peer's datagram there, and a stranger
//! would have to guess the port.

mod upnp;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::IoSliceMut,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use byway_proto::{
    Rng,
    nat::portmap::{Gateway, Input, Mapping, Output, Port, PortMap, Transport, is_public},
    wire::pcp,
};
use quinn::udp::{RecvMeta, Transmit};
use tokio::time;
use tracing::{debug, info};

use self::upnp::UpnpRequests;
use super::UdpSocket;
use crate::{core::Core, event::Event, status::MappingStatus, switch::Command};

/// How long after a change of the interfaces the gateways are read once more: the default route often comes last.
const SETTLE: Duration = Duration::from_secs(3);

/// Errors of one socket that are passed over before the others get their turn: each request can lead to one.
const MAX_ERRORS: usize = 8;

/// What the rest of the node knows of its mappings.
#[derive(Debug, Default)]
pub(crate) struct PortMappings(Mutex<BTreeMap<(Gateway, Port), State>>);

/// A port at a gateway.
#[derive(Debug)]
struct State {
    mapping: Option<Mapping>,
    words: String,
}

impl PortMappings {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Gateway, Port), State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where everybody can reach this node's UDP port, as its gateways say.
    pub(crate) fn external(&self) -> Vec<SocketAddr> {
        self.told().into_iter().filter(|external| is_public(external.ip())).collect()
    }

    /// Where the gateways forward this node's UDP port from, public or not.
    fn told(&self) -> Vec<SocketAddr> {
        let all = self.lock();
        let of_udp = all.iter().filter(|((_, port), _)| port.transport == Transport::Udp);
        of_udp.filter_map(|(_, state)| Some(state.mapping?.external)).collect()
    }

    pub(crate) fn status(&self, now: byway_proto::Instant) -> Vec<MappingStatus> {
        let all = self.lock();
        let told = all.iter().map(|((gateway, port), state)| MappingStatus {
            gateway: gateway.addr,
            transport: port.transport,
            port: port.number,
            external: state.mapping.map(|mapping| mapping.external),
            by: state.mapping.map(|mapping| mapping.by),
            carrier: state.mapping.is_some_and(|mapping| mapping.carrier),
            expires: state.mapping.and_then(|mapping| mapping.expires).map(|expires| expires.since(now)),
            state: state.words.clone(),
        });
        told.collect()
    }
}

/// What the task owns.
struct Mapper {
    core: Arc<Core>,
    machine: PortMap,
    sockets: Vec<Bound>,
    upnp: UpnpRequests,
    /// The public addresses that peers know.
    announced: Vec<SocketAddr>,
    /// The gateway's outer address, from which the survey judges whether another NAT stands before it.
    outer: Option<IpAddr>,
}

/// A socket on one address of this machine.
#[derive(Debug)]
struct Bound {
    local: IpAddr,
    socket: Arc<dyn UdpSocket>,
    buffer: Vec<u8>,
}

/// Maps the node's port until the node is closed, and removes the mappings then; nothing to do for a node that nobody
/// outside this machine can reach. Of the TCP ports on which a relay is `listening` the one with the same number is mapped too,
/// for that is where its clients look; where another program has it, nobody outside shall reach that.
pub(crate) async fn run(core: Arc<Core>, seed: [u8; 32], listening: Vec<u16>) {
    let seed = Rng::new(&seed, "port mapping").bytes();
    let Some(number) = bound(&core).map(|addr| addr.port()).next() else { return };
    let tcp = listening.contains(&number).then_some(Transport::Tcp);
    let ports = [Transport::Udp].into_iter().chain(tcp).map(|transport| Port { transport, number });
    let machine = PortMap::new(ports, &seed, core.mux.now());
    let upnp = UpnpRequests::new(core.net.upnp());
    let mapper = Mapper { core, machine, sockets: Vec::new(), upnp, announced: Vec::new(), outer: None };
    mapper.run().await;
}

/// The addresses that the node's sockets are bound to, but loopback.
fn bound(core: &Core) -> impl Iterator<Item = SocketAddr> {
    let sockets = [&core.mux.sockets.v4, &core.mux.sockets.v6].into_iter().flatten();
    sockets.filter_map(|socket| socket.local_addr().ok()).filter(|addr| !addr.ip().is_loopback())
}

impl Mapper {
    async fn run(mut self) {
        let core = Arc::clone(&self.core);
        self.set_gateways().await;
        // Kept over the turns: a change that falls between two waits would be missed, for each begins with what it finds.
        let mut changed = core.net.changed();
        let mut settled = None;
        let mut closing = false;
        loop {
            let next = self.machine.poll_timeout().map(|(at, _)| core.mux.clock.at(at));
            let input = tokio::select! {
                biased;
                () = core.tasks.stopped(), if !closing => {
                    closing = true;
                    Input::Close
                }
                () = sleep_until(next), if next.is_some() => Input::Timeout,
                () = sleep_until(settled), if settled.is_some() => {
                    settled = None;
                    self.set_gateways().await;
                    continue;
                }
                () = &mut changed, if !closing => {
                    changed = core.net.changed();
                    settled = Some(time::Instant::now() + SETTLE);
                    self.set_gateways().await;
                    continue;
                }
                (gateway, answer) = self.upnp.next() => Input::Upnp { gateway, answer },
                input = receive(&mut self.sockets) => input,
            };
            self.machine.handle_input(input, core.mux.now());
            if self.carry_out().await {
                return;
            }
        }
    }

    /// Tells the machine the gateways that this node's sockets have a use for, with a socket for each of our addresses.
    async fn set_gateways(&mut self) {
        let bound: Vec<IpAddr> = bound(&self.core).map(|addr| addr.ip()).collect();
        let listens = |local: IpAddr| {
            bound.iter().any(|ip| *ip == local || ip.is_unspecified() && ip.is_ipv4() == local.is_ipv4())
        };
        let mut gateways = self.core.net.gateways();
        gateways.retain(|gateway| listens(gateway.local));
        self.sockets.retain(|bound| gateways.iter().any(|gateway| gateway.local == bound.local));
        let locals: BTreeSet<IpAddr> = gateways.iter().map(|gateway| gateway.local).collect();
        for local in locals {
            if !self.sockets.iter().any(|bound| bound.local == local) {
                self.open(local);
            }
        }
        gateways.retain(|gateway| self.sockets.iter().any(|bound| bound.local == gateway.local));
        self.machine.handle_input(Input::Gateways(gateways), self.core.mux.now());
        self.carry_out().await;
    }

    /// Opens a socket on one of our addresses.
    fn open(&mut self, local: IpAddr) {
        match self.core.net.bind_udp(SocketAddr::new(local, 0)) {
            Ok(socket) => {
                let buffer = vec![0; pcp::MAX_LEN * socket.max_receive_segments().max(1)];
                self.sockets.push(Bound { local, socket, buffer });
            }
            Err(error) => debug!(%error, %local, "cannot open a socket to ask a gateway for a port"),
        }
    }

    /// Does what the machine decided; `true` once all is over.
    async fn carry_out(&mut self) -> bool {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Send { gateway, datagram } => self.send(gateway, &datagram),
                Output::Upnp { gateway, request } => self.upnp.push(gateway, request),
                Output::Mapped(mapping) => self.mapped(mapping),
                Output::Lost { gateway, port, why } => {
                    let words = why.to_string();
                    info!(%words, "port mapping lost");
                    debug!(gateway = %gateway.addr, port = port.number, "lost at this gateway");
                    self.set(gateway, port, None, words.clone());
                    let (gateway, transport, port) = (gateway.addr, port.transport, port.number);
                    self.core.events.send(Event::MappingLost { gateway, transport, port, why: words });
                }
                Output::Refused { gateway, port, why } => {
                    debug!(gateway = %gateway.addr, port = port.number, %why, "gateway maps no port");
                    self.set(gateway, port, None, why.to_string());
                }
                Output::Closed => return true,
            }
        }
        let external = self.core.port_mappings.external();
        let outer = self.core.port_mappings.told().iter().map(SocketAddr::ip).find(IpAddr::is_ipv4);
        if outer != self.outer {
            self.outer = outer;
            self.core.agent.send(crate::agent::Command::External(outer)).await;
        }
        if external != self.announced {
            self.announced = external;
            self.core.switch.send(Command::Announce).await;
        }
        false
    }

    fn mapped(&mut self, mapping: Mapping) {
        let Mapping { gateway, port, external, by, carrier, .. } = mapping;
        let words = if carrier {
            format!("mapped, as the gateway says by {by}, but it stands behind another NAT itself")
        } else {
            format!("mapped, as the gateway says by {by}")
        };
        let before = self.set(gateway, port, Some(mapping), words);
        if before.is_none_or(|before| (before.external, before.by) != (external, by)) {
            info!(%by, carrier, "port mapped");
            debug!(%external, gateway = %gateway.addr, port = port.number, "mapped at this gateway");
            let (gateway, transport, port) = (gateway.addr, port.transport, port.number);
            self.core.events.send(Event::MappingAdded { gateway, transport, port, external, by, carrier });
        }
    }

    /// Notes a port's state; gives the mapping that there was before.
    fn set(&self, gateway: Gateway, port: Port, mapping: Option<Mapping>, words: String) -> Option<Mapping> {
        let mut all = self.core.port_mappings.lock();
        // Gateways of networks that the machine has left are of no interest: the machine's limits bound what stays.
        all.retain(|(known, _), _| self.sockets.iter().any(|bound| bound.local == known.local));
        all.insert((gateway, port), State { mapping, words }).and_then(|state| state.mapping)
    }

    /// Sends a datagram; one that cannot leave is as good as lost on the way.
    fn send(&self, gateway: Gateway, contents: &[u8]) {
        let Some(bound) = self.sockets.iter().find(|bound| bound.local == gateway.local) else { return };
        let destination = match gateway.addr {
            IpAddr::V4(ip) => SocketAddr::from((ip, pcp::PORT)),
            IpAddr::V6(ip) => std::net::SocketAddrV6::new(ip, pcp::PORT, 0, gateway.scope).into(),
        };
        let transmit = Transmit { destination, ecn: None, contents, segment_size: None, src_ip: None };
        if let Err(error) = bound.socket.try_send(&transmit) {
            debug!(%error, "cannot send to the gateway");
        }
    }
}

async fn sleep_until(at: Option<time::Instant>) {
    time::sleep_until(at.unwrap_or_else(time::Instant::now)).await;
}

/// Waits for the next datagram at any of the sockets; of several in one batch only the first counts, the gateway sends one an
/// answer.
async fn receive(sockets: &mut [Bound]) -> Input {
    std::future::poll_fn(|cx| {
        for bound in &mut *sockets {
            // "Port unreachable" and the like are the machine's timers to find out. A socket that says nothing else is
            // looked at again after one of them.
            for _ in 0..MAX_ERRORS {
                let mut meta = [RecvMeta::default()];
                match bound.socket.poll_recv(cx, &mut [IoSliceMut::new(&mut bound.buffer)], &mut meta) {
                    Poll::Ready(Ok(_)) => {
                        let [RecvMeta { addr, len, stride, .. }] = meta;
                        let datagram = bound.buffer.get(..len.min(stride.max(1))).unwrap_or_default().to_vec();
                        return Poll::Ready(Input::Datagram { local: bound.local, from: addr, datagram });
                    }
                    Poll::Ready(Err(_)) => {}
                    Poll::Pending => break,
                }
            }
        }
        Poll::Pending
    })
    .await
}
