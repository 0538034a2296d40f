//! Which port of a host belongs to which socket.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

/// First of the ports that are chosen for who asks for port 0 (RFC 6335 §6).
const FIRST_DYNAMIC: u16 = 49_152;

/// The bound ports of one transport of one host.
#[derive(Debug)]
pub(crate) struct PortTable {
    bound: BTreeMap<u16, Vec<(IpAddr, u64)>>,
    next: u16,
}

impl PortTable {
    /// A table without bound ports, whose first dynamic port depends on `luck`.
    pub(crate) fn new(luck: u64) -> Self {
        let span = u64::from(u16::MAX - FIRST_DYNAMIC) + 1;
        PortTable { bound: BTreeMap::new(), next: FIRST_DYNAMIC + (luck % span) as u16 }
    }

    /// Binds `key` to `addr`, to a dynamic port if its port is 0; the port, or `None` if it is taken.
    pub(crate) fn bind(&mut self, addr: SocketAddr, key: u64) -> Option<u16> {
        let port = match addr.port() {
            0 => self.dynamic(|table, port| table.is_free(addr.ip(), port))?,
            port if self.is_free(addr.ip(), port) => port,
            _ => return None,
        };
        self.bound.entry(port).or_default().push((addr.ip(), key));
        Some(port)
    }

    /// Frees what `key` is bound to.
    pub(crate) fn release(&mut self, port: u16, key: u64) {
        if let Some(owners) = self.bound.get_mut(&port) {
            owners.retain(|(_, owner)| *owner != key);
            if owners.is_empty() {
                self.bound.remove(&port);
            }
        }
    }

    /// How many sockets are bound.
    pub(crate) fn len(&self) -> usize {
        self.bound.values().map(Vec::len).sum()
    }

    /// Who gets what is sent to `to`: the socket bound to that address, else one bound to all.
    pub(crate) fn find(&self, to: SocketAddr) -> Option<u64> {
        let owners = self.bound.get(&to.port())?;
        let exact = owners.iter().find(|(ip, _)| *ip == to.ip());
        let any = || owners.iter().find(|(ip, _)| ip.is_unspecified() && ip.is_ipv4() == to.is_ipv4());
        exact.or_else(any).map(|(_, key)| *key)
    }

    /// The next dynamic port that `is_free` accepts.
    pub(crate) fn dynamic(&mut self, is_free: impl Fn(&Self, u16) -> bool) -> Option<u16> {
        for _ in FIRST_DYNAMIC..=u16::MAX {
            let port = self.next;
            self.next = port.checked_add(1).unwrap_or(FIRST_DYNAMIC);
            if is_free(self, port) {
                return Some(port);
            }
        }
        None
    }

    fn is_free(&self, ip: IpAddr, port: u16) -> bool {
        let clashes = |other: IpAddr| {
            other.is_ipv4() == ip.is_ipv4() && (other == ip || other.is_unspecified() || ip.is_unspecified())
        };
        !self.bound.get(&port).is_some_and(|owners| owners.iter().any(|(other, _)| clashes(*other)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn port_is_taken_once_per_address_and_family() {
        let mut ports = PortTable::new(0);
        assert_eq!(ports.bind(addr("11.0.0.1:80"), 1), Some(80));
        assert_eq!(ports.bind(addr("11.0.0.2:80"), 2), Some(80));
        assert_eq!(ports.bind(addr("11.0.0.1:80"), 3), None);
        assert_eq!(ports.bind(addr("0.0.0.0:80"), 3), None);
        assert_eq!(ports.bind(addr("[::]:80"), 4), Some(80));
        ports.release(80, 1);
        assert_eq!(ports.bind(addr("11.0.0.1:80"), 5), Some(80));
    }

    #[test]
    fn bound_address_goes_before_unspecified() {
        let mut ports = PortTable::new(0);
        ports.bind(addr("[::]:80"), 1);
        ports.bind(addr("127.0.0.1:80"), 2);
        assert_eq!(ports.find(addr("127.0.0.1:80")), Some(2));
        assert_eq!(ports.find(addr("11.0.0.1:80")), None);
        assert_eq!(ports.find(addr("[::1]:80")), Some(1));
    }

    #[test]
    fn dynamic_ports_wrap_and_run_out() {
        let mut ports = PortTable::new(u64::from(u16::MAX - FIRST_DYNAMIC));
        assert_eq!(ports.bind(addr("0.0.0.0:0"), 1), Some(u16::MAX));
        assert_eq!(ports.bind(addr("0.0.0.0:0"), 2), Some(FIRST_DYNAMIC));
        let rest = usize::from(u16::MAX - FIRST_DYNAMIC) - 1;
        assert!((0..rest).all(|_| ports.bind(addr("0.0.0.0:0"), 3).is_some()));
        assert_eq!(ports.bind(addr("0.0.0.0:0"), 4), None);
    }
}
