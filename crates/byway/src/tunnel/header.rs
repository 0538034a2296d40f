//! What stands before a session's bytes: two bytes of length, big endian, then a protobuf message, once each way.

use std::io;

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest header in bytes: a name, a secret and a sentence take a third of it.
const MAX_HEADER: usize = 1_024;

/// The longest text in an answer, in characters.
const MAX_DETAIL: usize = 200;

/// What the dialling side wants.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Open {
    #[prost(string, tag = "1")]
    pub(super) service: String,
    #[prost(bytes = "vec", optional, tag = "2")]
    secret: Option<Vec<u8>>,
    /// Only whether it may: no session follows.
    #[prost(bool, tag = "3")]
    pub(super) only_ask: bool,
}

/// What the listening side says to it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Answer {
    #[prost(uint32, tag = "1")]
    pub(super) code: u32,
    #[prost(string, tag = "2")]
    detail: String,
}

/// The meaning of an answer's code; what a newer version adds is a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    Accepted,
    NoSuchService,
    NotGranted,
    Busy,
    Unavailable,
}

impl Open {
    pub(super) fn new(service: &str, secret: Option<[u8; 16]>, only_ask: bool) -> Self {
        Open { service: service.to_owned(), secret: secret.map(Vec::from), only_ask }
    }

    /// The secret, if it has a secret's length.
    pub(super) fn brought(&self) -> Option<[u8; 16]> {
        self.secret.as_deref()?.try_into().ok()
    }
}

impl Answer {
    pub(super) fn new(code: Code, detail: &str) -> Self {
        let code = match code {
            Code::Accepted => 1,
            Code::NoSuchService => 2,
            Code::NotGranted => 3,
            Code::Busy => 4,
            Code::Unavailable => 5,
        };
        Answer { code, detail: detail.chars().take(MAX_DETAIL).collect() }
    }

    pub(super) fn code(&self) -> Option<Code> {
        match self.code {
            1 => Some(Code::Accepted),
            2 => Some(Code::NoSuchService),
            3 => Some(Code::NotGranted),
            4 => Some(Code::Busy),
            5 => Some(Code::Unavailable),
            _ => None,
        }
    }

    /// What the peer adds, with nothing in it that could command a terminal.
    pub(super) fn detail(&self) -> String {
        self.detail.chars().filter(|found| !found.is_control()).take(MAX_DETAIL).collect()
    }
}

/// Sends a header.
pub(super) async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &impl Message) -> io::Result<()> {
    let body = message.encode_to_vec();
    let length = u16::try_from(body.len()).ok().filter(|length| usize::from(*length) <= MAX_HEADER);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the header is too long"))?;
    let mut bytes = Vec::with_capacity(2 + body.len());
    bytes.extend(length.to_be_bytes());
    bytes.extend(body);
    stream.write_all(&bytes).await
}

/// Receives a header, and not a byte of what follows it.
pub(super) async fn read<M: Message + Default>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<M> {
    let length = usize::from(stream.read_u16().await?);
    if length > MAX_HEADER {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a header of {length} bytes")));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    M::decode(&body[..]).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn headers_have_the_documented_bytes() {
        let mut bytes = Vec::new();
        write(&mut bytes, &Open::new("web", Some([0xab; 16]), false)).await.unwrap();
        let golden = [&[0, 23, 0x0a, 3][..], b"web", &[0x12, 16], &[0xab; 16]].concat();
        assert_eq!(bytes, golden);
        bytes.clear();
        write(&mut bytes, &Answer::new(Code::NotGranted, "no")).await.unwrap();
        assert_eq!(bytes, [0, 6, 0x08, 3, 0x12, 2, b'n', b'o']);
    }

    #[tokio::test]
    async fn what_follows_a_header_is_left_alone() {
        let mut bytes = Vec::new();
        write(&mut bytes, &Open::new("web", None, true)).await.unwrap();
        bytes.extend(b"GET /");
        let mut from = &bytes[..];
        let open: Open = read(&mut from).await.unwrap();
        assert_eq!((open.service.as_str(), open.brought(), open.only_ask), ("web", None, true));
        assert_eq!(from, b"GET /");
    }

    #[tokio::test]
    async fn long_cut_and_senseless_headers_are_errors() {
        let kind = |bytes: &'static [u8]| async move { read::<Open>(&mut &bytes[..]).await.unwrap_err().kind() };
        assert_eq!(kind(&[0xff, 0xff]).await, io::ErrorKind::InvalidData);
        assert_eq!(kind(&[0, 3, 0x0a]).await, io::ErrorKind::UnexpectedEof);
        assert_eq!(kind(&[0, 2, 0xff, 0xff]).await, io::ErrorKind::InvalidData);
        assert_eq!(kind(&[]).await, io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_secret_of_another_length_is_none() {
        let open = Open { secret: Some(vec![1; 15]), ..Open::new("web", None, false) };
        assert_eq!(open.brought(), None);
    }

    #[test]
    fn a_detail_cannot_command_the_terminal() {
        assert_eq!(Answer::new(Code::Busy, "a\u{1b}]0;b").detail(), "a]0;b");
        assert_eq!(Answer::new(Code::Busy, &"ü".repeat(5_000)).detail().chars().count(), MAX_DETAIL);
    }
}
