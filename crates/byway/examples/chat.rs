//! Three nodes in one room: whatever one says, all others hear.
//!
//! `cargo run -p byway --example chat`
#![allow(clippy::print_stdout)] // an example shows what it does

use byway::{Channel, Class, Config, Identity, Node, PeerEvent, Peers, Protocol, Receiver, Sender, To};

type Error = Box<dyn std::error::Error + Send + Sync>;

struct Guest {
    name: &'static str,
    node: Node,
    say: Sender,
    hear: Receiver,
    peers: Peers,
}

async fn enter(name: &'static str) -> Result<Guest, Error> {
    let node = Node::bind(Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into())).await?;
    let mut chat = Protocol::new("chat", 1..=1);
    // Short messages that people wait for go before bulk, and at most 64 of them wait for a slow peer.
    let (say, hear) = chat.channel(Channel::new(1).share(Class::Interactive, 1).max_message(1_024).queue(64));
    let peers = node.register(chat)?;
    Ok(Guest { name, node, say, hear, peers })
}

impl Guest {
    /// Waits until `count` others are in the room.
    async fn meet(&mut self, count: usize) {
        while self.peers.list().len() < count {
            match self.peers.next().await {
                Some(PeerEvent::Down { peer, reason }) => println!("{}: {peer} left: {reason}", self.name),
                Some(_) => {}
                None => return,
            }
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut guests = [enter("ada").await?, enter("ben").await?, enter("eve").await?];
    let tickets: Vec<_> = guests.iter().map(|guest| guest.node.ticket()).collect();
    for (index, guest) in guests.iter().enumerate() {
        for ticket in &tickets[index + 1..] {
            guest.node.dial(ticket.clone()).await?;
        }
    }
    for guest in &mut guests {
        guest.meet(2).await;
        let sent = guest.say.send(&To::All, format!("hello, this is {}", guest.name).into());
        println!("{} is heard by {}", guest.name, sent.queued);
    }
    for guest in &mut guests {
        for _ in 0..2 {
            let Some((peer, text)) = guest.hear.recv().await else { break };
            println!("{} hears {}: {}", guest.name, &peer.to_string()[..8], String::from_utf8_lossy(&text));
        }
    }
    for guest in guests {
        guest.node.close().await;
    }
    Ok(())
}
