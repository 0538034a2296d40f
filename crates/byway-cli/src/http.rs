//! As much of HTTP/1.1 (RFC 9112) as the demo needs: a server of one page and one file, and a download; and what the metrics
//! share with it, the head of a request.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time,
};

use crate::accept;

/// The size of the file: 64 MiB.
pub(crate) const FILE_LEN: u64 = 64 << 20;

/// Where the file is.
pub(crate) const FILE_PATH: &str = "/64MiB.bin";

/// Connections at once: a few browsers.
const MAX_CONNECTIONS: usize = 64;

/// The longest line and the most lines of a head: a browser sends some twenty short ones.
const MAX_LINE: u64 = 8 << 10;
const MAX_LINES: usize = 100;

/// How long a connection may be idle between two requests.
const IDLE: Duration = Duration::from_secs(60);

const CHUNK: usize = 64 << 10;

const PAGE: &str = include_str!("http/page.html");

/// What the file consists of: as good as random, and the same for the same seed.
pub(crate) struct FileBytes {
    stream: blake3::OutputReader,
    left: u64,
}

impl FileBytes {
    /// The file of this seed, from its beginning.
    pub(crate) fn new(seed: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("byway demo 1 file");
        hasher.update(&seed.to_be_bytes());
        FileBytes { stream: hasher.finalize_xof(), left: FILE_LEN }
    }

    /// Puts the next bytes into `buffer`; none at the end.
    pub(crate) fn fill<'a>(&mut self, buffer: &'a mut [u8]) -> &'a [u8] {
        let length = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= length as u64;
        self.stream.fill(&mut buffer[..length]);
        &buffer[..length]
    }
}

/// Serves the page and the file of `seed` for ever.
pub(crate) async fn serve(listener: TcpListener, seed: u64) {
    let mut connections: JoinSet<io::Result<()>> = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = connections.join_next() => {} // a broken connection is its client's affair
            (stream, _) = accept::next("connection", || listener.accept()), if connections.len() < MAX_CONNECTIONS => {
                connections.spawn(answer_all(stream, seed));
            }
        }
    }
}

/// Answers one request after the other.
async fn answer_all(stream: TcpStream, seed: u64) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    while let Some(head) = time::timeout(IDLE, read_head(&mut stream)).await?? {
        let request: Vec<&str> = head[0].split(' ').collect();
        let (status, kind, length) = match request[..] {
            ["GET" | "HEAD", "/", _] => ("200 OK", "text/html; charset=utf-8", PAGE.len() as u64),
            ["GET" | "HEAD", FILE_PATH, _] => ("200 OK", "application/octet-stream", FILE_LEN),
            ["GET" | "HEAD", ..] => ("404 Not Found", "text/plain", 0),
            _ => ("405 Method Not Allowed", "text/plain", 0),
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nCache-Control: no-store\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).await?;
        match request[..] {
            ["GET", "/", _] => stream.write_all(PAGE.as_bytes()).await?,
            ["GET", FILE_PATH, _] => send_file(&mut stream, seed).await?,
            _ => {}
        }
        stream.flush().await?;
        let last = |line: &String| line.eq_ignore_ascii_case("connection: close");
        if head.iter().any(last) || status.starts_with("405") {
            break; // a body that was not read must not be taken for a request
        }
    }
    stream.shutdown().await
}

async fn send_file(stream: &mut BufReader<TcpStream>, seed: u64) -> io::Result<()> {
    let (mut file, mut buffer) = (FileBytes::new(seed), vec![0; CHUNK]);
    loop {
        let bytes = file.fill(&mut buffer);
        if bytes.is_empty() {
            return Ok(());
        }
        stream.write_all(bytes).await?;
    }
}

/// Reads the lines up to the empty one; `None` if there are none. The first is there otherwise.
pub(crate) async fn read_head(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Vec<String>>> {
    let mut lines: Vec<String> = Vec::new();
    loop {
        let mut line = Vec::new();
        stream.take(MAX_LINE).read_until(b'\n', &mut line).await?;
        match line.strip_suffix(b"\n") {
            None if line.is_empty() && lines.is_empty() => return Ok(None),
            None => return Err(io::Error::new(io::ErrorKind::InvalidData, "the head is cut off or too long")),
            Some(text) => {
                let text = String::from_utf8_lossy(text).trim_end_matches('\r').to_owned();
                if text.is_empty() && !lines.is_empty() {
                    return Ok(Some(lines));
                }
                lines.push(text);
            }
        }
        if lines.len() > MAX_LINES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the head has too many lines"));
        }
    }
}

/// A download under way.
pub(crate) struct Download {
    stream: BufReader<TcpStream>,
    left: u64,
    buffer: Vec<u8>,
}

impl Download {
    /// Asks for a path; returns when the answer's head is there.
    pub(crate) async fn begin(address: SocketAddr, path: &str) -> io::Result<Self> {
        let mut stream = BufReader::with_capacity(CHUNK, TcpStream::connect(address).await?);
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let head = read_head(&mut stream).await?.unwrap_or_default();
        let wrong = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        if !head.first().is_some_and(|status| status.starts_with("HTTP/1.1 200")) {
            return Err(wrong("the web server did not answer with 200"));
        }
        let length = head.iter().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok());
        let left = length.ok_or_else(|| wrong("the web server did not say the length"))?;
        Ok(Download { stream, left, buffer: vec![0; CHUNK] })
    }

    /// The next bytes; none at the end. An end before the promised length is an error.
    pub(crate) async fn next(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let read = self.stream.read(&mut self.buffer).await?;
        if read == 0 || read as u64 > self.left {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(&self.buffer[..read])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn server() -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        (listener.local_addr().unwrap(), tokio::spawn(serve(listener, 7)))
    }

    #[tokio::test]
    async fn the_file_arrives_as_it_is() {
        let (address, server) = server().await;
        let mut download = Download::begin(address, FILE_PATH).await.unwrap();
        let (mut expected, mut buffer, mut total) = (FileBytes::new(7), vec![0; CHUNK], 0);
        while total < 1 << 20 {
            let bytes = download.next().await.unwrap();
            assert!(expected.fill(&mut buffer[..bytes.len()]) == bytes);
            total += bytes.len();
        }
        server.abort();
    }

    #[tokio::test]
    async fn a_connection_serves_several_requests() {
        let (address, server) = server().await;
        let mut stream = BufReader::new(TcpStream::connect(address).await.unwrap());
        for (request, status) in [("HEAD /", "200"), ("GET /nothing", "404"), ("GET /", "200"), ("POST /", "405")] {
            stream.write_all(format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
            let head = read_head(&mut stream).await.unwrap().unwrap();
            assert!(head[0].contains(status), "{request}: {head:?}");
            if request == "GET /" {
                let mut page = vec![0; PAGE.len()];
                stream.read_exact(&mut page).await.unwrap();
            }
        }
        assert!(read_head(&mut stream).await.unwrap().is_none());
        server.abort();
    }

    #[test]
    fn another_seed_is_another_file() {
        let (mut a, mut b) = ([0; 64], [0; 64]);
        FileBytes::new(1).fill(&mut a);
        FileBytes::new(2).fill(&mut b);
        assert_ne!(a, b);
    }
}
