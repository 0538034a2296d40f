//! What a node tells of the channels to a peer.

use std::collections::BTreeMap;

use byway::{ChannelStatus, Class, Delivery};
use serde::{Deserialize, Serialize};

/// A channel, or the byte streams of a protocol.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Channel {
    /// The protocol's name.
    pub(crate) protocol: String,
    /// `null` stands for all byte streams of the protocol.
    pub(crate) channel: Option<u32>,
    /// `stream` or `datagram`.
    pub(crate) delivery: String,
    /// `control`, `interactive` or `bulk`.
    pub(crate) class: String,
    pub(crate) weight: u16,
    pub(crate) sent: Flow,
    pub(crate) received: Flow,
    /// Messages that were not carried, by reason; reasons without any are left out.
    pub(crate) dropped: BTreeMap<String, u64>,
}

/// One direction of a channel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Flow {
    /// Of byte streams, how many were opened.
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) waiting_messages: u64,
    pub(crate) waiting_bytes: u64,
    /// Means over the last one to three seconds.
    pub(crate) messages_s: f64,
    pub(crate) bytes_s: f64,
}

impl Channel {
    /// Its name within the protocol.
    pub(crate) fn name(&self) -> String {
        let channel = self.channel.map_or_else(|| "streams".into(), |channel| channel.to_string());
        format!("{}/{channel}", self.protocol)
    }

    /// Whether anything was ever sent, received or dropped on it.
    pub(crate) fn is_used(&self) -> bool {
        let is_used = |flow: &Flow| flow.messages > 0 || flow.bytes > 0 || flow.waiting_bytes > 0;
        is_used(&self.sent) || is_used(&self.received) || !self.dropped.is_empty()
    }
}

impl From<ChannelStatus> for Channel {
    fn from(status: ChannelStatus) -> Self {
        Channel {
            protocol: status.protocol,
            channel: status.channel,
            delivery: if status.delivery == Delivery::Datagram { "datagram" } else { "stream" }.into(),
            class: match status.share.class {
                Class::Control => "control",
                Class::Interactive => "interactive",
                Class::Bulk => "bulk",
            }
            .into(),
            weight: status.share.weight,
            sent: status.sent.into(),
            received: status.received.into(),
            dropped: status.dropped.into_iter().map(|(why, count)| (why.to_owned(), count)).collect(),
        }
    }
}

impl From<byway::Flow> for Flow {
    fn from(flow: byway::Flow) -> Self {
        let round = |rate: f64| (rate * 10.0).round() / 10.0;
        Flow {
            messages: flow.messages,
            bytes: flow.bytes,
            waiting_messages: flow.waiting_messages as u64,
            waiting_bytes: flow.waiting_bytes as u64,
            messages_s: round(flow.messages_per_second),
            bytes_s: round(flow.bytes_per_second),
        }
    }
}
