//! As much of HTTP/1.1 (RFC 9112) as a WebSocket needs: one request with its answer, for the upgrade (RFC 6455 §4) and for
//! a tunnel through a proxy (RFC 9110 §9.3.6).

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Where a relay takes WebSockets.
pub(crate) const PATH: &str = "/byway/1";

/// The longest head in bytes: proxies and browsers add their own lines to ours, some of them long ones.
const MAX_HEAD: usize = 8 << 10;

/// What is hashed behind a client's key (RFC 6455 §1.3).
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Why the other side does not speak as expected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it does not speak HTTP")]
    NotHttp,
    #[error("its HTTP head is longer than {MAX_HEAD} bytes")]
    TooLong,
    #[error("it answered \"{0}\" instead of opening a WebSocket; check that a relay listens there")]
    NoWebSocket(String),
    #[error("somebody asked for something else than a WebSocket at {PATH}")]
    NotAsked,
    #[error("the proxy wants a user name and a password that it accepts (407); write them into its address")]
    ProxyLogin,
    #[error("the proxy refused to lead there (\"{0}\"); ask who runs it to allow this host and port")]
    ProxyRefused(String),
}

/// Asks for a WebSocket as a client with a fresh 16-byte `key`; returns what was read past the answer.
pub(crate) async fn upgrade<S>(stream: &mut S, host: &str, key: [u8; 16]) -> Result<Vec<u8>, HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let key = base64(&key);
    let request = format!(
        "GET {PATH} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let (head, rest) = read_head(stream).await?;
    let is_accepted = head.field("sec-websocket-accept") == Some(&*accept_key(&key));
    if head.status() == Some(101) && is_accepted { Ok(rest) } else { Err(HttpError::NoWebSocket(head.reason())) }
}

/// Grants a client its WebSocket, or answers why not and fails; returns what was read past the request.
pub(crate) async fn accept<S>(stream: &mut S) -> Result<Vec<u8>, HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (head, rest) = read_head(stream).await?;
    let key = head.field("sec-websocket-key").filter(|_| head.asks_for_websocket());
    let words: Vec<&str> = head.first.split(' ').collect();
    let answer = match (&*words, key) {
        (["GET", PATH, "HTTP/1.1"], Some(key)) => format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            accept_key(key)
        ),
        ([_, PATH, _], _) => refusal("426 Upgrade Required", "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"),
        _ => refusal("404 Not Found", ""),
    };
    stream.write_all(answer.as_bytes()).await?;
    stream.flush().await?;
    if answer.starts_with("HTTP/1.1 101 ") {
        return Ok(rest);
    }
    stream.shutdown().await?;
    Err(HttpError::NotAsked)
}

/// Has a proxy lead this connection on to `target`, a host and a port; `login` is `user:password`.
pub(crate) async fn tunnel<S>(stream: &mut S, target: &str, login: Option<&str>) -> Result<(), HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let login = login.map(|login| format!("Proxy-Authorization: Basic {}\r\n", base64(login.as_bytes())));
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{}\r\n", login.unwrap_or_default());
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let (head, rest) = read_head(stream).await?;
    match head.status() {
        // Behind the tunnel TLS waits for us to begin.
        Some(200..=299) if rest.is_empty() => Ok(()),
        Some(407) => Err(HttpError::ProxyLogin),
        Some(300..) => Err(HttpError::ProxyRefused(head.reason())),
        _ => Err(HttpError::NotHttp),
    }
}

/// The first line of a message and its fields.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    first: String,
    /// The names in lower case.
    fields: Vec<(String, String)>,
}

