//! QUIC's tasks, timers and clock: the node's own.

use std::{future::Future, io, pin::Pin, sync::Arc, time::Instant};

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime};

use crate::tasks::Tasks;

/// Runs QUIC's drivers among the node's tasks, on the runtime's clock, which a simulation may have paused.
#[derive(Debug)]
pub(crate) struct NodeRuntime(pub(crate) Tasks);

impl Runtime for NodeRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(tokio::time::sleep_until(at.into()))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn_driver(future);
    }

    fn wrap_udp_socket(&self, _: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "the node's sockets are opened by its network"))
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}
