//! `byway id`: who this node is.

use std::time::Duration;

use byway::Identity;
use tokio::time;

use super::Shell;
use crate::{control::Event, failure::Failure, session};

/// How long the process that holds the lock may take to write a first key.
const KEY_ATTEMPTS: u32 = 40;
const KEY_RETRY: Duration = Duration::from_millis(50);

/// Prints the id. A first key is made under the lock, so that two processes cannot make two.
pub(super) async fn run(shell: &Shell) -> Result<(), Failure> {
    let dir = session::data_dir(&shell.global)?;
    let path = dir.key_file();
    for _ in 0..KEY_ATTEMPTS {
        let lock = if path.exists() { None } else { dir.try_lock()? };
        if path.exists() || lock.is_some() {
            break;
        }
        time::sleep(KEY_RETRY).await;
    }
    let identity = Identity::load_or_create(&path).map_err(Failure::here)?;
    shell.output.event(&Event::Id { id: identity.id().to_string() });
    Ok(())
}
