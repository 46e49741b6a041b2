//! A server that misbehaves on purpose: what a real registry, a cache before it or a bad line does now and then.
//!
//! Not here: a registry. Rule: each connection is answered once and closed, so a test sees every request there is.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The longest request head that is read, in bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// The longest request body that is read, in bytes; what is longer stays where it is.
const BODY_BYTES_MAX: usize = 64 << 10;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Request {
    /// Which of all requests, from 0.
    pub number: usize,
    /// The path with its query.
    pub path: String,
    /// As long as its `Content-Length` says.
    pub body: Vec<u8>,
    head: String,
}

impl Request {
    /// `GET`, `HEAD`, …
    pub fn method(&self) -> &str {
        self.head.split_whitespace().next().unwrap_or_default()
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// The same request as one who knows no ranges hears it.
    pub fn without_range(&self) -> Request {
        let is_range = |line: &&str| line.to_ascii_lowercase().starts_with("range:");
        let kept: Vec<&str> = self.head.lines().filter(|line| !is_range(line)).collect();
        Request { head: kept.join("\r\n"), ..self.clone() }
    }

    /// The closed range that is asked for.
    pub fn range(&self) -> Option<std::ops::RangeInclusive<usize>> {
        let (start, end) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some(start.parse().ok()?..=end.parse().ok()?)
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Body,
    /// False: it closes all the same, without having said so.
    says_close: bool,
}

#[derive(Debug, Clone)]
enum Body {
    /// All of it, with its length announced.
    Whole(Vec<u8>),
    /// The announced length is larger: the connection breaks after these bytes.
    Broken { bytes: Vec<u8>, announced: usize },
    /// In chunks, whose sum nobody announces; `ended` as HTTP wants it, or by the end of the connection.
    Chunked { bytes: Vec<u8>, ended: bool },
    /// These bytes without any announced length, again and again.
    Endless(Vec<u8>),
    /// One byte at a time.
    Drip { bytes: Vec<u8>, pause: Duration },
    /// Nothing at all, not even a status.
    Silence,
}

impl Reply {
    /// A whole answer.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply { status, headers: Vec::new(), body: Body::Whole(body.into()), says_close: true }
    }

    /// `200` or `206` as a good server answers: the range that was asked for, else everything.
    pub fn serve(content: &[u8], request: &Request) -> Reply {
        match request.range() {
            None => Reply::new(200, content),
            Some(range) => {
                let value = format!("bytes {}-{}/{}", range.start(), range.end(), content.len());
                Reply::new(206, &content[range]).with("Content-Range", &value)
            }
        }
    }

    /// With one more header.
    pub fn with(mut self, name: &str, value: &str) -> Reply {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Without a header.
    pub fn without(mut self, name: &str) -> Reply {
        self.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
        self
    }

    /// How long the body is, where that is announced.
    pub fn body_bytes(&self) -> usize {
        match &self.body {
            Body::Whole(bytes) => bytes.len(),
            _ => 0,
        }
    }

    /// As long as before, and not one byte of the body is right.
    pub fn spoilt(self) -> Reply {
        let Body::Whole(mut bytes) = self.body else { return self };
        bytes.iter_mut().for_each(|byte| *byte ^= 0x5a);
        Reply { body: Body::Whole(bytes), ..self }
    }

    /// The connection breaks after `count` bytes of the body.
    pub fn broken_after(self, count: usize) -> Reply {
        let Body::Whole(mut bytes) = self.body.clone() else { return self };
        let announced = bytes.len();
        bytes.truncate(count);
        Reply { body: Body::Broken { bytes, announced }, ..self }
    }

    /// The body comes in chunks without a length.
    pub fn chunked(self) -> Reply {
        let Body::Whole(bytes) = self.body else { return self };
        Reply { body: Body::Chunked { bytes, ended: true }, ..self }
    }

    /// The same, and the connection ends after `count` bytes, before the last chunk.
    pub fn chunked_broken_after(self, count: usize) -> Reply {
        let Body::Whole(mut bytes) = self.body else { return self };
        bytes.truncate(count);
        Reply { body: Body::Chunked { bytes, ended: false }, ..self }
    }

    /// The connection is closed after the answer, and the answer does not say so: the next request may be sent into the void.
    pub fn closes_unsaid(self) -> Reply {
        Reply { says_close: false, ..self }
    }

    /// The body repeats and never ends.
    pub fn endless(self) -> Reply {
        let Body::Whole(bytes) = self.body else { return self };
        Reply { body: Body::Endless(bytes), ..self }
    }

    /// The body comes a byte at a time.
    pub fn drip(self, pause: Duration) -> Reply {
        let Body::Whole(bytes) = self.body else { return self };
        Reply { body: Body::Drip { bytes, pause }, ..self }
    }

    /// No answer.
    pub fn silence() -> Reply {
        Reply { body: Body::Silence, ..Reply::new(0, "") }
    }
}

/// A running server; ends with the value.
#[derive(Debug)]
pub struct FaultServer {
    host: String,
    requests: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

impl FaultServer {
    /// Starts one on a free port of the loopback; `answer` decides each reply.
    pub async fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Result<FaultServer> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let host = listener.local_addr()?.to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (requests.clone(), Arc::new(answer));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, answer) = (seen.clone(), answer.clone());
                // A client that goes away is what some tests are about.
                tokio::spawn(async move { converse(stream, &seen, &*answer).await.unwrap_or_default() });
            }
        });
        Ok(FaultServer { host, requests, task })
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn converse(
    mut stream: TcpStream,
    seen: &Mutex<Vec<Request>>,
    answer: &(dyn Fn(&Request) -> Reply + Send + Sync),
) -> Result<()> {
    let (head, body) = read_head(&mut stream).await?;
    let path = head.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let mut request = Request { number: 0, path, body, head };
    read_body(&mut stream, &mut request).await?;
    let reply = {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        request.number = seen.len();
        let reply = answer(&request);
        seen.push(request);
        reply
    };
    send(&mut stream, reply).await?;
    Ok(stream.shutdown().await?)
}

