//! `byway demo-http`: the web server of the demo.

use std::net::Ipv4Addr;

use tokio::net::TcpListener;

use super::Shell;
use crate::{control::Event, failure::Failure, http};

/// Serves a page and a file until it is stopped.
pub(super) async fn run(mut shell: Shell, seed: u64) -> Result<(), Failure> {
    let failed = |error| Failure::here(format!("the demo's web server: {error}"));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
    shell.output.event(&Event::Http { address: listener.local_addr().map_err(failed)? });
    tokio::select! {
        biased;
        () = shell.stop.requested() => {}
        () = http::serve(listener, seed) => {}
    }
    Ok(())
}
