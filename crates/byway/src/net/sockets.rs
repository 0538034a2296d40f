//! The node's sockets: one a family, one for all WebSockets, and those that the agent opened to get through a NAT.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    ops::Bound,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Waker},
};

use byway_proto::nat::SocketId;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::protocol::Role;

use super::{
    UdpSocket,
    wss::{WebSocket, WssSocket, is_virtual},
};

/// Most further sockets at once: one hard punch, and as many again for what earlier ones left in use.
pub(crate) const MAX_FURTHER: usize = 512;

/// All sockets of a node.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) v4: Option<Arc<dyn UdpSocket>>,
    pub(crate) v6: Option<Arc<dyn UdpSocket>>,
    wss: Arc<WssSocket>,
    /// Whether there ever was a WebSocket.
    is_wss_used: AtomicBool,
    further: RwLock<BTreeMap<SocketId, Arc<dyn UdpSocket>>>,
    /// How many further ones there are: almost always none, which the packet path must learn without a lock.
    count: AtomicUsize,
    /// How many were ever added, the WebSockets being one.
    added: AtomicUsize,
    /// Whoever receives, for it does not know yet of a socket that is added while it waits.
    receiver: Mutex<Option<Waker>>,
}

/// Names one socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    V4,
    V6,
    Wss,
    Further(SocketId),
}

impl Which {
    /// The number by which routes and the agent know it.
    pub(crate) fn id(self) -> SocketId {
        match self {
            Which::V4 | Which::V6 | Which::Wss => SocketId::MAIN,
            Which::Further(id) => id,
        }
    }
}

impl Sockets {
    pub(crate) fn new(v4: Option<Arc<dyn UdpSocket>>, v6: Option<Arc<dyn UdpSocket>>) -> Self {
        Sockets {
            v4,
            v6,
            wss: Arc::new(WssSocket::new()),
            is_wss_used: AtomicBool::new(false),
            further: RwLock::default(),
            count: AtomicUsize::new(0),
            added: AtomicUsize::new(0),
            receiver: Mutex::default(),
        }
    }

    /// The node's own socket that reaches `addr`.
    pub(crate) fn towards(&self, addr: SocketAddr) -> Option<(Which, &dyn UdpSocket)> {
        match addr {
            SocketAddr::V4(_) => self.v4.as_deref().map(|socket| (Which::V4, socket)),
            SocketAddr::V6(_) if is_virtual(addr) => Some((Which::Wss, &*self.wss)),
            SocketAddr::V6(_) => self.v6.as_deref().map(|socket| (Which::V6, socket)),
        }
    }

    /// Every socket that shares the node's own port or name, each where it exists: one a family, and the WebSockets.
    pub(crate) fn main(&self) -> [Option<(Which, &dyn UdpSocket)>; 3] {
        let wss = self.is_wss_used.load(Ordering::Relaxed).then_some((Which::Wss, &*self.wss as &dyn UdpSocket));
        let named = |which| move |socket| (which, socket);
        [self.v4.as_deref().map(named(Which::V4)), self.v6.as_deref().map(named(Which::V6)), wss]
    }

    /// Takes in a WebSocket (see [`WssSocket::open`]); from now on the mux receives from WebSockets too.
    pub(crate) async fn open_wss<S>(&self, stream: S, part: Vec<u8>, role: Role, remote: SocketAddr) -> WebSocket<S>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let opened = self.wss.open(stream, part, role, remote).await;
        if !self.is_wss_used.swap(true, Ordering::Relaxed) {
            self.wake_receiver();
        }
        opened
    }

    /// The WebSockets.
    pub(crate) fn wss(&self) -> &WssSocket {
        &self.wss
    }

    pub(crate) fn get(&self, which: Which) -> Option<Arc<dyn UdpSocket>> {
        match which {
            Which::V4 => self.v4.clone(),
            Which::V6 => self.v6.clone(),
            Which::Wss => Some(Arc::clone(&self.wss) as _),
            Which::Further(id) => self.further(id),
        }
    }

    /// The node's own sockets.
    pub(crate) fn own(&self) -> impl Iterator<Item = &Arc<dyn UdpSocket>> {
        self.v4.iter().chain(&self.v6)
    }

    /// A socket that the agent opened.
    pub(crate) fn further(&self, id: SocketId) -> Option<Arc<dyn UdpSocket>> {
        self.further.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// How many further sockets there are.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// The further socket that follows `id`, around in a circle.
    pub(crate) fn after(&self, id: SocketId) -> Option<(SocketId, Arc<dyn UdpSocket>)> {
        let further = self.further.read().unwrap_or_else(PoisonError::into_inner);
        let next = further.range((Bound::Excluded(id), Bound::Unbounded)).next().or_else(|| further.iter().next());
        next.map(|(id, socket)| (*id, Arc::clone(socket)))
    }

    /// Receives from one more socket; `false` if that would be more than [`MAX_FURTHER`].
    pub(crate) fn add(&self, id: SocketId, socket: Arc<dyn UdpSocket>) -> bool {
        let mut further = self.further.write().unwrap_or_else(PoisonError::into_inner);
        if further.len() >= MAX_FURTHER {
            return false;
        }
        further.insert(id, socket);
        self.count.store(further.len(), Ordering::Relaxed);
        drop(further);
        self.wake_receiver();
        true
    }

    /// Tells whoever receives that there is one more socket.
    fn wake_receiver(&self) {
        self.added.fetch_add(1, Ordering::Relaxed); // the receiver's lock orders it
        let receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
        receiver.into_iter().for_each(Waker::wake);
    }

    /// Closes a further socket.
    pub(crate) fn remove(&self, id: SocketId) {
        let mut further = self.further.write().unwrap_or_else(PoisonError::into_inner);
        let closed = further.remove(&id);
        self.count.store(further.len(), Ordering::Relaxed);
        drop(further);
        drop(closed); // unlocked: closing is a system call
    }

    /// How many further sockets were ever added, for [`Sockets::await_more`].
    pub(crate) fn added(&self) -> usize {
        self.added.load(Ordering::Relaxed)
    }

    /// Notes who receives; at once wakes whoever looked at the sockets when there had been `seen`, if there are new ones.
    pub(crate) fn await_more(&self, cx: &Context<'_>, seen: usize) {
        let mut receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *receiver {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *receiver = Some(cx.waker().clone()),
        }
        drop(receiver);
        if self.added() != seen {
            cx.waker().wake_by_ref();
        }
    }
}