/// The head of a request, and what of its body came with it.
async fn read_head(stream: &mut TcpStream) -> Result<(String, Vec<u8>)> {
    let mut read = Vec::new();
    loop {
        if let Some(end) = read.windows(4).position(|end| end == b"\r\n\r\n") {
            let body = read.split_off(end + 4);
            return Ok((String::from_utf8_lossy(&read).into_owned(), body));
        }
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).await?;
        anyhow::ensure!(count > 0 && read.len() < HEAD_BYTES_MAX, "no request");
        read.extend_from_slice(&buffer[..count]);
    }
}

async fn read_body(stream: &mut TcpStream, request: &mut Request) -> Result<()> {
    let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    while request.body.len() < length.min(BODY_BYTES_MAX) {
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).await?;
        anyhow::ensure!(count > 0, "the body broke off");
        request.body.extend_from_slice(&buffer[..count]);
    }
    Ok(())
}

async fn send(stream: &mut TcpStream, reply: Reply) -> Result<()> {
    let length = match &reply.body {
        Body::Silence => {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            return Ok(());
        }
        Body::Whole(bytes) | Body::Drip { bytes, .. } => Some(bytes.len()),
        Body::Broken { announced, .. } => Some(*announced),
        Body::Endless(_) | Body::Chunked { .. } => None,
    };
    let mut head = format!("HTTP/1.1 {} x\r\n", reply.status);
    if reply.says_close {
        head.push_str("Connection: close\r\n");
    }
    if let Body::Chunked { .. } = reply.body {
        head.push_str("Transfer-Encoding: chunked\r\n");
    }
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(length) = length {
        head.push_str(&format!("Content-Length: {length}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).await?;
    match reply.body {
        Body::Whole(bytes) | Body::Broken { bytes, .. } => stream.write_all(&bytes).await?,
        Body::Chunked { bytes, ended } => {
            for piece in bytes.chunks(4000) {
                stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
                stream.write_all(piece).await?;
                stream.write_all(b"\r\n").await?;
            }
            if ended {
                stream.write_all(b"0\r\n\r\n").await?;
            }
        }
        Body::Endless(bytes) => loop {
            stream.write_all(&bytes).await?;
        },
        Body::Drip { bytes, pause } => {
            for byte in bytes {
                stream.write_all(&[byte]).await?;
                stream.flush().await?;
                tokio::time::sleep(pause).await;
            }
        }
        Body::Silence => {}
    }
    Ok(())
}