impl Head {
    fn parse(head: &[u8]) -> Result<Head, HttpError> {
        let head = str::from_utf8(head).map_err(|_| HttpError::NotHttp)?;
        let mut lines = head.split("\r\n");
        let first = lines.next().filter(|first| first.contains("HTTP/1.")).ok_or(HttpError::NotHttp)?;
        let fields = lines.filter(|line| !line.is_empty()).map(|line| {
            let (name, value) = line.split_once(':').ok_or(HttpError::NotHttp)?;
            Ok((name.to_ascii_lowercase(), value.trim().to_owned()))
        });
        Ok(Head { first: first.to_owned(), fields: fields.collect::<Result<_, HttpError>>()? })
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Whether a list such as `Connection` names `token`.
    fn lists(&self, name: &str, token: &str) -> bool {
        self.field(name).is_some_and(|list| list.split(',').any(|item| item.trim().eq_ignore_ascii_case(token)))
    }

    fn asks_for_websocket(&self) -> bool {
        let is_known = self.field("sec-websocket-version") == Some("13");
        is_known && self.lists("connection", "upgrade") && self.lists("upgrade", "websocket")
    }

    fn status(&self) -> Option<u16> {
        let status = self.first.strip_prefix("HTTP/1.")?.split(' ').nth(1)?;
        status.parse().ok().filter(|status| (100..=999).contains(status))
    }

    /// The status line without the version, short enough for an error.
    fn reason(&self) -> String {
        let reason = self.first.split_once(' ').map_or(&*self.first, |(_, reason)| reason);
        reason.chars().filter(|c| !c.is_control()).take(80).collect()
    }
}

/// Reads up to the empty line; also returns what came with it.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Result<(Head, Vec<u8>), HttpError> {
    const END: &[u8] = b"\r\n\r\n";
    let mut bytes = Vec::with_capacity(1 << 10);
    loop {
        let seen = bytes.len();
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let from = seen.saturating_sub(END.len() - 1);
        if let Some(at) = bytes[from..].windows(END.len()).position(|window| window == END) {
            let rest = bytes.split_off(from + at + END.len());
            return Ok((Head::parse(&bytes)?, rest));
        }
        if bytes.len() > MAX_HEAD {
            return Err(HttpError::TooLong);
        }
    }
}

fn refusal(status: &str, fields: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{fields}Content-Length: 0\r\nConnection: close\r\n\r\n")
}

/// What a server answers to a client's key, to show that it speaks WebSocket (RFC 6455 §4.2.2).
fn accept_key(key: &str) -> String {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(ACCEPT_GUID);
    base64(hash.finish().as_ref())
}

