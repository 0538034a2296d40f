//! `byway serve`: let a peer reach a local TCP service.

use super::Shell;
use crate::{args::ServeArgs, control::Request, failure::Failure};

/// Serves until it is stopped.
pub(super) async fn run(mut shell: Shell, args: ServeArgs) -> Result<(), Failure> {
    let session = shell.open("serve", &args.servers).await?;
    let ServeArgs { name, to, open, hide_addresses, .. } = args;
    shell.follow(session, &Request::Serve { name, to, open, hide_addresses }).await.map(drop)
}
