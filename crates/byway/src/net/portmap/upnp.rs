//! UPnP requests under way: one at a time for each gateway, so that a removal never overtakes the mapping.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    task::Poll,
};

use byway_proto::nat::portmap::{Gateway, UpnpAnswer, UpnpRequest};

use crate::net::{BoxFuture, Upnp};

/// Requests to one gateway that may wait; the machine asks for one thing a port at a time, and for a removal after it.
const MAX_WAITING: usize = 16;

/// The requests of all gateways.
pub(super) struct UpnpRequests {
    upnp: Option<Arc<dyn Upnp>>,
    gateways: BTreeMap<Gateway, Line>,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<UpnpRequest>,
    running: Option<BoxFuture<'static, UpnpAnswer>>,
}

impl UpnpRequests {
    pub(super) fn new(upnp: Option<Arc<dyn Upnp>>) -> Self {
        UpnpRequests { upnp, gateways: BTreeMap::new() }
    }

    /// Begins a request, or lets it wait for those before it; a network without UPnP answers nothing.
    pub(super) fn push(&mut self, gateway: Gateway, request: UpnpRequest) {
        if self.upnp.is_none() && request != UpnpRequest::Find {
            return;
        }
        let line = self.gateways.entry(gateway).or_default();
        if line.waiting.len() < MAX_WAITING {
            line.waiting.push_back(request);
        }
    }

    /// Waits for the next answer.
    pub(super) async fn next(&mut self) -> (Gateway, UpnpAnswer) {
        std::future::poll_fn(|cx| {
            for (gateway, line) in &mut self.gateways {
                if line.running.is_none()
                    && let Some(request) = line.waiting.pop_front()
                {
                    line.running = Some(match &self.upnp {
                        Some(upnp) => Arc::clone(upnp).request(*gateway, request),
                        None => Box::pin(std::future::ready(UpnpAnswer::NotFound("no UPnP here".into()))),
                    });
                }
                if let Some(running) = &mut line.running
                    && let Poll::Ready(answer) = running.as_mut().poll(cx)
                {
                    let gateway = *gateway;
                    line.running = None;
                    if line.waiting.is_empty() {
                        self.gateways.remove(&gateway);
                    }
                    return Poll::Ready((gateway, answer));
                }
            }
            Poll::Pending
        })
        .await
    }
}
