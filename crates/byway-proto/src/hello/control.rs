//! What travels on the control stream, and its frames: a 16-bit big-endian length and a protobuf message.

use alloc::{string::String, vec::Vec};
use core::{iter, net::SocketAddr, time::Duration};

use prost::Message;
use thiserror::Error;

use super::{Hello, message};
use crate::{
    addr::PeerAddr,
    id::PeerId,
    nat::{MAX_GUESSES, NatReport, Signal},
    wire::relay_data::AllocId,
};

/// Bytes in one control message: a full hello takes about 6 KiB.
pub const MAX_CONTROL_FRAME: usize = 16 * 1_024;

/// Bytes that a [`ControlCodec`] holds: some frames, so that a reader may hand over what it has read at once.
pub const MAX_BUFFERED: usize = 4 * MAX_CONTROL_FRAME;

/// Addresses in one [`Candidates`].
pub const MAX_CANDIDATES: usize = 16;

/// Relays in one [`Control::Relays`]: the two warm ones, and a third while one of them is being replaced.
pub const MAX_TOLD_RELAYS: usize = 3;

/// Bytes in the detail of a [`Goodbye`]; longer ones are cut.
pub const MAX_DETAIL: usize = 512;

/// A message on the control stream of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Control {
    /// The first message of each side.
    Hello(Hello),
    /// Where the sender may be reached.
    Candidates(Candidates),
    /// The last message: why the sender leaves.
    Goodbye(Goodbye),
    /// To a relay: forward to me from now on.
    Register,
    /// From a relay: done.
    Registered {
        /// The address from which the client's packets come.
        observed: SocketAddr,
        /// Bytes a second that the relay forwards for this client.
        max_rate: u64,
        /// Another port of the relay's that answers STUN, if it has one: a NAT shows there how it treats ports.
        stun_port: Option<u16>,
    },
    /// To a relay: forward datagrams of this allocation between me and that peer.
    Open {
        /// The id, chosen at random by the sender.
        alloc: AllocId,
        /// The other end.
        peer: PeerId,
    },
    /// From a relay to the other end: that peer has opened an allocation to you.
    Opened {
        /// The allocation.
        alloc: AllocId,
        /// Who opened it.
        peer: PeerId,
        /// The opener's instance (see [`Hello::instance`]).
        instance: u64,
    },
    /// From a relay: an allocation was not opened, or is no more.
    OpenFailed {
        /// The allocation.
        alloc: AllocId,
        /// The other end.
        peer: PeerId,
        /// Why.
        reason: OpenFailure,
    },
    /// From a relay: the other end of an allocation has restarted.
    PeerAnew {
        /// The allocation.
        alloc: AllocId,
        /// The other end.
        peer: PeerId,
        /// The instance that it has now.
        instance: u64,
    },
    /// From a relay: it will stop; move to another.
    Drain {
        /// How long it still forwards, in whole milliseconds.
        deadline: Duration,
    },
    /// What the sender's survey found; replaces what it said before.
    NatReport(NatReport),
    /// The sender's part of a punch: ports that are not 0, at most [`MAX_GUESSES`] ports.
    Punch(Signal),
    /// The relays at which the sender is registered, at most [`MAX_TOLD_RELAYS`]; replaces what it said before.
    Relays(Vec<PeerAddr>),
}

/// Where the sender of the message may be reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Candidates {
    /// Addresses, at most [`MAX_CANDIDATES`].
    pub addrs: Vec<SocketAddr>,
    /// Counts upwards; a list replaces those of lower generations.
    pub generation: u64,
}

/// Why the sender of the message leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Goodbye {
    /// The kind of reason; 1 to 15 are refusals of a hello ([`Refusal`](super::Refusal)).
    pub code: u32,
    /// What belongs to the reason, at most [`MAX_DETAIL`] bytes.
    pub detail: String,
}

