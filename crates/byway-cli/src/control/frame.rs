//! Raw bytes over a control socket: what `pipe` sends once its stream is open.
//!
//! A frame is a kind byte, a length (four bytes, big endian) and that many bytes. The end of the bytes is a frame of its
//! own, so that the other direction can go on, and a broken stream is told from one that ended.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The most bytes in a frame: what one read of a pipe or a stream gives.
const MAX_FRAME: usize = 64 << 10;

const DATA: u8 = 0;
const END: u8 = 1;
const BROKEN: u8 = 2;

/// How a direction of a pipe ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// All bytes were sent.
    Whole,
    /// The stream broke, and why.
    Broken(String),
}

/// Sends all that `from` gives, and how it ended. An error is the control socket's.
pub(crate) async fn send_all(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<Ending> {
    let mut buffer = vec![0; MAX_FRAME];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) => {
                write(&mut to, END, &[]).await?;
                return Ok(Ending::Whole);
            }
            Ok(read) => write(&mut to, DATA, &buffer[..read]).await?,
            Err(error) => {
                let why = error.to_string();
                send_broken(&mut to, &why).await?;
                return Ok(Ending::Broken(why));
            }
        }
    }
}

/// Says why no more bytes come; after the end of one direction, why the other one is not whole.
pub(crate) async fn send_broken(mut to: impl AsyncWrite + Unpin, why: &str) -> io::Result<()> {
    write(&mut to, BROKEN, why.as_bytes().get(..MAX_FRAME).unwrap_or(why.as_bytes())).await
}

/// Writes to `to` what [`send_all`] sent at the other side, and closes it at the end; what `to` refuses is an error. Gives
/// `from` back.
pub(crate) async fn recv_all<R: AsyncRead + Unpin>(
    mut from: R,
    mut to: impl AsyncWrite + Unpin,
) -> Result<(Ending, R), Stuck> {
    let mut buffer = vec![0; MAX_FRAME];
    loop {
        let (kind, length) = read_header(&mut from).await.map_err(Stuck::Socket)?;
        let Some(bytes) = buffer.get_mut(..length) else {
            return Err(Stuck::Socket(io::Error::new(io::ErrorKind::InvalidData, "a frame is too long")));
        };
        from.read_exact(bytes).await.map_err(Stuck::Socket)?;
        match kind {
            DATA => {
                to.write_all(bytes).await.map_err(Stuck::Output)?;
                to.flush().await.map_err(Stuck::Output)?;
            }
            END => {
                to.shutdown().await.map_err(Stuck::Output)?;
                return Ok((Ending::Whole, from));
            }
            _ => return Ok((Ending::Broken(String::from_utf8_lossy(bytes).into_owned()), from)),
        }
    }
}

/// Why [`recv_all`] could not go on.
#[derive(Debug)]
pub(crate) enum Stuck {
    /// The control socket broke.
    Socket(io::Error),
    /// What the bytes were for did not take them.
    Output(io::Error),
}

async fn read_header(from: &mut (impl AsyncRead + Unpin)) -> io::Result<(u8, usize)> {
    let kind = from.read_u8().await?;
    let length = from.read_u32().await?;
    Ok((kind, usize::try_from(length).unwrap_or(usize::MAX)))
}

async fn write(to: &mut (impl AsyncWrite + Unpin), kind: u8, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?.to_be_bytes();
    to.write_all(&[kind, length[0], length[1], length[2], length[3]]).await?;
    to.write_all(bytes).await?;
    to.flush().await
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use tokio::io::ReadBuf;

    use super::*;

    #[tokio::test]
    async fn bytes_and_their_end_arrive_and_the_socket_stays_open() {
        let bytes: Vec<u8> = (0..300_000_u32).map(|number| number as u8).collect();
        let (mut near, mut far) = tokio::io::duplex(1_000);
        let mut received = Vec::new();
        let (sent, ending) = tokio::join!(send_all(&bytes[..], &mut near), recv_all(&mut far, &mut received));
        assert_eq!(sent.unwrap(), Ending::Whole);
        assert_eq!(ending.unwrap().0, Ending::Whole);
        assert!(received == bytes);
        near.write_u8(9).await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), 9);
    }

    /// Gives one byte, then fails.
    struct Failing(bool);

    impl AsyncRead for Failing {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if std::mem::replace(&mut self.0, true) {
                return Poll::Ready(Err(io::Error::other("the peer is gone")));
            }
            buf.put_slice(b"x");
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_broken_stream_is_told_from_one_that_ended() {
        let (near, far) = tokio::io::duplex(1_000);
        let mut received = Vec::new();
        let (sent, ending) = tokio::join!(send_all(Failing(false), near), recv_all(far, &mut received));
        assert_eq!(sent.unwrap(), Ending::Broken("the peer is gone".into()));
        assert_eq!(ending.unwrap().0, Ending::Broken("the peer is gone".into()));
        assert_eq!(received, b"x");
    }

    #[tokio::test]
    async fn a_frame_too_long_and_a_cut_socket_are_errors() {
        let long = [0, 0xff, 0xff, 0xff, 0xff];
        assert!(matches!(recv_all(&long[..], Vec::new()).await, Err(Stuck::Socket(_))));
        let cut = [0, 0, 0, 0, 9, 1];
        assert!(matches!(recv_all(&cut[..], Vec::new()).await, Err(Stuck::Socket(_))));
    }
}
