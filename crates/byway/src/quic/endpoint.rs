//! The node's QUIC endpoint: it dials and accepts over one mux, with settings that were measured.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use byway_proto::{
    Instant, PeerId, Rng,
    gate::{HANDSHAKE_IDLE, HANDSHAKE_TOTAL},
    wire::quic::CID_LEN,
};
use quinn::{
    AckFrequencyConfig, ClientConfig, ConnectError, ConnectionError, ConnectionId, ConnectionIdGenerator,
    EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig, TimeSource, TransportConfig, TransportErrorCode,
    VarInt,
    crypto::{
        CryptoError, HmacKey,
        rustls::{QuicClientConfig, QuicServerConfig},
    },
};
use tokio::time;

use super::{congestion::Congestion, runtime::NodeRuntime, tls};
use crate::{
    config::{Config, WallClock},
    link::datagrams,
    net::{
        mux::{MAX_DATAGRAM, Mux},
        track::{MIN_MTU, Track},
    },
    tasks::Tasks,
};

/// Receive window of a stream in bytes: more chunks than fit behind one hole in it would end the connection with "too
/// many gaps".
pub(crate) const STREAM_WINDOW: u32 = 4 << 20;

/// Streams that one side may have open at once, each direction: QUIC reserves memory for every one.
pub(crate) const MAX_STREAMS: u32 = 100;

/// Those that it may before it has opened half as many: most peers need a few, and each costs a handshake time and memory.
pub(crate) const FIRST_STREAMS: u32 = 16;

/// Receive window of a connection in bytes. One stalled reader holds at most one stream window, so eight of them stall
/// before anybody else notices.
pub(crate) const CONNECTION_WINDOW: u32 = 8 * STREAM_WINDOW + (1 << 20);

/// Bytes sent and not yet acknowledged, before the link's writer has measured the path.
pub(crate) const SEND_WINDOW: u64 = 4 << 20;

/// The largest UDP payload that QUIC sends: an Ethernet frame less an IPv6 header and a relay's prefix.
pub(crate) const MAX_MTU: u16 = 1_443;

/// What QUIC's search for the MTU stops at, which begins at the upper bound: it would find nothing, for the mux splits what a route
/// does not carry, and every step costs both sides a padded packet. After a black hole it goes back there in one step.
const MTU_STEP: u16 = MAX_MTU - MIN_MTU;

/// Acknowledge every tenth packet: fewer would slow loss recovery down, more cost CPU.
const ACK_EVERY: u32 = 10;

/// Packets overtaken before one counts as lost: 3, QUIC's default, falls to a quarter of the line at 2 ms of jitter.
pub(crate) const PACKET_THRESHOLD: u32 = 32;

/// How long after a later one arrived a packet counts as lost, in round trips: with RFC 9002's 9/8 one in twenty packets did for nothing
/// where each link jitters by 5 ms, so that a flow whose way back is full took its line for congested.
const TIME_THRESHOLD: f32 = 1.25;

/// How late an acknowledgement may come at first: where the round trip turns out shorter than QUIC's usual 25 ms, QUIC asks anew for
/// those, for they are less by a fifth. In quinn 0.11.19 that question starts the timer of the dialling side's first acknowledgement, which
/// its acknowledging the handshake had stopped; without it the accepting side says its first packets again.
const ACK_DELAY: Duration = Duration::from_millis(32);

/// Round-trip time assumed before the first sample: QUIC's default of 333 ms makes a lost first packet cost a second.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Handshakes that wait for the accept loop's decision.
const MAX_INCOMING: usize = 256;

/// Bytes of handshake packets kept for one, and for all handshakes that wait for the decision.
const INCOMING_BUFFER: (u64, u64) = (16 << 10, 1 << 20);

/// After which part of its idle timeout QUIC says something, in percent, on the dialling and on the accepting side: our
/// probes keep the routes alive, but QUIC does not see them. It repeats itself in the time that is left. The accepting side
/// has to only where its timeout is the shorter one.
const KEEP_ALIVE: (u32, u32) = (66, 75);

/// The endpoint, with the one client configuration that all dials share: a second one would lose the tickets.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    quinn: quinn::Endpoint,
    client: ClientConfig,
    server: ServerConfig,
    idle: Duration,
    idle_timeout: IdleTimeout,
    mux: Arc<Mux>,
}

/// TLS's alert for a key that is not the expected one (RFC 8446 §6.2).
const BAD_CERTIFICATE: u8 = 42;

/// The one for the node's own key instead of the expected one: only the node itself hears it.
const ACCESS_DENIED: u8 = 49;

/// Why a handshake failed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("nobody answered within {:.1} s", .0.as_secs_f64())]
    Timeout(Duration),
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("{0}")]
    Connection(ConnectionError),
    #[error("another key than the one dialled answers there")]
    WrongPeer,
    #[error("this node itself answers there")]
    Itself,
}

