//! The bare libraries, on one stream of one connection.
//!
//! The same as in Byway: TLS ([`crate::tls`]), windows (4 MiB a stream, 33 MiB a connection), the largest packet (1,443
//! bytes) and the largest datagram taken (1,500), acknowledgements (every tenth packet), loss detection (32 packets),
//! initial round-trip time, connection ids of eight bytes, socket buffers, offload, and the library's own congestion
//! control. For messages the framing is the same too: a variable-length integer, then the content; small ones are
//! collected into chunks of 16 KiB, and what comes in pieces is put together. In bulk a bare stream has no framing, Byway
//! still has messages, of 64 KiB.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use socket2::{Domain, Socket, Type};

use crate::{
    end::End,
    load::{Check, Load},
};

/// Messages up to this many bytes are collected, as in Byway.
const INLINE: usize = 1_024;

/// Chunks into which they are collected.
const CHUNK: usize = 16 << 10;

/// Chunks that are read at once.
const READ: usize = 32;

/// The sending half of a stream.
pub(crate) trait Sending {
    /// Sends all chunks.
    async fn put(&mut self, chunks: &mut [Bytes]);
}

/// The receiving half of a stream.
pub(crate) trait Receiving {
    /// Receives some chunks and says how many.
    async fn take(&mut self, chunks: &mut [Bytes]) -> usize;
}

/// A stream of both directions, and what must live as long.
pub(crate) struct Stream<S, R, Guard> {
    send: S,
    recv: R,
    _guard: Guard,
}

impl<S: Sending, R: Receiving, Guard> Stream<S, R, Guard> {
    async fn exactly(&mut self, len: usize) {
        let mut chunks = [const { Bytes::new() }; 2];
        let mut got = 0;
        while got < len {
            let count = self.recv.take(&mut chunks).await;
            got += chunks[..count].iter().map(Bytes::len).sum::<usize>();
        }
        assert_eq!(got, len, "only one message is on its way");
    }
}

impl<S: Sending, R: Receiving, Guard> End for Stream<S, R, Guard> {
    async fn send(&mut self, load: Load) {
        let mut chunk = BytesMut::with_capacity(CHUNK + load.size);
        let same = load.message(0);
        for number in 0..load.count {
            if load.bulk {
                self.send.put(&mut [same.clone()]).await;
                continue;
            }
            put_length(&mut chunk, load.size);
            if load.size > INLINE {
                self.send.put(&mut [chunk.split().freeze(), load.message(number)]).await;
                continue;
            }
            load.put(number, &mut chunk);
            if chunk.len() >= CHUNK {
                self.send.put(&mut [chunk.split().freeze()]).await;
                chunk.reserve(CHUNK + load.size);
            }
        }
        self.send.put(&mut [chunk.freeze()]).await;
    }

    async fn receive(&mut self, load: Load, check: &mut Check) {
        let mut chunks = [const { Bytes::new() }; READ];
        let mut partial = BytesMut::new();
        while !check.is_done() {
            let count = self.recv.take(&mut chunks).await;
            for chunk in &mut chunks[..count] {
                if load.bulk {
                    check.bulk(std::mem::take(chunk).len());
                } else {
                    split(std::mem::take(chunk), &mut partial, check);
                }
            }
        }
    }

    async fn round_trip(&mut self) {
        self.send.put(&mut [Bytes::from_static(&[7; 64])]).await;
        self.exactly(64).await;
    }

    async fn echo(&mut self, count: usize) {
        for _ in 0..count {
            self.exactly(64).await;
            self.send.put(&mut [Bytes::from_static(&[7; 64])]).await;
        }
    }
}

/// Gives `check` the messages in `chunk`; what is left of a message waits in `partial`.
fn split(mut chunk: Bytes, partial: &mut BytesMut, check: &mut Check) {
    if !partial.is_empty() {
        let total = loop {
            match frame(partial) {
                Some((header, len)) => break header + len,
                None if chunk.is_empty() => return,
                None => partial.put_u8(chunk.get_u8()),
            }
        };
        partial.reserve(total - partial.len());
        partial.extend_from_slice(&chunk.split_to(chunk.len().min(total - partial.len())));
        if partial.len() < total {
            return;
        }
        let (header, _) = frame(partial).expect("it is whole");
        check.message(&partial[header..]);
        partial.clear();
    }
    while let Some((header, len)) = frame(&chunk).filter(|(header, len)| header + len <= chunk.len()) {
        chunk.advance(header);
        check.message(&chunk.split_to(len));
    }
    partial.extend_from_slice(&chunk);
}

/// How long the next message's header and content are.
fn frame(bytes: &[u8]) -> Option<(usize, usize)> {
    let first = *bytes.first()?;
    let header = 1 << (first >> 6);
    let rest = bytes.get(1..header)?;
    Some((header, rest.iter().fold(usize::from(first & 0x3f), |value, byte| value << 8 | usize::from(*byte))))
}

