//! The first words of two peers: who they are, which protocols they speak, and what follows from both.
//!
//! Both sides send a [`Hello`] at once and without waiting; [`agree`] is one pure function of the two, and it gives both
//! sides the same answer. What else travels on the control stream is in [`Control`].

mod control;
mod message;
mod refusal;

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};

pub use control::{
    Candidates, Control, ControlCodec, ControlError, Garbled, Goodbye, MAX_BUFFERED, MAX_CANDIDATES, MAX_CONTROL_FRAME,
    MAX_DETAIL, MAX_TOLD_RELAYS, OpenFailure,
};
pub use refusal::{HelloFault, ParseVersionsError, Refusal, Side, Versions};

/// Protocols in one hello; with their names they fill a third of a control frame.
pub const MAX_PROTOCOLS: usize = 64;

/// Bytes in the name of a protocol or a network.
pub const MAX_NAME: usize = 64;

/// Channels in one hello, over all protocols: as many as a link has lanes; they fill another third of a control frame.
pub const MAX_DECLARED: usize = 1_024;

/// Bytes in the name and version of the software.
pub const MAX_AGENT: usize = 128;

/// What a peer says of itself when a link begins.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Hello {
    /// The software and its version, for people to read; at most [`MAX_AGENT`] bytes.
    #[prost(string, tag = "1")]
    pub agent: String,
    /// The network that the peer belongs to: visible ASCII, at most [`MAX_NAME`] bytes, may be empty.
    #[prost(string, tag = "2")]
    pub network: String,
    /// A random number for the life of the process: another one means that the peer has restarted.
    #[prost(fixed64, tag = "3")]
    pub instance: u64,
    /// Whether this side wants or offers relaying on this link.
    #[prost(bool, tag = "4")]
    pub relay: bool,
    /// The protocols that the peer speaks, at most [`MAX_PROTOCOLS`], each name and each number once.
    #[prost(message, repeated, tag = "5")]
    pub protocols: Vec<Announced>,
    /// What the peer accepts.
    #[prost(message, required, tag = "6")]
    pub limits: Limits,
}

/// A protocol that a peer speaks.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Announced {
    /// The number by which the announcing side will name the protocol on this link.
    #[prost(uint32, tag = "1")]
    pub id: u32,
    /// The protocol's name: visible ASCII, 1 to [`MAX_NAME`] bytes.
    #[prost(string, tag = "2")]
    pub name: String,
    /// The lowest version spoken, at least 1.
    #[prost(uint32, tag = "3")]
    pub min: u32,
    /// The highest version spoken, at least `min`.
    #[prost(uint32, tag = "4")]
    pub max: u32,
    /// Whether a peer that does not speak it is of no use.
    #[prost(bool, tag = "5")]
    pub required: bool,
    /// Its channels that are delivered in order and whole; with `datagrams`, each number once.
    #[prost(uint32, repeated, tag = "6")]
    pub streams: Vec<u32>,
    /// Its channels whose messages may be lost or overtaken.
    #[prost(uint32, repeated, tag = "7")]
    pub datagrams: Vec<u32>,
}

/// What a peer accepts from the other side.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Limits {
    /// The longest message in bytes.
    #[prost(uint64, tag = "1")]
    pub max_message: u64,
    /// The largest number of streams open at once.
    #[prost(uint64, tag = "2")]
    pub max_streams: u64,
}

impl Hello {
    /// Checks what the types cannot hold: counts, names, version ranges.
    pub fn check(&self) -> Result<(), HelloFault> {
        if self.agent.len() > MAX_AGENT {
            return Err(HelloFault::BadAgent);
        }
        if self.network.len() > MAX_NAME || !is_visible(&self.network) {
            return Err(HelloFault::BadNetwork);
        }
        if self.protocols.len() > MAX_PROTOCOLS {
            return Err(HelloFault::TooManyProtocols(self.protocols.len()));
        }
        let declared = self.protocols.iter().map(|protocol| protocol.channels().count()).sum();
        if declared > MAX_DECLARED {
            return Err(HelloFault::TooManyChannels(declared));
        }
        let (mut names, mut ids) = (BTreeSet::new(), BTreeSet::new());
        for (index, protocol) in self.protocols.iter().enumerate() {
            let name = &protocol.name;
            if name.is_empty() || name.len() > MAX_NAME || !is_visible(name) {
                return Err(HelloFault::BadName { index });
            }
            if protocol.min == 0 || protocol.min > protocol.max {
                return Err(HelloFault::BadVersions { name: name.clone(), versions: protocol.versions() });
            }
            if !names.insert(name.as_str()) {
                return Err(HelloFault::DuplicateName(name.clone()));
            }
            if !ids.insert(protocol.id) {
                return Err(HelloFault::DuplicateId(protocol.id));
            }
            let mut channels = BTreeSet::new();
            if let Some(channel) = protocol.channels().find(|channel| !channels.insert(*channel)) {
                return Err(HelloFault::DuplicateChannel { name: name.clone(), channel });
            }
        }
        Ok(())
    }
}

