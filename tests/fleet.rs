//! What a machine asks of a lock server, against a scripted one: what is sent, what each answer means, and how often it is asked.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::net::TcpListener;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use switchback::config::schedule::LockServer;
use switchback::fleet::NodeId;
use switchback::fleet::lock::{LockClient, LockError, Patience};
use switchback::registry::{RegistryAccess, http};
use switchback::schedule::Lock;
use switchback_tests::faults::{FaultServer, Reply, Request};

fn client_of(address: &str) -> LockClient {
    let server = serde_json::json!({"url": format!("http://{address}/fleet"), "group": "web-1"});
    let server: LockServer = serde_json::from_value(server).unwrap();
    let node = NodeId::of("0123456789abcdef0123456789abcdef").unwrap();
    let patience = Patience {
        answer: Duration::from_secs(1),
        attempts: 3,
        first_delay: Duration::from_millis(20),
        longest_delay: Duration::from_millis(50),
    };
    LockClient::new(http::client(&RegistryAccess::default()).unwrap(), &server, &node, patience)
}

async fn answering(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> (FaultServer, LockClient) {
    let server = FaultServer::start(answer).await.unwrap();
    let client = client_of(server.host());
    (server, client)
}

/// An address that nobody listens at.
fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[tokio::test]
async fn both_questions_are_sent_as_the_protocol_has_them() {
    let (server, client) = answering(|_| Reply::new(200, "")).await;
    assert_eq!(client.ask().await, Lock::Held);
    client.give_back().await.unwrap();
    let requests = server.requests();
    let paths: Vec<&str> = requests.iter().map(|request| request.path.as_str()).collect();
    assert_eq!(paths, ["/fleet/v1/pre-reboot", "/fleet/v1/steady-state"]);
    for request in &requests {
        assert_eq!((request.method(), request.header("fleet-lock-protocol")), ("POST", Some("true")));
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        let expected = serde_json::json!({"client_params": {"id": "46524e8a9b1c48398e4b82ab22decf45", "group": "web-1"}});
        assert_eq!(body, expected);
    }
}

/// Each row: an answer, what it means, and how often was asked.
#[tokio::test]
async fn only_a_200_of_the_lock_server_is_this_machines_turn() {
    let said = |status: u16, body: &str| Reply::new(status, body);
    let page = |status| said(status, "<html>log in</html>").with("Content-Type", "text/html; charset=utf-8");
    let refused = |words: &str| Lock::Refused(words.into());
    let lost = |words: &str| Lock::HolderUnknown(format!("its answer is missing: {words}"));
    for (why, reply, expected, asked) in [
        ("granted", said(200, ""), Lock::Held, 1),
        (
            "all slots are taken, as airlock says it",
            said(500, r#"{"kind":"failed_lock","value":"semaphore currently full"}"#),
            refused("semaphore currently full (failed_lock)"),
            1,
        ),
        ("no value", said(409, r#"{"kind":"busy"}"#), refused("busy"), 1),
        (
            "words for a terminal",
            said(400, "{\"kind\":\"k\",\"value\":\"a\\u001b[2Jb\\nc\"}"),
            refused("a [2Jb c (k)"),
            1,
        ),
        ("a login page", page(200), refused("a web page came instead of an answer (status 200)"), 1),
        ("a proxy's page", page(502), refused("a web page came instead of an answer (status 502)"), 1),
        (
            "it leads elsewhere",
            said(302, "").with("Location", "/login"),
            refused("status 302, which is no answer of a lock server: check its `url`"),
            1,
        ),
        (
            "no such path",
            said(404, "404 page not found"),
            refused("status 404, which is no answer of a lock server: check its `url`"),
            1,
        ),
        (
            "granted, but not emptily",
            said(204, ""),
            refused("status 204, which is no answer of a lock server: check its `url`"),
            1,
        ),
        (
            "a proxy lost the answer: the lock may be ours",
            said(504, "upstream timed out"),
            lost("status 504 without a word of the lock server"),
            3,
        ),
        (
            "an endless answer",
            said(500, "x".repeat(999).as_str()).endless(),
            lost("status 500 without a word of the lock server"),
            3,
        ),
    ] {
        let (server, client) = answering(move |_| reply.clone()).await;
        assert_eq!(client.ask().await, expected, "{why}");
        assert_eq!(server.requests().len(), asked, "{why}");
    }
}

#[tokio::test]
async fn a_server_that_is_slow_or_silent_may_have_granted_it() {
    let (server, client) = answering(|_| Reply::silence()).await;
    let begun = Instant::now();
    assert!(matches!(client.ask().await, Lock::HolderUnknown(_)));
    assert!(
        begun.elapsed() < Duration::from_secs(3) && server.requests().len() == 1,
        "one patience is enough"
    );
    let given_back = client.give_back().await;
    assert!(matches!(given_back, Err(LockError::Unanswered(_))), "{given_back:?}");
}

#[tokio::test]
async fn a_server_that_was_never_reached_granted_nothing() {
    let client = client_of(&nobody());
    let lock = client.ask().await;
    assert!(matches!(&lock, Lock::Refused(why) if why.starts_with("it cannot be reached: ")), "{lock:?}");
    assert!(matches!(client.give_back().await, Err(LockError::Unreached(_))));
}

/// The second answer counts: whoever was granted it and did not hear of it is granted it again.
#[tokio::test]
async fn an_answer_that_was_lost_is_asked_for_again() {
    let second = Mutex::new(Vec::from([Reply::new(200, ""), Reply::new(500, r#"{"kind":"full"}"#)]));
    for expected in [Lock::Refused("full".into()), Lock::Held] {
        let reply = second.lock().unwrap().pop().unwrap();
        let (server, client) = answering(move |request| match request.number {
            0 => Reply::new(503, ""),
            _ => reply.clone(),
        })
        .await;
        assert_eq!(client.ask().await, expected);
        assert_eq!(server.requests().len(), 2);
    }
}
