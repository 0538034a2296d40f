//! Two protocols over one connection: a bulk copy, and questions that do not wait behind it.
//!
//! `cargo run --release -p byway --example multi_protocol`
#![allow(clippy::print_stdout)] // an example shows what it does

use std::time::{Duration, Instant};

use bytes::Bytes;
use byway::{Channel, Class, Config, Identity, Node, Protocol, To};

type Error = Box<dyn std::error::Error + Send + Sync>;

const BLOCK: usize = 64 << 10;
const BLOCKS: usize = 2_000;

async fn node() -> Result<Node, Error> {
    Ok(Node::bind(Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into())).await?)
}

/// The same two protocols on both sides; versions are agreed on for each.
fn protocols() -> (Protocol, Protocol) {
    (Protocol::new("blocks", 1..=3), Protocol::new("status", 2..=2))
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let (a, b) = (node().await?, node().await?);
    let (mut blocks, mut status) = protocols();
    let (block_tx, _) = blocks.channel(Channel::new(1));
    let (ask, mut answers) = status.channel(Channel::new(1).share(Class::Interactive, 1));
    let (mut blocks, _status) = (a.register(blocks)?, a.register(status)?);

    let (mut their_blocks, mut their_status) = protocols();
    let (_, mut block_rx) = their_blocks.channel(Channel::new(1));
    let (answer, mut questions) = their_status.channel(Channel::new(1).share(Class::Interactive, 1));
    let _theirs = (b.register(their_blocks)?, b.register(their_status)?);
    tokio::spawn(async move {
        while let Some((peer, question)) = questions.recv().await {
            let _ = answer.send(&To::Peer(peer), question); // a full queue would say that the peer does not read
        }
    });

    let peer = a.dial(b.ticket()).await?;
    blocks.next().await; // it is up, and both speak version 3 of blocks
    let copy = tokio::spawn(async move {
        let block = Bytes::from(vec![7; BLOCK]);
        for _ in 0..BLOCKS {
            block_tx.send_wait(peer, block.clone()).await?; // as fast as the peer reads
        }
        Ok::<_, Error>(())
    });
    let read = tokio::spawn(async move {
        for _ in 0..BLOCKS {
            block_rx.recv().await;
        }
    });

    let (mut asked, mut slowest) = (0, Duration::ZERO);
    while !read.is_finished() {
        let start = Instant::now();
        let _ = ask.send(&To::Peer(peer), "how far are you?".into());
        answers.recv().await;
        (asked, slowest) = (asked + 1, slowest.max(start.elapsed()));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    copy.await??;
    println!("{} MiB copied; {asked} questions meanwhile, the slowest took {slowest:?}", (BLOCK * BLOCKS) >> 20);
    a.close().await;
    b.close().await;
    Ok(())
}