fn put_length(out: &mut BytesMut, len: usize) {
    match len {
        0..0x40 => out.put_u8(len as u8),
        0x40..0x4000 => out.put_u16(0x4000 | len as u16),
        _ => out.put_u32(0x8000_0000 | len as u32),
    }
}

/// A socket on loopback with the buffers that Byway asks for.
fn socket() -> std::net::UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).expect("a socket opens");
    let _ = socket.set_send_buffer_size(byway::net::os::SOCKET_BUFFER);
    let _ = socket.set_recv_buffer_size(byway::net::os::SOCKET_BUFFER);
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a loopback port is free");
    socket.into()
}

/// One library's endpoint and stream. The libraries have one origin and almost one interface, so that one text serves
/// both, and no setting can differ by mistake; `$read` is the call that differs.
macro_rules! library {
    ($module:ident, $library:ident, $name:ident, $read:ident) => {
        pub(crate) mod $module {
            use std::{net::SocketAddr, sync::Arc, time::Duration};

            use ::$library::{
                AckFrequencyConfig, ClientConfig, Connection, Endpoint, EndpointConfig, MtuDiscoveryConfig, RecvStream,
                SendStream, ServerConfig, TokioRuntime, TransportConfig, VarInt,
                crypto::rustls::{QuicClientConfig, QuicServerConfig},
            };
            use bytes::Bytes;

            use super::{Receiving, Sending, Stream};
            use crate::{end::Library, tls};

            pub(crate) struct $name;

            impl Library for $name {
                type Listener = Endpoint;
                type Address = SocketAddr;
                type End = Stream<SendStream, RecvStream, (Endpoint, Connection)>;

                async fn listen() -> (Endpoint, SocketAddr) {
                    let (crypto, _) = tls::configs(1);
                    let crypto = QuicServerConfig::try_from(crypto).expect("AES-128-GCM is there");
                    let mut server = ServerConfig::with_crypto(Arc::new(crypto));
                    server.transport_config(transport());
                    let endpoint = endpoint(Some(server));
                    let address = endpoint.local_addr().expect("the socket is bound");
                    (endpoint, address)
                }

                async fn accept(endpoint: Endpoint) -> Self::End {
                    let incoming = endpoint.accept().await.expect("the endpoint is open");
                    let connection = incoming.await.expect("the handshake succeeds");
                    let (send, recv) = connection.accept_bi().await.expect("the connection is open");
                    let mut end = Stream { send, recv, _guard: (endpoint, connection) };
                    end.exactly(1).await;
                    end
                }

                async fn dial(address: SocketAddr) -> Self::End {
                    let endpoint = endpoint(None);
                    let connecting = endpoint.connect_with(client(), address, "bench.invalid").expect("it is a name");
                    let connection = connecting.await.expect("the handshake succeeds");
                    let (mut send, recv) = connection.open_bi().await.expect("the connection is open");
                    send.put(&mut [Bytes::from_static(&[0])]).await; // only then the other side sees the stream
                    Stream { send, recv, _guard: (endpoint, connection) }
                }
            }

            pub(crate) fn client() -> ClientConfig {
                let (_, crypto) = tls::configs(2);
                let crypto = QuicClientConfig::try_from(crypto).expect("AES-128-GCM is there");
                let mut client = ClientConfig::new(Arc::new(crypto));
                client.transport_config(transport());
                client
            }

            pub(crate) fn endpoint(server: Option<ServerConfig>) -> Endpoint {
                let mut config = EndpointConfig::default();
                config.max_udp_payload_size(1_500).expect("it is in bounds");
                Endpoint::new(config, server, super::socket(), Arc::new(TokioRuntime)).expect("the endpoint starts")
            }

            fn transport() -> Arc<TransportConfig> {
                let mut mtu = MtuDiscoveryConfig::default();
                mtu.upper_bound(1_443).minimum_change(243); // from 1,200 in one step
                let mut acks = AckFrequencyConfig::default();
                acks.ack_eliciting_threshold(VarInt::from_u32(10));
                let mut transport = TransportConfig::default();
                transport
                    .stream_receive_window(VarInt::from_u32(4 << 20))
                    .receive_window(VarInt::from_u32(33 << 20))
                    .send_window(4 << 20)
                    .packet_threshold(32)
                    .initial_rtt(Duration::from_millis(100))
                    .mtu_discovery_config(Some(mtu))
                    .ack_frequency_config(Some(acks))
                    .datagram_receive_buffer_size(None);
                Arc::new(transport)
            }

            impl Sending for SendStream {
                async fn put(&mut self, chunks: &mut [Bytes]) {
                    self.write_all_chunks(chunks).await.expect("the stream is open");
                }
            }

            impl Receiving for RecvStream {
                async fn take(&mut self, chunks: &mut [Bytes]) -> usize {
                    self.$read(chunks).await.expect("the stream is open").expect("it has not ended")
                }
            }
        }
    };
}

library!(quinn, quinn, Quinn, read_chunks);
library!(noq, noq, Noq, read_many_chunks);
