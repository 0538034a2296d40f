//! Two nodes: one asks over a byte stream, the other echoes what it reads.
//!
//! `cargo run -p byway --example echo`
#![allow(clippy::print_stdout)] // an example shows what it does

use byway::{Config, Identity, Node, Protocol};
use tokio::io::{self, AsyncReadExt, AsyncWriteExt};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// A node on this machine alone; without `listen` it would be found from anywhere.
async fn node() -> Result<Node, Error> {
    Ok(Node::bind(Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into())).await?)
}

/// Echoes every stream until the node is closed.
fn serve(node: &Node) -> Result<(), Error> {
    let mut echo = Protocol::new("echo", 1..=1);
    let mut streams = echo.streams();
    node.register(echo)?;
    tokio::spawn(async move {
        while let Some((_peer, mut stream)) = streams.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = io::split(&mut stream);
                io::copy(&mut from, &mut to).await?;
                to.shutdown().await
            });
        }
    });
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let (server, client) = (node().await?, node().await?);
    serve(&server)?;

    let mut peers = client.register(Protocol::new("echo", 1..=1))?;
    let peer = client.dial(server.ticket()).await?;
    peers.next().await; // it is up, and speaks echo
    let mut stream = peers.open(peer).await?;
    stream.write_all(b"is anybody there?").await?;
    stream.shutdown().await?;
    let mut echoed = String::new();
    stream.read_to_string(&mut echoed).await?;
    println!("{peer} echoes: {echoed}");
    client.close().await;
    server.close().await;
    Ok(())
}