impl From<ConnectionError> for HandshakeError {
    /// TLS refuses another key than the one that the server name stands for as a bad certificate (RFC 8446 §6).
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::TransportError(own) if own.code == TransportErrorCode::crypto(BAD_CERTIFICATE) => {
                HandshakeError::WrongPeer
            }
            ConnectionError::TransportError(own) if own.code == TransportErrorCode::crypto(ACCESS_DENIED) => {
                HandshakeError::Itself
            }
            error => HandshakeError::Connection(error),
        }
    }
}

impl Endpoint {
    pub(crate) fn new(config: &Config, seed: &[u8; 32], mux: Arc<Mux>, tasks: &Tasks) -> Result<Self, EndpointError> {
        let identity = &config.identity;
        let (server_tls, client_tls) = tls::configs(identity, &config.clock)?;
        let (idle, idle_timeout) = (config.idle_timeout, IdleTimeout::try_from(config.idle_timeout)?);

        let mut server = ServerConfig::new(
            Arc::new(QuicServerConfig::try_from(server_tls).map_err(|_| EndpointError::Cipher)?),
            Arc::new(
                ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA256, &[]).extract(&identity.derive("byway 1 token key")),
            ),
        );
        server
            .migration(false) // routes do it, below QUIC
            .max_incoming(MAX_INCOMING)
            .incoming_buffer_size(INCOMING_BUFFER.0)
            .incoming_buffer_size_total(INCOMING_BUFFER.1)
            .time_source(Arc::new(Wall(config.clock.clone())));

        let mut client =
            ClientConfig::new(Arc::new(QuicClientConfig::try_from(client_tls).map_err(|_| EndpointError::Cipher)?));
        let first_ids = Arc::new(Mutex::new(Rng::new(seed, "initial connection ids")));
        client.version(1).initial_dst_cid_provider(Arc::new(move || draw(&first_ids)));

        let mut endpoint = EndpointConfig::new(Arc::new(ResetKey(identity.derive("byway 1 stateless reset key"))));
        let ids = Arc::clone(&mux);
        endpoint
            .cid_generator(move || Box::new(Ids(Arc::clone(&ids))))
            .supported_versions(vec![1])
            .grease_quic_bit(false) // the bit tells QUIC from our own datagrams (RFC 9443)
            .rng_seed(Some(Rng::new(seed, "quic").bytes()))
            .min_reset_interval(Duration::ZERO) // the mux limits them; one at a time would starve a relay's clients
            .max_udp_payload_size(MAX_DATAGRAM)?;

        let runtime = Arc::new(NodeRuntime(tasks.clone()));
        let accepting = config.accept.then(|| server.clone());
        let quinn = quinn::Endpoint::new_with_abstract_socket(endpoint, accepting, Arc::clone(&mux) as _, runtime)?;
        Ok(Endpoint { quinn, client, server, idle, idle_timeout, mux })
    }

    /// Makes a connection to `peer` by the routes of `track`.
    pub(crate) async fn dial(&self, track: &Track, peer: PeerId) -> Result<quinn::Connection, HandshakeError> {
        let mut config = self.client.clone(); // shares TLS and its tickets
        config.transport_config(Arc::new(self.transport(track, KEEP_ALIVE.0)));
        let connecting = self.quinn.connect_with(config, track.alias(), &tls::server_name(peer))?;
        let connection = self.handshake(track, connecting).await?;
        // On resumption TLS asks no verifier, so the ticket's key is compared here.
        if tls::peer_id(&connection) != Some(peer) {
            connection.close(VarInt::from_u32(0), b"");
            return Err(HandshakeError::WrongPeer);
        }
        Ok(connection)
    }

    /// The next handshake that somebody has begun; `None` once the endpoint is closed.
    pub(crate) async fn incoming(&self) -> Option<quinn::Incoming> {
        self.quinn.accept().await
    }

    /// Goes on with a handshake that somebody has begun.
    pub(crate) fn accept(
        &self,
        track: &Track,
        incoming: quinn::Incoming,
    ) -> Result<quinn::Connecting, ConnectionError> {
        let mut config = self.server.clone();
        config.transport_config(Arc::new(self.transport(track, KEEP_ALIVE.1)));
        incoming.accept_with(Arc::new(config))
    }

    /// The settings of one connection, which differ in who controls its congestion.
    fn transport(&self, track: &Track, keep_alive: u32) -> TransportConfig {
        let mut transport = transport(self.idle_timeout, self.idle * keep_alive / 100);
        transport.congestion_controller_factory(Congestion::new(
            Arc::clone(&track.line),
            self.mux.clock,
            track.alias(),
        ));
        transport
    }

    /// Waits for a handshake to end, as long as the other side keeps talking and not past the total.
    pub(crate) async fn handshake(
        &self,
        track: &Track,
        connecting: quinn::Connecting,
    ) -> Result<quinn::Connection, HandshakeError> {
        tokio::pin!(connecting);
        let began = self.mux.now();
        let end = began + HANDSHAKE_TOTAL;
        let mut deadline = began + HANDSHAKE_IDLE;
        loop {
            tokio::select! {
                biased;
                done = &mut connecting => return Ok(done?),
                () = time::sleep_until(self.mux.clock.at(deadline)) => {
                    let next = last_heard(track).map_or(deadline, |heard| (heard + HANDSHAKE_IDLE).min(end));
                    if next <= self.mux.now() {
                        return Err(HandshakeError::Timeout(self.mux.now().since(began)));
                    }
                    deadline = next;
                }
            }
        }
    }

    /// Ends all connections.
    pub(crate) fn close(&self, code: VarInt) {
        self.quinn.close(code, b"");
    }

    /// Waits until the peers had a chance to hear that the connections have ended.
    pub(crate) async fn closed(&self, deadline: Duration) {
        let _ = time::timeout(deadline, self.quinn.wait_idle()).await;
    }
}

