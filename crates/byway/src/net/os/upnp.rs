//! UPnP-IGD, versions 1 and 2, with `igd-next`.
//!
//! Any host on the link can answer a search. Only the default gateway itself is believed: its description and its control
//! URL must be on its own address.

use std::{
    collections::BTreeMap,
    future::Future,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use byway_proto::nat::portmap::{Gateway, MAX_GATEWAYS, Port, Transport, UpnpAnswer, UpnpRefusal, UpnpRequest};
use igd_next::{
    AddPortError, PortMappingProtocol, SearchOptions,
    aio::{
        Gateway as Igd,
        tokio::{Tokio, search_gateway},
    },
};
use tokio::time;

use crate::net::{BoxFuture, Upnp};

/// Where routers listen for searches (UPnP Device Architecture 1.1 §1.3.2).
const SSDP: (Ipv4Addr, u16) = (Ipv4Addr::new(239, 255, 255, 250), 1_900);

/// How long a search may take, with reading the descriptions: routers wait up to the second or two that the search allows them.
const SEARCH: Duration = Duration::from_secs(4);

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(2);

/// What the router's list of mappings shows.
const DESCRIPTION: &str = "byway";

/// The gateways found so far.
#[derive(Debug, Default)]
pub(super) struct OsUpnp {
    found: Mutex<BTreeMap<Gateway, Arc<Igd<Tokio>>>>,
}

impl Upnp for OsUpnp {
    fn request(self: Arc<Self>, gateway: Gateway, request: UpnpRequest) -> BoxFuture<'static, UpnpAnswer> {
        Box::pin(async move {
            match request {
                UpnpRequest::Find => match find(gateway).await {
                    Ok(igd) => {
                        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
                        if found.len() >= MAX_GATEWAYS {
                            found.retain(|known, _| known.local == gateway.local); // those of other networks
                        }
                        found.insert(gateway, Arc::new(igd));
                        UpnpAnswer::Found
                    }
                    Err(why) => UpnpAnswer::NotFound(why),
                },
                UpnpRequest::Add { port, external, lifetime } => {
                    let Some(igd) = self.known(gateway) else { return unknown(port) };
                    match add(&igd, gateway, port, external, lifetime).await {
                        Ok(external) => UpnpAnswer::Added { port, external },
                        Err(refusal) => UpnpAnswer::Refused { port, refusal },
                    }
                }
                UpnpRequest::Remove { port, external } => {
                    if let Some(igd) = self.known(gateway) {
                        // It ends with its lifetime at the latest, or it is gone already.
                        let _ = within(igd.remove_port(protocol(port), external)).await;
                    }
                    UpnpAnswer::Removed { port }
                }
            }
        })
    }
}

impl OsUpnp {
    fn known(&self, gateway: Gateway) -> Option<Arc<Igd<Tokio>>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).get(&gateway).cloned()
    }
}

fn unknown(port: Port) -> UpnpAnswer {
    UpnpAnswer::Refused { port, refusal: UpnpRefusal::Other("its control URL is not known".into()) }
}

/// Searches the link and asks the gateway itself, both at once: some routers answer only the one, and another host's faster answer
/// to the one does not hide the gateway's to the other.
async fn find(gateway: Gateway) -> Result<Igd<Tokio>, String> {
    let ask = |to: SocketAddr| async move {
        let mut options = SearchOptions::default();
        // From the interface's own address: a multicast leaves by the interface that has it.
        options.bind_addr = SocketAddr::new(gateway.local, 0);
        options.broadcast_address = to;
        (options.timeout, options.single_search_timeout) = (Some(SEARCH), Some(SEARCH));
        let igd = search_gateway(options).await.map_err(|error| error.to_string())?;
        if igd.addr.ip() == gateway.addr {
            Ok(igd)
        } else {
            Err("another host than the gateway answered the search".to_owned())
        }
    };
    let (link, itself) = (ask(SSDP.into()), ask(SocketAddr::new(gateway.addr, SSDP.1)));
    tokio::pin!(link, itself);
    let found = async {
        tokio::select! {
            biased;
            result = &mut itself => match result { Ok(igd) => Ok(igd), Err(_) => link.await },
            result = &mut link => match result { Ok(igd) => Ok(igd), Err(_) => itself.await },
        }
    };
    time::timeout(SEARCH, found).await.unwrap_or_else(|_| Err("no answer to the search".to_owned()))
}

async fn add(
    igd: &Igd<Tokio>,
    gateway: Gateway,
    port: Port,
    external: u16,
    lifetime: Option<Duration>,
) -> Result<SocketAddr, UpnpRefusal> {
    let lease = lifetime.map_or(0, |lifetime| u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX)); // 0: for ever
    let local = SocketAddr::new(gateway.local, port.number);
    let added = within(igd.add_port(protocol(port), external, local, lease, DESCRIPTION)).await?;
    added.map_err(|error| match error {
        AddPortError::PortInUse => UpnpRefusal::Taken,
        AddPortError::OnlyPermanentLeasesSupported => UpnpRefusal::PermanentOnly,
        other => UpnpRefusal::Other(words(&other)),
    })?;
    let ip: Result<IpAddr, _> =
        within(igd.get_external_ip()).await.and_then(|ip| ip.map_err(|error| UpnpRefusal::Other(words(&error))));
    if ip.is_err() {
        let _ = within(igd.remove_port(protocol(port), external)).await; // of no use, and nobody would remove it later
    }
    Ok(SocketAddr::new(ip?, external))
}

async fn within<T>(request: impl Future<Output = T>) -> Result<T, UpnpRefusal> {
    time::timeout(REQUEST, request).await.map_err(|_| UpnpRefusal::Other(format!("no answer within {REQUEST:?}")))
}

/// A router's words, cut to a length that a status line bears.
fn words(error: &impl ToString) -> String {
    error.to_string().chars().filter(|char| !char.is_control()).take(200).collect()
}

fn protocol(port: Port) -> PortMappingProtocol {
    match port.transport {
        Transport::Udp => PortMappingProtocol::UDP,
        Transport::Tcp => PortMappingProtocol::TCP,
    }
}
