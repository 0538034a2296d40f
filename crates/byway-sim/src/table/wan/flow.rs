//! One flow from a sending to a receiving host, which never runs dry.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use byway::{Channel, Identity, Node, Protocol};
use tokio::{task::JoinSet, time};

use super::WanError;
use crate::{
    Host, World,
    bare::{self, BareError},
    table,
};

/// Bytes of a message, or of what is written at once.
const CHUNK: usize = 64 << 10;

/// Surveys and the MTU search are over by then.
const SETTLE: Duration = Duration::from_secs(2);

/// A connection over which bytes go one way as fast as they may.
pub(super) struct Flow {
    arrived: Arc<AtomicU64>,
    sending: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// Ends with the flow.
    tasks: JoinSet<()>,
}

impl Flow {
    /// A flow of Byway: one channel of the shipping node, with its defaults.
    pub(super) async fn byway(world: &World, [from, to]: &[Host; 2], name: &str) -> Result<Self, WanError> {
        let mut rng = world.rng(name);
        let mut node = async |host: &Host| {
            let config = table::config(world, Identity::from_seed(rng.bytes()), &mut rng);
            Node::bind_on(host.net(), config).await
        };
        let (sender, receiver) = (node(from).await?, node(to).await?);
        let register = |node: &Node| {
            let mut bulk = Protocol::new("bulk", 1..=1);
            let channel = bulk.channel(Channel::new(1));
            (channel, node.register(bulk).expect("the protocol is a valid one, and the node's first"))
        };
        let ((tx, _), mut peers) = register(&sender);
        let ((_, mut rx), theirs) = register(&receiver);
        let peer = sender.dial(receiver.ticket()).await?;
        let _ = peers.next().await; // it is up
        time::sleep(SETTLE).await;

        let mut flow = Flow { arrived: Arc::default(), sending: None, tasks: JoinSet::new() };
        let arrived = Arc::clone(&flow.arrived);
        flow.tasks.spawn(async move {
            while let Some((_, message)) = rx.recv().await {
                arrived.fetch_add(message.len() as u64, Ordering::Relaxed);
            }
            drop((receiver, theirs));
        });
        flow.sending = Some(Box::pin(async move {
            let message = Bytes::from(vec![0; CHUNK]);
            while tx.send_wait(peer, message.clone()).await.is_ok() {}
            drop((sender, peers));
        }));
        Ok(flow)
    }

    /// A flow of bare quinn: one stream, with the library's defaults.
    pub(super) async fn bare(world: &World, [from, to]: &[Host; 2], name: &str) -> Result<Self, WanError> {
        let mut rng = world.rng(name);
        let mut open = |host: &Host| {
            let endpoint = bare::endpoint(&*host.net(), ([0, 0, 0, 0], 0).into(), rng.bytes())?;
            let addr = endpoint.local_addr()?;
            Ok::<_, BareError>((endpoint, (host.addr(), addr.port()).into()))
        };
        let ((sender, _), (receiver, addr)) = (open(from)?, open(to)?);
        let accept = async {
            let incoming = receiver.accept().await.expect("the endpoint is open");
            Ok(incoming.await?)
        };
        let (dialled, accepted) = tokio::try_join!(bare::dial(&sender, addr), accept)?;
        time::sleep(SETTLE).await;

        let mut flow = Flow { arrived: Arc::default(), sending: None, tasks: JoinSet::new() };
        let arrived = Arc::clone(&flow.arrived);
        flow.tasks.spawn(async move {
            let mut chunks = [const { Bytes::new() }; 32];
            let Ok(mut stream) = accepted.accept_uni().await else { return };
            while let Ok(Some(count)) = stream.read_chunks(&mut chunks).await {
                let bytes: usize = chunks[..count].iter().map(Bytes::len).sum();
                arrived.fetch_add(bytes as u64, Ordering::Relaxed);
            }
            drop((receiver, accepted));
        });
        flow.sending = Some(Box::pin(async move {
            let Ok(mut stream) = dialled.open_uni().await else { return };
            while stream.write_all(&[0; CHUNK]).await.is_ok() {}
            drop((sender, dialled));
        }));
        Ok(flow)
    }

    /// Begins to send.
    pub(super) fn start(&mut self) {
        if let Some(sending) = self.sending.take() {
            self.tasks.spawn(sending);
        }
    }

    /// Bytes that the receiving application has.
    pub(super) fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }
}
