//! Is a slot well? Asked at its own address, by its own protocol, before clients are led there and while they are.
//!
//! Not here: how often, and what follows. Rule: a failure is one sentence that says what was asked and what came back; an answer
//! counts only if it is to this question.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::net::{TcpStream, UdpSocket};

use crate::config::service::{DnsQuestion, Listen, ServiceProbe, Transport};

/// How long one question may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// The longest answer that is read, in bytes: what a datagram may carry without fragments, and more.
const ANSWER_BYTES_MAX: usize = 4096;
/// An NTP packet without extensions, in bytes (RFC 5905, 7.3).
const NTP_BYTES: usize = 48;

/// Asks all that the declaration wants to know by the network, once.
pub async fn ask(probe: &ServiceProbe, listen: &[Listen], address: IpAddr) -> Result<(), String> {
    let work = async {
        let port = |standard| SocketAddr::new(address, probe.port.unwrap_or(standard));
        if let Some(question) = &probe.dns {
            dns(question, port(53)).await?;
        }
        if probe.ntp {
            ntp(port(123)).await?;
        }
        let tcp_ports: Vec<u16> =
            listen.iter().filter(|on| on.transport == Transport::Tcp).map(|on| on.port).collect();
        if let Some(path) = &probe.http {
            http(path, port(tcp_ports.first().copied().unwrap_or(80))).await?;
        }
        for tcp_port in tcp_ports.iter().filter(|_| probe.tcp) {
            let to = SocketAddr::new(address, *tcp_port);
            TcpStream::connect(to).await.map_err(|error| format!("tcp {to}: {error}"))?;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| Err(format!("{address} does not answer within {} s", PATIENCE.as_secs())))
}

async fn dns(question: &DnsQuestion, to: SocketAddr) -> Result<(), String> {
    let said = |what: String| format!("dns {} {} at {to}: {what}", question.kind, question.name);
    let name = Name::from_utf8(&question.name).map_err(|error| said(error.to_string()))?;
    let kind: RecordType = question.kind.parse().map_err(|_| said("there is no such type".into()))?;
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    let bytes = message.to_vec().map_err(|error| said(error.to_string()))?;
    let answer = exchange(to, &bytes).await.map_err(|error| said(error.to_string()))?;
    let answer = Message::from_vec(&answer).map_err(|error| said(error.to_string()))?;
    if answer.metadata.id != message.metadata.id || answer.metadata.message_type != MessageType::Response {
        return Err(said("what came back is no answer to it".into()));
    }
    match answer.metadata.response_code {
        ResponseCode::NoError if answer.answers.is_empty() => Err(said("the answer is empty".into())),
        ResponseCode::NoError => Ok(()),
        code => Err(said(format!("the answer is {code}"))),
    }
}

/// A client's question (mode 3) and a server's answer (mode 4) that is synchronised: leap indicator other than 3, stratum 1 to 15
/// (RFC 5905, 7.3).
async fn ntp(to: SocketAddr) -> Result<(), String> {
    let said = |what: String| format!("ntp at {to}: {what}");
    let mut packet = [0; NTP_BYTES];
    packet[0] = (4 << 3) | 3;
    // Given back as it is in "origin timestamp": what tells this answer from any other.
    let ours: [u8; 8] = rand_bytes();
    packet[40..48].copy_from_slice(&ours);
    let answer = exchange(to, &packet).await.map_err(|error| said(error.to_string()))?;
    if answer.len() < NTP_BYTES || answer[0] & 7 != 4 || answer[24..32] != ours {
        return Err(said("what came back is no answer to it".into()));
    }
    let (leap, stratum) = (answer[0] >> 6, answer[1]);
    match leap != 3 && (1..=15).contains(&stratum) {
        true => Ok(()),
        false => Err(said(format!("it is not synchronised (leap indicator {leap}, stratum {stratum})"))),
    }
}

fn rand_bytes() -> [u8; 8] {
    let id = uuid::Uuid::new_v4();
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&id.as_bytes()[..8]);
    bytes
}

async fn http(path: &str, to: SocketAddr) -> Result<(), String> {
    let url = format!("http://{to}{path}");
    let said = |what: String| format!("{url}: {what}");
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build();
    let answer = client.map_err(|error| said(error.to_string()))?.get(&url).send().await;
    match answer.map_err(|error| said(error.to_string()))?.status().as_u16() {
        200 => Ok(()),
        status => Err(said(format!("the answer is {status}"))),
    }
}

/// One datagram there, one back, from there alone.
async fn exchange(to: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    socket.send(question).await?;
    let mut answer = vec![0; ANSWER_BYTES_MAX];
    let bytes = socket.recv(&mut answer).await?;
    answer.truncate(bytes);
    Ok(answer)
}
