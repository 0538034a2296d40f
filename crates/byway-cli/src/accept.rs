//! Taking connections from a listener that outlives the moments in which the system gives none.

use std::{io, time::Duration};

use tokio::time;

/// How long to wait where the system gives no connection: it is out of file descriptors, most likely.
const PAUSE: Duration = Duration::from_millis(100);

/// Waits for the next connection, for which `accept` asks the listener; the log calls it `what`. It may be cancelled
/// where `accept` may.
pub(crate) async fn next<T, F>(what: &'static str, mut accept: impl FnMut() -> F) -> T
where
    F: Future<Output = io::Result<T>>,
{
    loop {
        match accept().await {
            Ok(connection) => return connection,
            Err(error) => {
                tracing::warn!(%error, "cannot take a {what}");
                time::sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_listener_to_which_the_system_gives_nothing_for_a_while_is_asked_again_without_haste() {
        let (start, mut asked) = (Instant::now(), 0_u32);
        let taken = next("connection", || {
            asked += 1;
            std::future::ready(if asked > 50 { Ok(asked) } else { Err(io::Error::other("too many open files")) })
        });
        assert_eq!(taken.await, 51);
        assert!((50 * PAUSE..51 * PAUSE).contains(&start.elapsed()), "{:?}", start.elapsed());
    }
}