impl Announced {
    /// The versions spoken.
    pub fn versions(&self) -> Versions {
        Versions { min: self.min, max: self.max }
    }

    fn channels(&self) -> impl Iterator<Item = u32> {
        self.streams.iter().chain(&self.datagrams).copied()
    }

    /// The lowest channel that is delivered as datagrams here and as a stream there.
    fn datagrams_but_streams_of(&self, other: &Announced) -> Option<u32> {
        let streams: BTreeSet<u32> = other.streams.iter().copied().collect();
        self.datagrams.iter().copied().filter(|channel| streams.contains(channel)).min()
    }
}

/// What two hellos come to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Agreed {
    /// Whether the link carries relay control: both sides asked for it.
    pub relay: bool,
    /// The protocols that both sides speak, sorted by name.
    pub protocols: Vec<AgreedProtocol>,
}

/// A protocol that both sides speak.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct AgreedProtocol {
    /// The protocol's name.
    pub name: String,
    /// The highest version that both speak.
    pub version: u32,
    /// Our number for it.
    pub ours: u32,
    /// The other side's number for it.
    pub theirs: u32,
}

/// Decides what the link is for; the other side, with the arguments exchanged, decides the same.
///
/// A relay serves all networks and speaks none of their protocols. Where both sides asked for relaying, another network
/// or a missing protocol is therefore no reason to refuse: the link then stands for relaying, and for those protocols
/// that both speak in the same network.
pub fn agree(ours: &Hello, theirs: &Hello) -> Result<Agreed, Refusal> {
    theirs.check().map_err(Refusal::PeerMisbehaved)?;
    ours.check().map_err(Refusal::ApiMisuse)?;
    let relay = ours.relay && theirs.relay;
    if ours.network != theirs.network {
        return if relay {
            Ok(Agreed { relay, protocols: Vec::new() })
        } else {
            Err(Refusal::OtherNetwork { ours: ours.network.clone(), theirs: theirs.network.clone() })
        };
    }
    let mut spoken = BTreeMap::<&str, (Option<&Announced>, Option<&Announced>)>::new();
    for protocol in &ours.protocols {
        spoken.entry(&protocol.name).or_default().0 = Some(protocol);
    }
    for protocol in &theirs.protocols {
        spoken.entry(&protocol.name).or_default().1 = Some(protocol);
    }
    let mut protocols = Vec::new();
    // In the order of names, so that both sides find the same reason first.
    for (name, sides) in spoken {
        match agree_on(name, sides) {
            Ok(Some(protocol)) => protocols.push(protocol),
            Ok(None) => {}
            Err(_) if relay => {}
            Err(refusal) => return Err(refusal),
        }
    }
    Ok(Agreed { relay, protocols })
}

fn agree_on(name: &str, sides: (Option<&Announced>, Option<&Announced>)) -> Result<Option<AgreedProtocol>, Refusal> {
    let (ours, theirs) = match sides {
        (Some(ours), Some(theirs)) => (ours, theirs),
        (Some(one), None) if one.required => {
            return Err(Refusal::MissingProtocol { name: name.into(), required_by: Side::Ours });
        }
        (None, Some(one)) if one.required => {
            return Err(Refusal::MissingProtocol { name: name.into(), required_by: Side::Theirs });
        }
        _ => return Ok(None),
    };
    let required = ours.required || theirs.required;
    let version = ours.max.min(theirs.max);
    if version < ours.min.max(theirs.min) {
        let (ours, theirs) = (ours.versions(), theirs.versions());
        return if required { Err(Refusal::NoCommonVersion { name: name.into(), ours, theirs }) } else { Ok(None) };
    }
    if let Some((channel, datagrams_at)) = differing_delivery(ours, theirs) {
        return if required {
            Err(Refusal::OtherDelivery { name: name.into(), channel, datagrams_at })
        } else {
            Ok(None)
        };
    }
    Ok(Some(AgreedProtocol { name: name.into(), version, ours: ours.id, theirs: theirs.id }))
}

/// The lowest channel that the two sides deliver differently, and the side at which it is delivered as datagrams.
fn differing_delivery(ours: &Announced, theirs: &Announced) -> Option<(u32, Side)> {
    let here = ours.datagrams_but_streams_of(theirs).map(|channel| (channel, Side::Ours));
    let there = theirs.datagrams_but_streams_of(ours).map(|channel| (channel, Side::Theirs));
    here.into_iter().chain(there).min_by_key(|(channel, _)| *channel)
}