/// Why a relay does not forward an allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OpenFailure {
    /// The other end is not registered at this relay.
    #[error("the peer is not registered at this relay: try another of its relays, or wait until it is back")]
    NotRegistered,
    /// The id belongs to an allocation of somebody else.
    #[error("the allocation id is taken: choose another at random")]
    Taken,
    /// The opener has, or opens, more than the relay allows.
    #[error("too many allocations: close some, or wait")]
    TooMany,
    /// The relay is about to stop.
    #[error("the relay is about to stop: use another")]
    Draining,
    /// The opener has not registered, or names itself as the other end.
    #[error("we misused the relay: register first, and open allocations to others only")]
    Misuse,
    /// The allocation carried nothing for so long that the relay forgot it.
    #[error("the allocation was idle and is forgotten: open it again when it is needed")]
    Idle,
    /// A reason that this version does not know.
    #[error("the relay gives reason {0}, which this version does not know: update this node")]
    Other(u32),
}

impl Control {
    /// The message as a frame, ready for the stream.
    pub fn to_frame(&self) -> Result<Vec<u8>, ControlError> {
        let message = message::Frame::from_control(self)?;
        let len = message.encoded_len();
        let prefix = u16::try_from(len).ok().filter(|_| len <= MAX_CONTROL_FRAME);
        let mut frame = Vec::with_capacity(2 + len);
        frame.extend(prefix.ok_or(ControlError::TooLong(len))?.to_be_bytes());
        message.encode_raw(&mut frame);
        Ok(frame)
    }
}

/// Cuts the bytes of a control stream into messages.
#[derive(Debug, Default)]
pub struct ControlCodec {
    buffer: Vec<u8>,
    /// Bytes at the front of `buffer` that are done with.
    done: usize,
    failed: Option<ControlError>,
}

impl ControlCodec {
    /// A codec at the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes as they came from the stream; drain [`ControlCodec::next`] after each call.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.done.min(self.buffer.len()));
        self.done = 0;
        if self.buffer.len() + bytes.len() > MAX_BUFFERED {
            self.failed.get_or_insert(ControlError::Undrained);
        }
        if self.failed.is_none() {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next message that is complete; messages of kinds that this version does not know are passed over.
    ///
    /// After an error the stream is of no use and every call gives the same error.
    #[expect(clippy::should_implement_trait, reason = "a stream that has no message yet has not ended")]
    pub fn next(&mut self) -> Result<Option<Control>, ControlError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = self.parse();
        if let Err(error) = &result {
            self.failed = Some(*error);
            self.buffer = Vec::new();
        }
        result
    }

    /// The messages that are complete, up to an error, which the next call of [`ControlCodec::next`] gives.
    pub fn complete(&mut self) -> impl Iterator<Item = Control> {
        iter::from_fn(|| self.next().ok().flatten())
    }

    fn parse(&mut self) -> Result<Option<Control>, ControlError> {
        loop {
            let rest = self.buffer.get(self.done..).unwrap_or_default();
            let Some((prefix, rest)) = rest.split_first_chunk() else {
                return Ok(None);
            };
            let len = usize::from(u16::from_be_bytes(*prefix));
            if len > MAX_CONTROL_FRAME {
                return Err(ControlError::TooLong(len));
            }
            let Some(body) = rest.get(..len) else {
                return Ok(None);
            };
            let message = message::Frame::decode(body).map_err(|_| ControlError::PeerMisbehaved(Garbled::Message))?;
            self.done += 2 + len;
            if let Some(control) = message.into_control()? {
                return Ok(Some(control));
            }
        }
    }
}

