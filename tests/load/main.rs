//! A bounded load of questions to DNS and NTP services, and what became of each of them.
//!
//! Not here: what happens to the services meanwhile (`tests/services.rs`). Rule: each question is asked once, at its own moment,
//! whatever became of the others, from a socket of its own; nothing is asked again, and what is not answered in time is lost.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Mutex;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// What is not answered within this is lost.
const PATIENCE: Duration = Duration::from_secs(3);
/// The most questions of one kind in a second, and seconds: a mistake must not take the host down.
const RATE_MAX: u32 = 5_000;
const SECONDS_MAX: u64 = 900;
/// Between two questions on a connection that is held open. dnsmasq closes one after a hundred (`TCP_MAX_QUERIES`): a run of seventy
/// seconds must stay below that.
const HELD_PAUSE: Duration = Duration::from_secs(1);

/// Asks DNS and NTP services so many questions a second and prints what became of them, as JSON.
#[derive(Parser)]
struct Arguments {
    /// Whom to ask.
    address: IpAddr,
    /// The port that answers DNS.
    #[arg(long, default_value_t = 53)]
    dns_port: u16,
    /// The port that answers NTP.
    #[arg(long, default_value_t = 123)]
    ntp_port: u16,
    /// How long, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// DNS questions by UDP, a second.
    #[arg(long, default_value_t = 0)]
    udp: u32,
    /// DNS questions by TCP, a second, each on a connection of its own.
    #[arg(long, default_value_t = 0)]
    tcp: u32,
    /// TCP connections that are held open all the time, with a question a second.
    #[arg(long, default_value_t = 0)]
    held: u32,
    /// NTP questions, a second.
    #[arg(long, default_value_t = 0)]
    ntp: u32,
}

/// What became of one kind of question.
#[derive(Default, Serialize)]
struct Report {
    kind: &'static str,
    offered: u64,
    sent: u64,
    answered: u64,
    lost: u64,
    /// Of the answered ones, in milliseconds.
    p50: f64,
    p99: f64,
    /// The longest time without an answer, in milliseconds.
    gap: f64,
    /// How the first lost ones were lost.
    losses: Vec<String>,
}

/// What is written down while questions are under way.
#[derive(Default)]
struct Book {
    sent: AtomicU64,
    /// When it was answered and how long that took.
    answered: Mutex<Vec<(Instant, Duration)>>,
    losses: Mutex<Vec<String>>,
}

#[derive(Clone, Copy)]
enum Kind {
    DnsUdp,
    DnsTcp,
    Ntp,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::DnsUdp => "dns/udp",
            Kind::DnsTcp => "dns/tcp",
            Kind::Ntp => "ntp",
        }
    }

    async fn ask(self, to: SocketAddr, number: u64) -> Result<()> {
        match self {
            Kind::DnsUdp => dns_udp(to, number).await,
            Kind::DnsTcp => dns_on(&mut TcpStream::connect(to).await?, number).await,
            Kind::Ntp => ntp(to, number).await,
        }
    }
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let Arguments { address, dns_port, ntp_port, seconds, udp, tcp, held, ntp } = arguments;
    let (dns_at, ntp_at) = (SocketAddr::new(address, dns_port), SocketAddr::new(address, ntp_port));
    ensure!(seconds <= SECONDS_MAX, "{seconds} s are more than the {SECONDS_MAX} that are allowed");
    let kinds = [(Kind::DnsUdp, dns_at, udp), (Kind::DnsTcp, dns_at, tcp), (Kind::Ntp, ntp_at, ntp)];
    ensure!(kinds.iter().all(|(.., rate)| *rate <= RATE_MAX), "at most {RATE_MAX} questions a second");
    let length = Duration::from_secs(seconds);
    let streams = kinds.into_iter().filter(|(.., rate)| *rate > 0);
    let streams: Vec<_> =
        streams.map(|(kind, to, rate)| tokio::spawn(stream(kind, to, rate, length))).collect();
    let connections: Vec<_> =
        (0..held).map(|number| tokio::spawn(hold(dns_at, u64::from(number), length))).collect();
    let mut reports = Vec::new();
    for stream in streams {
        reports.push(stream.await?);
    }
    if held > 0 {
        let mut report = Report { kind: "dns/tcp held open", ..Report::default() };
        for connection in connections {
            let (asked, lost) = connection.await?;
            report.offered += asked;
            report.sent += asked;
            report.answered += asked - u64::from(lost.is_some());
            report.losses.extend(lost);
        }
        report.lost = report.sent - report.answered;
        reports.push(report);
    }
    println!("{}", serde_json::to_string_pretty(&reports)?);
    Ok(())
}