/// Visible ASCII has no spaces, which lets a refusal list names in one line of text.
fn is_visible(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
pub(crate) mod tests {
    use alloc::{format, string::ToString, vec};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_highest_common_version_is_taken() {
        let agreed =
            agree(&hello(&[("chat", 1, 3), ("sync", 2, 2)]), &hello(&[("sync", 1, 9), ("chat", 2, 7)])).unwrap();
        let chat = AgreedProtocol { name: "chat".into(), version: 3, ours: 0, theirs: 1 };
        let sync = AgreedProtocol { name: "sync".into(), version: 2, ours: 1, theirs: 0 };
        assert_eq!(agreed.protocols, [chat, sync]);
    }

    #[test]
    fn optional_protocols_that_only_one_side_speaks_are_left_out() {
        let agreed = agree(&hello(&[("chat", 1, 1), ("old", 1, 1)]), &hello(&[("chat", 1, 1), ("old", 2, 2)])).unwrap();
        assert_eq!(agreed.protocols.len(), 1);
    }

    #[test]
    fn another_network_is_refused_by_name() {
        let mut theirs = hello(&[]);
        theirs.network = "other".into();
        let refusal = agree(&hello(&[]), &theirs).unwrap_err();
        assert_eq!(refusal, Refusal::OtherNetwork { ours: "test".into(), theirs: "other".into() });
    }

    #[test]
    fn a_required_protocol_that_is_missing_refuses_whoever_requires_it() {
        let mut needs = hello(&[("chat", 1, 1)]);
        needs.protocols[0].required = true;
        let missing = |required_by| Refusal::MissingProtocol { name: "chat".into(), required_by };
        assert_eq!(agree(&needs, &hello(&[])), Err(missing(Side::Ours)));
        assert_eq!(agree(&hello(&[]), &needs), Err(missing(Side::Theirs)));
        let newer = hello(&[("chat", 2, 4)]);
        let (ours, theirs) = (Versions { min: 1, max: 1 }, Versions { min: 2, max: 4 });
        assert_eq!(agree(&needs, &newer), Err(Refusal::NoCommonVersion { name: "chat".into(), ours, theirs }));
    }

    #[test]
    fn a_channel_that_the_sides_deliver_differently_parts_them() {
        let ours = hello(&[("chat", 1, 1), ("game", 1, 1)]);
        let mut theirs = ours.clone();
        theirs.protocols[1].streams = vec![1, 9]; // channels that only one side has hurt nobody
        theirs.protocols[1].datagrams = vec![2, 3];
        let agreed = agree(&ours, &theirs).unwrap();
        assert_eq!(agreed.protocols.iter().map(|it| &it.name[..]).collect::<Vec<_>>(), ["chat"]);
        theirs.protocols[1].required = true;
        let refusal = |datagrams_at| Refusal::OtherDelivery { name: "game".into(), channel: 2, datagrams_at };
        assert_eq!(agree(&ours, &theirs), Err(refusal(Side::Theirs)));
        assert_eq!(agree(&theirs, &ours), Err(refusal(Side::Ours)));
    }

    #[test]
    fn a_relay_serves_other_networks_without_their_protocols() {
        let mut client = hello(&[("chat", 1, 1)]);
        client.protocols[0].required = true;
        client.relay = true;
        let mut relay = hello(&[]);
        relay.relay = true;
        assert_eq!(agree(&client, &relay), Ok(Agreed { relay: true, protocols: vec![] }));
        relay.network = "".into();
        assert_eq!(agree(&client, &relay), Ok(Agreed { relay: true, protocols: vec![] }));
        client.relay = false;
        assert!(matches!(agree(&client, &relay), Err(Refusal::OtherNetwork { .. })));
    }

    #[test]
    fn a_malformed_hello_is_the_fault_of_its_sender() {
        let good = hello(&[("chat", 1, 1)]);
        let many: Vec<_> = (0..65).map(|n| format!("p{n}")).collect();
        let many: Vec<_> = many.iter().map(|name| (name.as_str(), 1, 1)).collect();
        let long = "x".repeat(MAX_NAME + 1);
        let mut same_id = hello(&[("a", 1, 1), ("b", 1, 1)]);
        same_id.protocols[1].id = 0;
        let (mut twice, mut channels) = (good.clone(), good.clone());
        twice.protocols[0].datagrams = vec![2];
        channels.protocols[0].streams = (1..=MAX_DECLARED as u32).collect();
        channels.protocols[0].datagrams = vec![0];
        let versions = |min, max| HelloFault::BadVersions { name: "a".into(), versions: Versions { min, max } };
        for (bad, fault) in [
            (hello(&[("a", 1, 1), ("a", 2, 2)]), HelloFault::DuplicateName("a".into())),
            (same_id, HelloFault::DuplicateId(0)),
            (hello(&[("a", 0, 1)]), versions(0, 1)),
            (hello(&[("a", 3, 2)]), versions(3, 2)),
            (hello(&many), HelloFault::TooManyProtocols(65)),
            (hello(&[("ok", 1, 1), (&long, 1, 1)]), HelloFault::BadName { index: 1 }),
            (hello(&[("", 1, 1)]), HelloFault::BadName { index: 0 }),
            (hello(&[("a b", 1, 1)]), HelloFault::BadName { index: 0 }),
            (Hello { network: "a b".into(), ..good.clone() }, HelloFault::BadNetwork),
            (Hello { agent: "x".repeat(MAX_AGENT + 1), ..good.clone() }, HelloFault::BadAgent),
            (twice, HelloFault::DuplicateChannel { name: "chat".into(), channel: 2 }),
            (channels, HelloFault::TooManyChannels(MAX_DECLARED + 1)),
        ] {
            assert_eq!(agree(&good, &bad), Err(Refusal::PeerMisbehaved(fault.clone())));
            assert_eq!(agree(&bad, &good), Err(Refusal::ApiMisuse(fault)));
        }
    }

    proptest! {
        #[test]
        fn both_sides_reach_the_same_answer(a in any_hello(), b in any_hello()) {
            let (here, there) = (agree(&a, &b), agree(&b, &a));
            match (here, there) {
                (Ok(here), Ok(there)) => {
                    prop_assert_eq!(here.relay, there.relay);
                    let mirrored: Vec<_> = there.protocols.into_iter()
                        .map(|p| AgreedProtocol { ours: p.theirs, theirs: p.ours, ..p }).collect();
                    prop_assert_eq!(&here.protocols, &mirrored);
                    prop_assert!(here.protocols.is_sorted());
                    for p in &here.protocols {
                        let of = |hello: &Hello| hello.protocols.iter().find(|q| q.name == p.name).cloned().unwrap();
                        prop_assert!((of(&a).min..=of(&a).max).contains(&p.version));
                        prop_assert!((of(&b).min..=of(&b).max).contains(&p.version));
                    }
                }
                (Err(here), Err(there)) => {
                    // Of two malformed hellos each side names the other's fault.
                    if a.check().is_ok() || b.check().is_ok() {
                        prop_assert_eq!(&here, &there.mirrored());
                    }
                    prop_assert_eq!(Refusal::from_goodbye(&here.to_goodbye()), Some(here.mirrored()));
                }
                (here, there) => prop_assert!(false, "{here:?} but {there:?}"),
            }
        }
    }

    pub(crate) fn hello(protocols: &[(&str, u32, u32)]) -> Hello {
        let announce = |(id, (name, min, max)): (usize, &(&str, u32, u32))| Announced {
            id: id as u32,
            name: name.to_string(),
            min: *min,
            max: *max,
            required: false,
            streams: vec![1, 2],
            datagrams: vec![3],
        };
        Hello {
            agent: "byway/test".into(),
            network: "test".into(),
            instance: 7,
            relay: false,
            protocols: protocols.iter().enumerate().map(announce).collect(),
            limits: Limits { max_message: 1 << 20, max_streams: 100 },
        }
    }

    /// Hellos that mostly agree, sometimes not, and are sometimes malformed.
    pub(crate) fn any_hello() -> impl Strategy<Value = Hello> {
        let channels = prop::collection::btree_map(0u32..4, prop::bool::weighted(0.8), 0..3);
        let protocol = (0u32..50, "[a-d]{1,2}", 0u32..6, 0u32..6, prop::bool::weighted(0.2), channels);
        let protocol = protocol.prop_map(|(id, name, min, more, required, channels)| {
            let min = if id == 0 { 0 } else { min.max(1) };
            let (streams, datagrams): (Vec<_>, Vec<_>) = channels.into_iter().partition(|(_, stream)| *stream);
            let [streams, datagrams] =
                [streams, datagrams].map(|of| of.into_iter().map(|(channel, _)| channel).collect());
            Announced { id, name, min, max: min + more, required, streams, datagrams }
        });
        let network = prop_oneof![9 => Just("net"), 1 => Just(""), 1 => Just("a b")];
        (prop::collection::vec(protocol, 0..5), network, any::<bool>(), any::<u64>(), any::<(u64, u64)>()).prop_map(
            |(protocols, network, relay, instance, (max_message, max_streams))| Hello {
                agent: "any".into(),
                network: network.into(),
                instance,
                relay,
                protocols,
                limits: Limits { max_message, max_streams },
            },
        )
    }
}
