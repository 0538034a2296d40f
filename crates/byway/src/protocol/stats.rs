//! What the channels and byte streams of a protocol have carried, as `status` and the metrics tell it.

use std::{collections::BTreeMap, sync::Arc};

use byway_proto::{PeerId, schedule::ChannelKey};

use super::{
    Delivery, STREAM_SHARE,
    registry::{Member, Registered, Registry},
};
use crate::{
    event::{Direction, Event},
    link::{Link, tally::Tally},
    status::ChannelStatus,
};

/// One tally for each channel of a protocol, and one for its byte streams.
#[derive(Debug)]
pub(crate) struct Tallies {
    channels: BTreeMap<u32, Arc<Tally>>,
    streams: Arc<Tally>,
}

impl Tallies {
    /// Those of all peers.
    pub(super) fn new(channels: impl Iterator<Item = u32>) -> Arc<Self> {
        let channels = channels.map(|id| (id, Tally::new(None))).collect();
        Arc::new(Tallies { channels, streams: Tally::new(None) })
    }

    /// Those of one peer, which count for all peers, too.
    pub(super) fn of_peer(&self) -> Arc<Self> {
        let of_peer = |whole: &Arc<Tally>| Tally::new(Some(Arc::clone(whole)));
        let channels = self.channels.iter().map(|(id, whole)| (*id, of_peer(whole))).collect();
        Arc::new(Tallies { channels, streams: of_peer(&self.streams) })
    }

    /// A channel's, or that of the byte streams, which stands for channels that are not there.
    pub(crate) fn of(&self, channel: Option<u32>) -> &Arc<Tally> {
        channel.and_then(|id| self.channels.get(&id)).unwrap_or(&self.streams)
    }
}

impl Registered {
    /// Where to count what a link carries for a channel, or for byte streams.
    pub(crate) fn tally(&self, link: &Link, channel: Option<u32>) -> Arc<Tally> {
        let is_link = |member: &&Member| std::ptr::eq(&*member.link, link);
        let of_peer = self.members().get(&link.peer).filter(is_link).map(|member| Arc::clone(&member.tallies));
        Arc::clone(of_peer.as_ref().unwrap_or(&self.tallies).of(channel))
    }

    /// Tells of a message, if that is wanted.
    pub(crate) fn tell_message(&self, peer: PeerId, channel: u32, len: usize, direction: Direction) {
        if let Some(events) = &self.told {
            events.send(Event::Message { peer, protocol: self.name.clone(), channel, len, direction });
        }
    }

    /// What was carried for all peers; of what waits nothing is said.
    fn totals(&self) -> Vec<ChannelStatus> {
        self.rows().map(|row| self.status(row, self.tallies.of(row))).collect()
    }

    fn of_peer(&self, peer: PeerId) -> Vec<ChannelStatus> {
        let Some(member) = self.member(peer) else { return Vec::new() };
        let status = |row: Option<u32>| {
            let tally = member.tallies.of(row);
            let mut status = self.status(row, tally);
            let waits = match row {
                Some(id) => member.link.outbox.waiting_in(ChannelKey(member.lanes, id)),
                None => (0, member.link.outbox.waiting(tally).1),
            };
            (status.sent.waiting_messages, status.sent.waiting_bytes) = waits;
            if let Some((_, inbox)) = row.and_then(|id| self.channel(id)) {
                (status.received.waiting_messages, status.received.waiting_bytes) = inbox.waiting(peer);
            }
            status
        };
        self.rows().map(status).collect()
    }

    /// Every channel, and last the byte streams.
    fn rows(&self) -> impl Iterator<Item = Option<u32>> {
        self.channels.keys().copied().map(Some).chain([None])
    }

    fn status(&self, row: Option<u32>, tally: &Tally) -> ChannelStatus {
        let channel = row.and_then(|id| self.channel(id)).map(|(channel, _)| channel);
        let (sent, received) = tally.flows();
        ChannelStatus {
            protocol: self.name.clone(),
            channel: row,
            delivery: channel.map_or(Delivery::Stream, |channel| channel.delivery),
            share: channel.map_or(STREAM_SHARE, |channel| channel.share),
            sent,
            received,
            dropped: tally.dropped(),
        }
    }
}

impl Registry {
    /// What has been carried between this node and a peer, or all peers.
    pub(crate) fn channels(&self, of: Option<PeerId>) -> Vec<ChannelStatus> {
        let of_protocol = |protocol: &Arc<Registered>| match of {
            Some(peer) => protocol.of_peer(peer),
            None => protocol.totals(),
        };
        self.all().iter().flat_map(of_protocol).collect()
    }
}