/// Base64 with padding (RFC 4648 §4).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, at| bits << 8 | u32::from(chunk.get(at).copied().unwrap_or(0)));
        for at in 0..4 {
            let index = (bits >> (18 - 6 * at)) as usize & 63;
            text.push(if at <= chunk.len() { char::from(ALPHABET[index]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    async fn answer(request: &str) -> (String, bool) {
        let (mut client, mut server) = duplex(1 << 16);
        client.write_all(request.as_bytes()).await.unwrap();
        let accepted = accept(&mut server).await.is_ok();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        (answer, accepted)
    }

    #[test]
    fn base64_and_accept_keys_are_those_of_the_rfcs() {
        let encoded = ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|text| base64(text.as_bytes()));
        assert_eq!(encoded, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"]);
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[tokio::test]
    async fn both_sides_agree_on_a_websocket_and_lose_no_byte_that_follows() {
        let (mut client, mut server) = duplex(1 << 16);
        let granting = async {
            let rest = accept(&mut server).await.unwrap();
            server.write_all(b"more").await.unwrap();
            rest
        };
        let (asked, granted) = tokio::join!(upgrade(&mut client, "relay.example", [7; 16]), granting);
        assert_eq!(granted, b"");
        let mut rest = asked.unwrap();
        while rest.len() < 4 {
            client.read_buf(&mut rest).await.unwrap();
        }
        assert_eq!(rest, b"more");
    }

    #[tokio::test]
    async fn an_answer_to_another_key_opens_no_websocket_and_bytes_ahead_of_tls_no_tunnel() {
        let ask = async |answer: String| {
            let (mut client, mut server) = duplex(1 << 16);
            server.write_all(answer.as_bytes()).await.unwrap();
            (upgrade(&mut client, "relay.example", [7; 16]).await, server)
        };
        let switching = |key: &str| {
            let accept = accept_key(key);
            format!("HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {accept}\r\n\r\n")
        };
        assert!(ask(switching(&base64(&[7; 16]))).await.0.is_ok());
        assert!(matches!(ask(switching("another")).await.0, Err(HttpError::NoWebSocket(_))));
        let (mut client, mut proxy) = duplex(1 << 16);
        proxy.write_all(b"HTTP/1.1 200 OK\r\n\r\nmore").await.unwrap();
        assert!(matches!(tunnel(&mut client, "relay.example:443", None).await, Err(HttpError::NotHttp)));
    }

    #[tokio::test]
    async fn whoever_asks_for_something_else_is_told_so_shortly() {
        let (answer_404, accepted) = answer("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer_404.starts_with("HTTP/1.1 404 Not Found\r\n") && !accepted);
        let (answer_426, accepted) = answer(&format!("GET {PATH} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert!(answer_426.starts_with("HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\n") && !accepted);
        assert!(answer_404.len() < 128 && answer_426.len() < 160);
    }

    #[tokio::test]
    async fn a_request_that_lacks_anything_that_a_websockets_has_is_told_so() {
        let whole = format!(
            "GET {PATH} HTTP/1.1\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAA\r\n\r\n"
        );
        assert!(answer(&whole).await.1);
        for (part, instead) in [
            ("GET", "POST"),
            ("HTTP/1.1", "HTTP/1.0"),
            ("keep-alive, Upgrade", "keep-alive"),
            ("websocket", "h2c"),
            ("Version: 13", "Version: 8"),
            ("Key", "Lock"),
        ] {
            let (said, accepted) = answer(&whole.replace(part, instead)).await;
            assert!(said.starts_with("HTTP/1.1 426 ") && !accepted, "{instead}: {said}");
        }
    }

    #[tokio::test]
    async fn what_a_proxy_says_is_quoted_in_short_and_without_control_characters() {
        let (mut client, mut proxy) = duplex(1 << 16);
        let said = format!("HTTP/1.1 403 \u{1b}[31m{}\r\n\r\n", "x".repeat(1_000));
        proxy.write_all(said.as_bytes()).await.unwrap();
        let why = tunnel(&mut client, "relay.example:443", None).await.unwrap_err().to_string();
        assert!(why.contains("\"403 [31mx") && why.len() < 200, "{why}");
    }

    #[tokio::test]
    async fn a_head_without_end_and_garbage_are_refused() {
        let (mut client, mut server) = duplex(1 << 16);
        client.write_all(&[b'a'; 2 * MAX_HEAD]).await.unwrap();
        assert!(matches!(accept(&mut server).await, Err(HttpError::TooLong)));
        for garbage in ["\r\n\r\n", "\u{16}\u{3}\u{1}\r\n\r\n", "GET /byway/1 HTTP/1.1\r\nno field\r\n\r\n"] {
            assert_eq!(answer(garbage).await, (String::new(), false), "{garbage:?}");
        }
    }

    #[tokio::test]
    async fn a_proxy_is_asked_with_its_login_and_its_refusals_say_what_to_do() {
        let ask = async |status: &str| {
            let (mut client, mut proxy) = duplex(1 << 16);
            proxy.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).await.unwrap();
            let asked = tunnel(&mut client, "relay.example:443", Some("user:pass")).await;
            drop(client);
            let mut request = String::new();
            proxy.read_to_string(&mut request).await.unwrap();
            (request, asked)
        };
        let (request, asked) = ask("200 Connection established").await;
        asked.unwrap();
        let expected = "CONNECT relay.example:443 HTTP/1.1\r\nHost: relay.example:443\r\n\
                        Proxy-Authorization: Basic dXNlcjpwYXNz\r\n\r\n";
        assert_eq!(request, expected);
        assert!(matches!(ask("407 Proxy Authentication Required").await.1, Err(HttpError::ProxyLogin)));
        let refused = ask("403 Forbidden").await.1.unwrap_err();
        assert_eq!(refused.to_string().matches("403 Forbidden").count(), 1);
    }
}