/// Why a control stream ended early, or a message was not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ControlError {
    /// A message is longer than [`MAX_CONTROL_FRAME`].
    #[error("a control message of {0} bytes is too long, its sender is at fault: close the link")]
    TooLong(usize),
    /// We were given more to write than a message may hold.
    #[error("more than {MAX_CANDIDATES} candidates in one message is our own fault: keep the best")]
    TooManyCandidates,
    /// We were given more relays to write than a message may hold.
    #[error("more than {MAX_TOLD_RELAYS} relays in one message is our own fault: tell those in use")]
    TooManyRelays,
    /// We were given more ports to write than a signal may hold.
    #[error("more than {MAX_GUESSES} ports in one signal is our own fault: keep the likeliest")]
    TooManyGuesses,
    /// The reader pushed more than [`MAX_BUFFERED`] without taking messages out, which is our own fault.
    #[error("control messages were not taken out of their buffer, which is a bug in byway: report it")]
    Undrained,
    /// The other side sent what no correct peer sends.
    #[error("the peer misbehaved, {0}: close the link")]
    PeerMisbehaved(Garbled),
}

/// What was wrong with a control message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Garbled {
    /// The bytes are not a protobuf message.
    #[error("a control message is not protobuf")]
    Message,
    /// A peer's id is malformed or of a kind that this version does not know.
    #[error("a control message names a malformed peer id")]
    Peer,
    /// An address is malformed.
    #[error("a control message holds a malformed address")]
    Address,
    /// There are more candidates than [`MAX_CANDIDATES`].
    #[error("a control message holds too many candidates")]
    Candidates,
    /// There are more relays than [`MAX_TOLD_RELAYS`], or one of them is malformed.
    #[error("a control message holds too many relays, or a malformed one")]
    Relays,
    /// There are more ports than [`MAX_GUESSES`].
    #[error("a punch signal holds too many ports")]
    Guesses,
    /// A port is 0 or above 65,535.
    #[error("a punch signal names a port that does not exist")]
    Port,
    /// A step of a NAT's counter does not fit 16 bits, or is 0 where the counter is said to move.
    #[error("a counter that steps by nothing, or too far, was told")]
    Step,
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use core::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::{
        hello::{Announced, tests::any_hello},
        nat::{FamilyReport, Filtering, Mapping, Ports},
    };

    #[test]
    fn frames_survive_any_cut() {
        let messages = [Control::Register, Control::Drain { deadline: Duration::from_millis(1_500) }, open()];
        let bytes: Vec<u8> = messages.iter().flat_map(|m| m.to_frame().unwrap()).collect();
        for cut in 0..bytes.len() {
            let mut codec = ControlCodec::new();
            let mut got = vec![];
            for part in [&bytes[..cut], &bytes[cut..]] {
                codec.push(part);
                while let Some(message) = codec.next().unwrap() {
                    got.push(message);
                }
            }
            assert_eq!(got, messages);
        }
    }

    #[test]
    fn the_layout_on_the_wire_does_not_change() {
        let peer = [&[0x12, 33][..], &PeerId::ed25519([9; 32]).to_wire()].concat();
        let open = [&[0, 46, 0x32, 44, 0x09, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &peer[..]].concat();
        assert_eq!(self::open().to_frame().unwrap(), open);
        assert_eq!(Control::Register.to_frame().unwrap(), [0, 2, 0x22, 0]);
        let guess = Signal::Guess { attempt: 1, ip: Ipv4Addr::new(192, 0, 2, 1).into(), ports: vec![9, 300] };
        let guess = Control::Punch(guess).to_frame().unwrap();
        assert_eq!(guess, *b"\0\x11\x62\x0f\x08\x02\x10\x01\x1a\x04\xc0\0\x02\x01\x32\x03\x09\xac\x02");
        let ipv4 = FamilyReport {
            public: Some("192.0.2.1:9".parse().unwrap()),
            mapping: Some(Mapping::AddressAndPortDependent),
            ports: Some(Ports::Sequential { step: -2 }),
            ..FamilyReport::default()
        };
        let report = Control::NatReport(NatReport { ipv4: Some(ipv4), ipv6: None }).to_frame().unwrap();
        assert_eq!(report, *b"\0\x13\x5a\x11\x0a\x0f\x0a\x07\x04\xc0\0\x02\x01\0\x09\x18\x03\x28\x02\x30\x03");
        let relays = Control::Relays(vec![relay([9; 32], vec!["192.0.2.1:9".parse().unwrap()])]).to_frame().unwrap();
        assert_eq!(relays[..6], *b"\0\x2c\x6a\x2a\x0a\x28");
        assert_eq!(relays[6..], [&PeerId::ed25519([9; 32]).to_wire()[..], b"\x04\xc0\0\x02\x01\0\x09"].concat());
        let goodbye = Control::Goodbye(Goodbye { code: 2, detail: "chat".into() });
        assert_eq!(goodbye.to_frame().unwrap(), *b"\0\x0a\x1a\x08\x08\x02\x12\x04chat");
        let announced = b"\x2a\x12\x08\x01\x12\x02ab\x18\x01\x20\x02\x32\x02\x01\x02\x3a\x02\xac\x02";
        let hello = [b"\0\x24\x0a\x22\x12\x01n\x19\x07\0\0\0\0\0\0\0", &announced[..], b"\x32\0"].concat();
        let (streams, datagrams) = (vec![1, 2], vec![300]);
        let announced = Announced { id: 1, name: "ab".into(), min: 1, max: 2, required: false, streams, datagrams };
        let control = Hello { network: "n".into(), instance: 7, protocols: vec![announced], ..Hello::default() };
        assert_eq!(Control::Hello(control).to_frame().unwrap(), hello);
    }

    #[test]
    fn a_length_above_the_limit_is_refused_before_its_bytes_come() {
        let mut codec = ControlCodec::new();
        codec.push(&[0x40, 0x01]);
        assert_eq!(codec.next(), Err(ControlError::TooLong(MAX_CONTROL_FRAME + 1)));
        codec.push(&Control::Register.to_frame().unwrap());
        assert_eq!(codec.next(), Err(ControlError::TooLong(MAX_CONTROL_FRAME + 1)));
    }

    #[test]
    fn a_message_of_an_unknown_kind_is_passed_over() {
        let mut codec = ControlCodec::new();
        codec.push(&[0, 3, 0xaa, 0x06, 0]); // field 101, length-delimited, empty
        codec.push(&Control::Register.to_frame().unwrap());
        assert_eq!(codec.next(), Ok(Some(Control::Register)));
        assert_eq!(codec.next(), Ok(None));
    }

    #[test]
    fn garbage_is_the_peers_fault() {
        let mut codec = ControlCodec::new();
        codec.push(&[0, 2, 0xff, 0xff]);
        assert_eq!(codec.next(), Err(ControlError::PeerMisbehaved(Garbled::Message)));
    }

    #[test]
    fn a_reader_that_never_drains_cannot_grow_the_buffer() {
        let mut codec = ControlCodec::new();
        for _ in 0..100 {
            codec.push(&[0; 4_096]);
        }
        assert!(codec.buffer.capacity() <= 2 * MAX_BUFFERED);
        assert_eq!(codec.next(), Err(ControlError::Undrained));
    }

    #[test]
    fn too_many_candidates_are_neither_written_nor_read() {
        let addrs = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 1)); MAX_CANDIDATES + 1];
        let control = Control::Candidates(Candidates { addrs: addrs.clone(), generation: 1 });
        assert_eq!(control.to_frame(), Err(ControlError::TooManyCandidates));
        let forged = message::Frame::forge_candidates(&addrs).encode_to_vec();
        let mut codec = ControlCodec::new();
        codec.push(&(forged.len() as u16).to_be_bytes());
        codec.push(&forged);
        assert_eq!(codec.next(), Err(ControlError::PeerMisbehaved(Garbled::Candidates)));
    }

    #[test]
    fn too_many_guesses_are_neither_written_nor_read() {
        let ports = vec![1; MAX_GUESSES + 1];
        let signal = Signal::Guess { attempt: 1, ip: Ipv4Addr::LOCALHOST.into(), ports };
        assert_eq!(Control::Punch(signal).to_frame(), Err(ControlError::TooManyGuesses));
        let read = |kind, ip: &[u8], ports| message::Frame::forge_punch(kind, ip, ports).into_control();
        for (ip, ports, garbled) in [
            (&[127, 0, 0, 1][..], vec![1; MAX_GUESSES + 1], Garbled::Guesses),
            (&[127, 0, 0, 1], vec![9, 65_536], Garbled::Port),
            (&[127, 0, 0, 1], vec![0], Garbled::Port),
            (&[127, 0, 0], vec![9], Garbled::Address),
        ] {
            assert_eq!(read(2, ip, ports), Err(ControlError::PeerMisbehaved(garbled)));
        }
        assert_eq!(read(99, &[], vec![]), Ok(None), "a signal of a kind to come");
    }

    #[test]
    fn behaviours_to_come_are_read_as_not_learned() {
        // mapping, filtering and port allocation 9 in the IPv4 half
        let frame = [0, 10, 0x5a, 8, 0x0a, 6, 0x18, 9, 0x20, 9, 0x28, 9];
        let mut codec = ControlCodec::new();
        codec.push(&frame);
        let report = NatReport { ipv4: Some(FamilyReport::default()), ipv6: None };
        assert_eq!(codec.next(), Ok(Some(Control::NatReport(report))));
        codec.push(&[0, 8, 0x5a, 6, 0x0a, 4, 0x28, 2, 0x30, 0]); // sequential by 0
        assert_eq!(codec.next(), Err(ControlError::PeerMisbehaved(Garbled::Step)));
    }

    #[test]
    fn a_long_goodbye_is_cut_between_characters() {
        let goodbye = Goodbye { code: 99, detail: "é".repeat(MAX_DETAIL) };
        let Control::Goodbye(read) = round_trip(&Control::Goodbye(goodbye)) else { panic!("not a goodbye") };
        assert_eq!(read.detail, "é".repeat(MAX_DETAIL / 2));
    }

    proptest! {
        #[test]
        fn every_message_reads_as_it_was_written(control in any_control()) {
            prop_assert_eq!(round_trip(&control), control);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), control in any_control(), at: usize) {
            let mut codec = ControlCodec::new();
            codec.push(&bytes);
            while let Ok(Some(_)) = codec.next() {}
            let mut frame = control.to_frame().unwrap();
            let at = at % frame.len();
            frame[at] = frame[at].wrapping_add(1 + bytes.len() as u8);
            let mut codec = ControlCodec::new();
            codec.push(&frame);
            while let Ok(Some(_)) = codec.next() {}
        }
    }

    fn round_trip(control: &Control) -> Control {
        let mut codec = ControlCodec::new();
        codec.push(&control.to_frame().unwrap());
        let read = codec.next().unwrap().unwrap();
        assert_eq!(codec.next(), Ok(None));
        read
    }

    fn open() -> Control {
        Control::Open { alloc: AllocId(u64::MAX), peer: PeerId::ed25519([9; 32]) }
    }

    fn relay(key: [u8; 32], addrs: Vec<SocketAddr>) -> PeerAddr {
        PeerAddr::new(PeerId::ed25519(key), addrs.into_iter().map(|a| SocketAddr::new(a.ip().to_canonical(), a.port())))
    }

    fn any_addr() -> impl Strategy<Value = SocketAddr> {
        let v4 = (any::<u32>(), any::<u16>()).prop_map(|(ip, port)| (Ipv4Addr::from_bits(ip), port).into());
        let v6 = (any::<u128>(), any::<u16>()).prop_map(|(ip, port)| (Ipv6Addr::from_bits(ip), port).into());
        prop_oneof![v4, v6]
    }

    fn any_control() -> impl Strategy<Value = Control> {
        let peer = any::<[u8; 32]>().prop_map(PeerId::ed25519);
        let reason = prop_oneof![
            Just(OpenFailure::NotRegistered),
            Just(OpenFailure::Taken),
            Just(OpenFailure::TooMany),
            Just(OpenFailure::Draining),
            Just(OpenFailure::Misuse),
            Just(OpenFailure::Idle),
            (100u32..).prop_map(OpenFailure::Other),
        ];
        let relayed = (any::<u64>().prop_map(AllocId), peer, any::<u64>(), reason, 0u8..4).prop_map(
            |(alloc, peer, instance, reason, kind)| match kind {
                0 => Control::Open { alloc, peer },
                1 => Control::Opened { alloc, peer, instance },
                2 => Control::PeerAnew { alloc, peer, instance },
                _ => Control::OpenFailed { alloc, peer, reason },
            },
        );
        prop_oneof![
            any_hello().prop_map(Control::Hello),
            (prop::collection::vec(any_addr(), 0..=MAX_CANDIDATES), any::<u64>())
                .prop_map(|(addrs, generation)| Control::Candidates(Candidates { addrs, generation })),
            (any::<u32>(), ".{0,100}").prop_map(|(code, detail)| Control::Goodbye(Goodbye { code, detail })),
            Just(Control::Register),
            (any_addr(), any::<u64>(), prop::option::of(1u16..))
                .prop_map(|(observed, max_rate, stun_port)| { Control::Registered { observed, max_rate, stun_port } }),
            relayed,
            any::<u64>().prop_map(|ms| Control::Drain { deadline: Duration::from_millis(ms) }),
            (prop::option::of(any_family()), prop::option::of(any_family()))
                .prop_map(|(ipv4, ipv6)| Control::NatReport(NatReport { ipv4, ipv6 })),
            any_signal().prop_map(Control::Punch),
            prop::collection::vec((any::<[u8; 32]>(), prop::collection::vec(any_addr(), 0..3)), 0..=MAX_TOLD_RELAYS)
                .prop_map(|relays| Control::Relays(relays.into_iter().map(|(key, addrs)| relay(key, addrs)).collect())),
        ]
    }

    fn any_step() -> impl Strategy<Value = i16> {
        any::<i16>().prop_filter("a counter moves", |step| *step != 0)
    }

    fn any_family() -> impl Strategy<Value = FamilyReport> {
        let mapping = prop::option::of(prop::sample::select(vec![
            Mapping::EndpointIndependent,
            Mapping::AddressDependent,
            Mapping::AddressAndPortDependent,
        ]));
        let filtering = prop::option::of(prop::sample::select(vec![
            Filtering::EndpointIndependent,
            Filtering::AddressDependent,
            Filtering::AddressAndPortDependent,
        ]));
        let ports = prop::option::of(prop_oneof![
            Just(Ports::Preserving),
            Just(Ports::Random),
            any_step().prop_map(|step| Ports::Sequential { step }),
        ]);
        let lifetime = any::<Option<u64>>().prop_map(|ms| ms.map(Duration::from_millis));
        let flags = any::<(bool, Option<bool>, Option<bool>)>();
        (prop::option::of(any_addr()), mapping, filtering, ports, lifetime, flags).prop_map(
            |(public, mapping, filtering, ports, lifetime, (untranslated, hairpin, carrier))| FamilyReport {
                public: public.map(|addr| SocketAddr::new(addr.ip().to_canonical(), addr.port())),
                untranslated,
                mapping,
                filtering,
                ports,
                hairpin,
                lifetime,
                carrier,
            },
        )
    }

    fn any_signal() -> impl Strategy<Value = Signal> {
        let ip = any_addr().prop_map(|addr| addr.ip().to_canonical());
        let ports = prop::collection::vec(1..=u16::MAX, 0..=MAX_GUESSES);
        (any::<u32>(), ip, 1..=u16::MAX, any::<i16>(), ports, 0u8..5).prop_map(
            |(attempt, ip, base, step, ports, kind)| match kind {
                0 => Signal::Counter { attempt, ip, base, step },
                1 => Signal::Guess { attempt, ip, ports },
                2 => Signal::Spray { attempt },
                3 => Signal::Go { attempt, ip },
                _ => Signal::Busy { attempt },
            },
        )
    }
}
