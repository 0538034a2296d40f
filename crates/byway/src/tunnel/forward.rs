//! Copying between a session and a TCP connection.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::RESET_BEHIND;
use crate::{net::TcpStream, stream::Stream};

/// The buffer of a direction that carries little: most sessions do, and there may be a thousand.
const SMALL_BUFFER: usize = 8 << 10;

/// The buffer of a direction once a read has filled the small one: fewer, larger writes.
const LARGE_BUFFER: usize = 128 << 10;

/// What crossed a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Forwarded {
    /// Bytes from the TCP connection to the peer.
    pub sent: u64,
    /// Bytes from the peer to the TCP connection.
    pub received: u64,
    /// Whether both directions came to their end; otherwise both sides were reset.
    pub whole: bool,
}

pub(super) async fn forward(stream: Stream, tcp: Box<dyn TcpStream>) -> Forwarded {
    let (mut from_peer, mut to_peer) = stream.into_split();
    let (mut from_tcp, mut to_tcp) = tokio::io::split(tcp);
    let (mut sent, mut received) = (0, 0);
    // The first error cancels the other direction: what TCP would deliver after a reset is nothing either.
    let both = tokio::try_join!(
        copy(&mut from_tcp, &mut to_peer, &mut sent),
        copy(&mut from_peer, &mut to_tcp, &mut received)
    );
    if let Err(error) = &both {
        tracing::debug!(%error, "session broken");
        to_peer.reset(RESET_BEHIND);
        from_peer.stop(RESET_BEHIND);
        from_tcp.unsplit(to_tcp).reset();
    }
    Forwarded { sent, received, whole: both.is_ok() }
}

/// Copies to the end of `from`, then ends `to`.
async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    copied: &mut u64,
) -> io::Result<()> {
    let mut buffer = vec![0; SMALL_BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
        *copied += read as u64;
        if read == buffer.len() && read < LARGE_BUFFER {
            buffer = vec![0; LARGE_BUFFER];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_copy_ends_what_it_wrote_to_and_counts() {
        let bytes: Vec<u8> = (0..600_000_u32).map(|number| number as u8).collect();
        let (mut near, mut far) = tokio::io::duplex(5_000);
        let (mut copied, mut arrived, mut from) = (0, Vec::new(), &bytes[..]);
        let (result, read) = tokio::join!(copy(&mut from, &mut near, &mut copied), far.read_to_end(&mut arrived));
        result.unwrap();
        read.unwrap();
        assert!(arrived == bytes);
        assert_eq!(copied, 600_000);
    }
}
