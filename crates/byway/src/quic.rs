//! QUIC: quinn, unchanged, over our mux.

pub(crate) mod congestion;
pub(crate) mod endpoint;
pub(crate) mod runtime;
pub(crate) mod tls;