/// Why the endpoint cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// TLS refused the key or the configuration.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// TLS lacks the cipher with which QUIC protects its first packets.
    #[error("TLS lacks AES-128-GCM, which QUIC's first packets need (RFC 9001 §5.2)")]
    Cipher,
    /// QUIC refused a setting.
    #[error("QUIC: {0}")]
    Config(#[from] quinn::ConfigError),
    /// A setting is larger than QUIC can express.
    #[error("QUIC: {0}")]
    Bounds(#[from] quinn::VarIntBoundsExceeded),
    /// The socket is of no use.
    #[error("socket: {0}")]
    Io(#[from] std::io::Error),
}

fn last_heard(track: &Track) -> Option<Instant> {
    track.lock().routes().filter_map(|(_, slot)| slot.heard).max()
}

fn transport(idle: IdleTimeout, keep_alive: Duration) -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MAX_MTU).minimum_change(MTU_STEP);
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY)).max_ack_delay(Some(ACK_DELAY));
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(keep_alive))
        .max_concurrent_bidi_streams(VarInt::from_u32(FIRST_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(FIRST_STREAMS))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        .packet_threshold(PACKET_THRESHOLD)
        .time_threshold(TIME_THRESHOLD)
        .initial_rtt(INITIAL_RTT)
        .initial_mtu(MAX_MTU)
        .mtu_discovery_config(Some(mtu))
        .ack_frequency_config(Some(acks))
        .datagram_receive_buffer_size(Some(datagrams::RECEIVE_BUFFER))
        .datagram_send_buffer_size(datagrams::SEND_BUFFER);
    transport
}

fn draw(rng: &Mutex<Rng>) -> ConnectionId {
    let id: [u8; CID_LEN] = rng.lock().unwrap_or_else(PoisonError::into_inner).bytes();
    ConnectionId::new(&id)
}

/// Has the mux draw connection ids, by which it finds their peers.
struct Ids(Arc<Mux>);

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&self.0.routes.draw_cid())
    }

    fn cid_len(&self) -> usize {
        CID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Makes stateless reset tokens (RFC 9000 §10.3.2); derived from the node's key, so that a restarted node still knows
/// the tokens of its lost connections.
struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        blake3::Hasher::new_keyed(&self.0).update(data).finalize_xof().fill(signature_out);
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let expected = blake3::keyed_hash(&self.0, data);
        // Comparing hashes takes constant time; so must comparing this one.
        let given = <[u8; blake3::OUT_LEN]>::try_from(signature).map_err(|_| CryptoError)?;
        if expected == blake3::Hash::from_bytes(given) { Ok(()) } else { Err(CryptoError) }
    }
}

/// The node's wall clock, for the age of address-validation tokens.
struct Wall(WallClock);

impl TimeSource for Wall {
    fn now(&self) -> SystemTime {
        self.0.now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quic_keeps_so_many_bytes_of_datagrams_that_wait_for_the_reader_or_the_line() {
        let idle = IdleTimeout::try_from(Duration::from_secs(30)).unwrap();
        let settings = format!("{:?}", transport(idle, Duration::from_secs(10)));
        let receive = format!("datagram_receive_buffer_size: Some({}),", datagrams::RECEIVE_BUFFER);
        let send = format!("datagram_send_buffer_size: {},", datagrams::SEND_BUFFER);
        assert!(settings.contains(&receive) && settings.contains(&send), "{settings}");
    }
}