/// Asks at an even pace; a question that is late is asked at once, none is left out.
async fn stream(kind: Kind, to: SocketAddr, rate: u32, length: Duration) -> Report {
    let book = Arc::new(Book::default());
    let offered = u64::from(rate) * length.as_secs();
    let mut pace = interval(Duration::from_secs(1) / rate);
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let began = Instant::now();
    let mut asked = Vec::new();
    for number in 0..offered {
        pace.tick().await;
        let book = book.clone();
        asked.push(tokio::spawn(async move {
            book.sent.fetch_add(1, Ordering::Relaxed);
            let at = Instant::now();
            let answer = timeout(PATIENCE, kind.ask(to, number)).await;
            match answer.map_err(|_| anyhow::anyhow!("no answer")).and_then(|answer| answer) {
                Ok(()) => book.answered.lock().await.push((Instant::now(), at.elapsed())),
                Err(error) => {
                    let when = at.duration_since(began).as_secs_f64();
                    book.losses.lock().await.push(format!("{number} at {when:.3} s: {error:#}"));
                }
            }
        }));
    }
    for one in asked {
        let _ = one.await;
    }
    report(kind, offered, began, &book).await
}

async fn report(kind: Kind, offered: u64, began: Instant, book: &Book) -> Report {
    let mut answered = std::mem::take(&mut *book.answered.lock().await);
    answered.sort_unstable();
    let moments = [began].into_iter().chain(answered.iter().map(|(at, _)| *at)).collect::<Vec<_>>();
    let gap = moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
    let mut times: Vec<Duration> = answered.iter().map(|(_, took)| *took).collect();
    times.sort_unstable();
    let millis = |time: Duration| (time.as_secs_f64() * 1e5).round() / 100.0;
    let part = |hundredths: usize| times.get(times.len() * hundredths / 100).copied().unwrap_or_default();
    let sent = book.sent.load(Ordering::Relaxed);
    let mut losses = std::mem::take(&mut *book.losses.lock().await);
    losses.truncate(5);
    Report {
        kind: kind.name(),
        offered,
        sent,
        answered: answered.len() as u64,
        lost: sent - answered.len() as u64,
        p50: millis(part(50)),
        p99: millis(part(99)),
        gap: millis(gap),
        losses,
    }
}

/// One connection, held open; gives the number of questions, and how the last was lost if it was.
async fn hold(to: SocketAddr, number: u64, length: Duration) -> (u64, Option<String>) {
    let began = Instant::now();
    let mut asked = 0;
    let mut stream = match timeout(PATIENCE, TcpStream::connect(to)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return (1, Some(format!("held {number}: no connection: {error}"))),
        Err(_) => return (1, Some(format!("held {number}: no connection in time"))),
    };
    while began.elapsed() < length {
        asked += 1;
        let answer = timeout(PATIENCE, dns_on(&mut stream, number)).await;
        let answer = answer.map_err(|_| anyhow::anyhow!("no answer")).and_then(|answer| answer);
        if let Err(error) = answer {
            return (
                asked,
                Some(format!("held {number} at {:.3} s: {error:#}", began.elapsed().as_secs_f64())),
            );
        }
        tokio::time::sleep(HELD_PAUSE).await;
    }
    (asked, None)
}

fn question(number: u64) -> Result<Message> {
    let mut message = Message::query();
    let name = Name::from_utf8(format!("q{number}.example.internal."))?;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, RecordType::A));
    Ok(message)
}

/// The same question came back with an answer.
fn check(asked: &Message, bytes: &[u8]) -> Result<()> {
    let answer = Message::from_vec(bytes)?;
    ensure!(answer.metadata.id == asked.metadata.id, "the answer is to another question");
    ensure!(answer.queries == asked.queries, "the answer is to another name");
    ensure!(!answer.answers.is_empty(), "the answer is {:?}", answer.metadata.response_code);
    Ok(())
}

async fn dns_udp(to: SocketAddr, number: u64) -> Result<()> {
    let message = question(number)?;
    let bytes = exchange(to, &message.to_vec()?).await?;
    check(&message, &bytes)
}

/// RFC 1035, 4.2.2: two bytes of length before each message.
async fn dns_on(stream: &mut TcpStream, number: u64) -> Result<()> {
    let message = question(number)?;
    let bytes = message.to_vec()?;
    let length = u16::try_from(bytes.len())?.to_be_bytes();
    stream.write_all(&[&length[..], &bytes].concat()).await?;
    let length = stream.read_u16().await.context("the connection was closed")?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    check(&message, &answer)
}

/// RFC 5905, 7.3: client mode there, server mode back, with our transmit timestamp as its origin.
async fn ntp(to: SocketAddr, number: u64) -> Result<()> {
    let mut packet = [0; 48];
    packet[0] = (4 << 3) | 3;
    packet[40..48].copy_from_slice(&(number + 1).to_be_bytes());
    let answer = exchange(to, &packet).await?;
    if answer.len() < 48 || answer[0] & 7 != 4 || answer[24..32] != packet[40..48] {
        bail!("no answer to this question");
    }
    ensure!(answer[0] >> 6 != 3 && answer[1] != 0, "not synchronised");
    Ok(())
}

async fn exchange(to: SocketAddr, question: &[u8]) -> Result<Vec<u8>> {
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    socket.send(question).await?;
    let mut answer = vec![0; 4096];
    let bytes = socket.recv(&mut answer).await?;
    answer.truncate(bytes);
    Ok(answer)
}
