//! `byway reach`: a local port that leads to a peer's service.

use super::Shell;
use crate::{args::ReachArgs, control::Request, failure::Failure};

/// Keeps the port open until it is stopped.
pub(super) async fn run(mut shell: Shell, args: ReachArgs) -> Result<(), Failure> {
    let to = args.to.parse().map_err(Failure::usage)?;
    let session = shell.open("reach", &args.servers).await?;
    shell.follow(session, &Request::Reach { to, listen: args.listen }).await.map(drop)
}
