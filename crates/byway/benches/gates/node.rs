//! Byway as its users have it: two nodes, one protocol, one channel with its defaults.

use bytes::Bytes;
use byway::{Channel, Config, Identity, Node, PeerEvent, PeerId, Protocol, Receiver, Sender, Ticket};

use crate::{
    end::{End, Library},
    load::{Check, Load},
};

pub(crate) struct Byway;

/// A node with the benchmark's protocol.
pub(crate) struct Bound {
    node: Node,
    peers: byway::Peers,
    tx: Sender,
    rx: Receiver,
}

/// A node with its one peer.
pub(crate) struct Linked {
    bound: Bound,
    peer: PeerId,
}

impl Bound {
    async fn new() -> Self {
        let loopback = ([127, 0, 0, 1], 0).into();
        let config = Config::new(Identity::generate()).listen(loopback);
        let node = Node::bind(config).await.expect("a loopback port is free");
        let mut protocol = Protocol::new("bench", 1..=1);
        let (tx, rx) = protocol.channel(Channel::new(1));
        let peers = node.register(protocol).expect("it is the only protocol");
        Bound { node, peers, tx, rx }
    }

    async fn linked(mut self) -> Linked {
        let Some(PeerEvent::Up { peer, .. }) = self.peers.next().await else { panic!("the peer did not come up") };
        Linked { bound: self, peer }
    }
}

impl Library for Byway {
    type Listener = Bound;
    type Address = Ticket;
    type End = Linked;

    async fn listen() -> (Bound, Ticket) {
        let bound = Bound::new().await;
        let ticket = bound.node.ticket();
        (bound, ticket)
    }

    async fn accept(listener: Bound) -> Linked {
        listener.linked().await
    }

    async fn dial(address: Ticket) -> Linked {
        let bound = Bound::new().await;
        bound.node.dial(address).await.expect("the other node answers");
        bound.linked().await
    }
}

impl Linked {
    async fn put(&self, message: Bytes) {
        self.bound.tx.send_wait(self.peer, message).await.expect("the peer is connected");
    }

    async fn take(&mut self) -> Bytes {
        self.bound.rx.recv().await.expect("the node is open").1
    }
}

impl End for Linked {
    async fn send(&mut self, load: Load) {
        let same = load.bulk.then(|| load.message(0));
        for number in 0..load.count {
            self.put(same.clone().unwrap_or_else(|| load.message(number))).await;
        }
    }

    async fn receive(&mut self, load: Load, check: &mut Check) {
        while !check.is_done() {
            let message = self.take().await;
            if load.bulk {
                check.bulk(message.len());
            } else {
                check.message(&message);
            }
        }
    }

    async fn round_trip(&mut self) {
        self.put(Bytes::from_static(&[7; 64])).await;
        assert_eq!(self.take().await.len(), 64);
    }

    async fn echo(&mut self, count: usize) {
        for _ in 0..count {
            let message = self.take().await;
            self.put(message).await;
        }
    }
}
