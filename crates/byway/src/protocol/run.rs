//! A task for each peer, whose failure is nobody else's.

use std::{
    any::Any,
    collections::BTreeMap,
    fmt::Display,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
};

use byway_proto::PeerId;
use tokio::task::AbortHandle;

use super::peers::{PeerEvent, Peers};
use crate::switch::{Command, Failure};

/// What a task that fails, or a program that stalls ([`Protocol::stalled_after`](crate::Protocol::stalled_after)), costs the
/// peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnFailure {
    /// The protocol is not spoken with this peer any more, for as long as the connection lasts.
    DropProtocol,
    /// The connection is closed with [`Gone::Failed`](crate::Gone::Failed).
    DropPeer,
}

/// The tasks under way; none outlives it.
#[derive(Default)]
struct Running(BTreeMap<PeerId, AbortHandle>);

impl Peers {
    /// Runs `task` for each peer, with the version spoken, from when it comes up until it goes; ends when the protocol is
    /// unregistered or the node closed. A task that returns an error or panics fails for its peer alone, and is told as
    /// [`Event::ProtocolFailed`](crate::Event::ProtocolFailed); other peers and protocols do not notice.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use byway::{Config, Identity, Node};
    /// # let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
    /// # let (node, other) = (Node::bind(on_loopback()).await?, Node::bind(on_loopback()).await?);
    /// # let mut theirs = byway::Protocol::new("greeting", 1..=1);
    /// # let mut streams = theirs.streams();
    /// # let _theirs = other.register(theirs)?;
    /// use byway::{OnFailure, Protocol};
    /// use tokio::io::AsyncWriteExt;
    ///
    /// let peers = node.register(Protocol::new("greeting", 1..=1))?;
    /// let opener = peers.handle();
    /// tokio::spawn(peers.run(OnFailure::DropProtocol, move |peer, _version| {
    ///     let opener = opener.clone();
    ///     async move {
    ///         let mut stream = opener.open(peer).await?;
    ///         stream.write_all(b"hello").await?;
    ///         stream.shutdown().await?;
    ///         Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
    ///     }
    /// }));
    /// # node.dial(other.ticket()).await?;
    /// # let (_, mut stream) = streams.accept().await.ok_or("closed")?;
    /// # let mut word = String::new();
    /// # tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut word).await?;
    /// # assert_eq!(word, "hello");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn run<F, Fut, E>(mut self, on_failure: OnFailure, task: F)
    where
        F: Fn(PeerId, u32) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Display,
    {
        let task = Arc::new(task);
        let mut running = Running::default();
        while let Some(event) = self.next().await {
            match event {
                PeerEvent::Up { peer, version } => {
                    let (task, protocol, switch) = (Arc::clone(&task), Arc::clone(&self.protocol), self.switch.clone());
                    let Some(link) = protocol.member(peer).map(|member| member.link) else { continue };
                    let run = async move {
                        // inside, so that a panic before the first await is caught, too
                        if let Err(why) = caught(async { task(peer, version).await }).await {
                            let failure = Failure { link, protocol: protocol.id, why, on_failure };
                            switch.send(Command::Failed(failure)).await;
                        }
                    };
                    running.replace(peer, self.tasks.spawn_abortable(run));
                }
                PeerEvent::Down { peer, .. } => running.replace(peer, None),
            }
        }
    }
}

impl Running {
    fn replace(&mut self, peer: PeerId, task: Option<AbortHandle>) {
        let before = match task {
            Some(task) => self.0.insert(peer, task),
            None => self.0.remove(&peer),
        };
        before.into_iter().for_each(|task| task.abort());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.values().for_each(AbortHandle::abort);
    }
}

/// The outcome of a task that may panic.
async fn caught<E: Display>(task: impl Future<Output = Result<(), E>>) -> Result<(), String> {
    let mut task = pin!(task);
    // A task that panicked is never polled again, so that nobody sees what it left half done.
    let poll = |cx: &mut std::task::Context<'_>| {
        let poll = guarded(|| task.as_mut().poll(cx).map_err(|error| error.to_string()));
        poll.unwrap_or_else(|why| Poll::Ready(Err(why)))
    };
    poll_fn(poll).await
}

/// What the program's code gives, or the words of its panic. The caller lets nobody see what the code left half done.
pub(super) fn guarded<T>(code: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(code)).map_err(|panic| format!("it panicked: {}", message(&*panic)))
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let literal = panic.downcast_ref::<&str>().copied();
    literal.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
