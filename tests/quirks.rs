//! What registries, storages, caches and proxies do beside the protocol, each by itself against a scripted server; then
//! whole updates through some of them, in front of a real registry.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::HashSet;
use std::num::NonZeroU64;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use switchback::registry::http::HttpRegistry;
use switchback::registry::meter::Limits;
use switchback::registry::{Registry as _, RegistryError};
use switchback_partitions::slot::Slot;
use switchback_tests::faults::{FaultServer, Reply, Request};
use switchback_tests::fetching::{PASSWORD, access, auth_file, blob, client, content, read};
use switchback_tests::lab::registry::Registry;
use switchback_tests::lab::tools;
use switchback_tests::scene::{SMALL_DISK, Scene};
use switchback_tests::story::{ROOT_BYTES, ask};
use switchback_tests::upstream;

/// A server that spoils the answers `spoilt` says, by number, and serves the content otherwise.
async fn serving(
    content: &[u8],
    spoilt: impl Fn(usize, Reply) -> Reply + Send + Sync + 'static,
) -> FaultServer {
    let content = content.to_vec();
    let answer = move |request: &Request| spoilt(request.number, Reply::serve(&content, request));
    FaultServer::start(answer).await.unwrap()
}

fn ranges(server: &FaultServer) -> Vec<(usize, usize)> {
    let asked = server.requests();
    asked.iter().filter_map(Request::range).map(|range| (*range.start(), *range.end())).collect()
}

#[tokio::test]
async fn a_storage_address_that_expires_in_the_middle_of_a_body_is_asked_for_anew() {
    let content = content(9000);
    let storage = serving(&content, |number, reply| match number {
        0 => reply.broken_after(4000),
        1 => Reply::new(403, "the signature is too old"),
        _ => reply,
    });
    let storage = storage.await;
    let place = storage.host().to_owned();
    let registry = FaultServer::start(move |request| {
        Reply::new(307, "").with("Location", &format!("http://{place}/signed?ticket={}", request.number))
    });
    let registry = registry.await.unwrap();
    let at = client(&[&registry, &storage], None);
    assert!(read(&at, &blob(&content), 0..9000).await.unwrap() == content);
    assert_eq!((registry.requests().len(), storage.requests().len()), (2, 3));
    assert_eq!(ranges(&storage), [(4000, 8999), (4000, 8999)], "nothing is fetched twice");
    assert_eq!(storage.requests()[2].path, "/signed?ticket=1");
}

#[tokio::test]
async fn a_token_that_expires_in_the_middle_of_a_body_is_renewed() {
    let folder = tempfile::tempdir().unwrap();
    let service =
        FaultServer::start(|request| Reply::new(200, format!(r#"{{"token":"t{}"}}"#, request.number)));
    let service = service.await.unwrap();
    let challenge = format!(r#"Bearer realm="http://{}/token",service="lab""#, service.host());
    let content = content(9000);
    let served = content.clone();
    let registry = FaultServer::start(move |request| {
        let good = if request.number < 2 { "Bearer t0" } else { "Bearer t1" };
        match (request.header("authorization"), request.number) {
            (Some(token), 1) if token == good => Reply::serve(&served, request).broken_after(5000),
            (Some(token), _) if token == good => Reply::serve(&served, request),
            _ => Reply::new(401, "").with("WWW-Authenticate", &challenge),
        }
    });
    let registry = registry.await.unwrap();
    let file = auth_file(folder.path(), registry.host());
    let at = client(&[&registry, &service], Some(&file));
    assert!(read(&at, &blob(&content), 0..9000).await.unwrap() == content);
    assert_eq!(service.requests().len(), 2);
    assert_eq!(service.requests()[1].header("authorization"), Some(PASSWORD));
    assert_eq!(ranges(&registry), [(5000, 8999), (5000, 8999)]);
}

#[tokio::test]
async fn a_wait_may_be_asked_for_as_a_date() {
    let mut date = Command::new("date");
    date.env("LC_ALL", "C").args(["-u", "-d", "now + 2 seconds", "+%a, %d %b %Y %H:%M:%S GMT"]);
    let date = tools::run(&mut date).unwrap().trim().to_owned();
    let server = FaultServer::start(move |request| match request.number {
        0 => Reply::new(429, "").with("Retry-After", &date),
        _ => Reply::new(200, "{}"),
    });
    let server = server.await.unwrap();
    let began = Instant::now();
    client(&[&server], None).resolve("1.0").await.unwrap();
    // A date has whole seconds, so a wait of two may be one.
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn a_registry_under_maintenance_says_when_it_is_back() {
    let content = content(5000);
    let server = serving(&content, |number, reply| match number {
        0 => Reply::new(503, "back soon").with("Retry-After", "1"),
        _ => reply,
    });
    let server = server.await;
    let began = Instant::now();
    assert!(read(&client(&[&server], None), &blob(&content), 100..200).await.unwrap() == content[100..200]);
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_proxy_that_strips_content_range_is_believed_when_the_length_is_right() {
    let content = content(5000);
    let server = serving(&content, |_, reply| reply.without("Content-Range")).await;
    let at = client(&[&server], None);
    assert!(read(&at, &blob(&content), 1000..3000).await.unwrap() == content[1000..3000]);
    assert!(at.serves_ranges() && server.requests().len() == 1);
    // Without a length either, nothing says which bytes these are.
    let server = serving(&content, |_, reply| reply.without("Content-Range").chunked()).await;
    let error = read(&client(&[&server], None), &blob(&content), 1000..3000).await.unwrap_err();
    assert!(matches!(error, RegistryError::Broken { .. }), "{error}");
}

#[tokio::test]
async fn a_range_wrapped_as_multipart_is_refused_also_when_its_length_is_right() {
    let content = content(5000);
    let server = FaultServer::start(|_| {
        let part = "--x\r\nContent-Range: bytes 1000-1099/5000\r\n\r\n";
        Reply::new(206, format!("{part:100}")).with("Content-Type", "multipart/byteranges; boundary=x")
    });
    let server = server.await.unwrap();
    let error = read(&client(&[&server], None), &blob(&content), 1000..1100).await.unwrap_err();
    assert!(matches!(error, RegistryError::Broken { .. }), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn more_bytes_than_were_asked_for_are_cut_off() {
    let content = content(90_000);
    let long = content[100..].to_vec();
    let server = FaultServer::start(move |_| {
        Reply::new(206, long.clone()).with("Content-Range", "bytes 100-199/90000")
    });
    let server = server.await.unwrap();
    let at = client(&[&server], None);
    assert!(read(&at, &blob(&content), 100..200).await.unwrap() == content[100..200]);
}

#[tokio::test]
async fn a_body_that_was_compressed_on_the_way_is_refused() {
    let content = content(5000);
    let server = serving(&content, |_, reply| reply.with("Content-Encoding", "gzip")).await;
    let error = read(&client(&[&server], None), &blob(&content), 100..200).await.unwrap_err();
    assert!(error.to_string().contains("compressed"), "{error}");
    assert_eq!(server.requests()[0].header("accept-encoding"), Some("identity"));
}

#[tokio::test]
async fn neither_head_nor_accept_ranges_is_asked_or_believed() {
    let content = content(5000);
    let served = content.clone();
    let server = FaultServer::start(move |request| match request.method() {
        "HEAD" => Reply::new(404, ""),
        _ => Reply::serve(&served, request).with("Accept-Ranges", "none"),
    });
    let server = server.await.unwrap();
    let at = client(&[&server], None);
    for range in [0..100, 4000..5000] {
        assert!(
            read(&at, &blob(&content), range.clone()).await.unwrap()
                == content[range.start as usize..range.end as usize]
        );
    }
    assert!(at.blob(&blob(&content), 5000).await.unwrap() == content);
    assert!(at.serves_ranges());
    assert!(server.requests().iter().all(|request| request.method() == "GET"));
}

#[tokio::test]
async fn a_connection_that_is_closed_unsaid_between_requests_is_opened_again() {
    let content = content(40_000);
    let server = serving(&content, |_, reply| reply.closes_unsaid()).await;
    let at = client(&[&server], None);
    for start in (0..40_000).step_by(5000) {
        let bytes = read(&at, &blob(&content), start..start + 5000).await.unwrap();
        assert!(bytes == content[start as usize..start as usize + 5000], "{start}");
    }
}

#[tokio::test]
async fn a_body_without_a_length_is_read_and_resumed_like_any_other() {
    let content = content(50_000);
    let server = serving(&content, |number, reply| match number {
        0 | 1 => reply.chunked(),
        2 => reply.chunked_broken_after(20_000),
        _ => reply.chunked(),
    });
    let server = server.await;
    let at = client(&[&server], None);
    assert!(read(&at, &blob(&content), 0..50_000).await.unwrap() == content);
    assert!(read(&at, &blob(&content), 5..40_000).await.unwrap() == content[5..40_000]);
    assert!(read(&at, &blob(&content), 0..45_000).await.unwrap() == content[..45_000]);
    assert_eq!(ranges(&server), [(5, 39_999), (0, 44_999), (20_000, 44_999)]);
}

#[tokio::test]
async fn a_short_body_under_the_right_range_is_gone_on_with() {
    let content = content(5000);
    let short = content[1000..1500].to_vec();
    let server = serving(&content, move |number, reply| match number {
        0 => Reply::new(206, short.clone()).with("Content-Range", "bytes 1000-1999/5000"),
        _ => reply,
    });
    let server = server.await;
    assert!(
        read(&client(&[&server], None), &blob(&content), 1000..2000).await.unwrap() == content[1000..2000]
    );
    assert_eq!(ranges(&server), [(1000, 1999), (1500, 1999)]);
}

#[tokio::test]
async fn what_is_skipped_and_what_comes_twice_is_on_the_bill() {
    let content = content(50_000);
    let everything = content.clone();
    let server = FaultServer::start(move |request| match request.number {
        0 => Reply::new(200, everything.clone()).broken_after(30_000),
        _ => Reply::new(200, everything.clone()),
    });
    let server = server.await.unwrap();
    let at = client(&[&server], None);
    assert!(read(&at, &blob(&content), 20_000..50_000).await.unwrap() == content[20_000..]);
    let network = at.network().unwrap();
    assert_eq!((network.bytes, network.requests), (80_000, 2));
}

#[tokio::test]
async fn a_budget_ends_a_line_that_would_double_the_bill() {
    let content = content(50_000);
    let everything = content.clone();
    let server = FaultServer::start(move |_| Reply::new(200, everything.clone()).broken_after(30_000));
    let server = server.await.unwrap();
    let limits = Limits { budget_bytes: Some(70_000), ..Limits::default() };
    let at = HttpRegistry::new(server.host(), "os", access(&[server.host()], limits)).unwrap();
    let error = read(&at, &blob(&content), 0..50_000).await.unwrap_err();
    assert!(matches!(error, RegistryError::OverBudget { budget: 70_000, .. }), "{error}");
    assert_eq!(server.requests().len(), 3);
    let error = at.resolve("1.0").await.unwrap_err();
    assert!(matches!(error, RegistryError::OverBudget { .. }), "{error}");
    assert_eq!(server.requests().len(), 3, "what is spent is not asked for");
    assert!(at.affords(1).is_err());
}

#[tokio::test]
async fn a_bandwidth_cap_is_no_silence_of_the_sender() {
    let content = content(300_000);
    let server = serving(&content, |_, reply| reply).await;
    let limits = Limits { bytes_per_sec: NonZeroU64::new(150_000), ..Limits::default() };
    let at = HttpRegistry::new(server.host(), "os", access(&[server.host()], limits)).unwrap();
    let began = Instant::now();
    assert!(read(&at, &blob(&content), 0..300_000).await.unwrap() == content);
    assert!(began.elapsed() >= Duration::from_millis(1800), "{:?}", began.elapsed());
    assert_eq!(server.requests().len(), 1);
}

/// A front of the real registry at `host` that lets `spoilt` change its answers about blobs.
async fn front(
    host: &str,
    spoilt: impl Fn(&Request, &dyn Fn(&Request) -> Reply) -> Reply + Send + Sync + 'static,
) -> FaultServer {
    let host = host.to_owned();
    let answer = move |request: &Request| {
        let pass = |request: &Request| {
            upstream::ask(&host, request).unwrap_or_else(|error| Reply::new(500, format!("{error:?}")))
        };
        match request.path.contains("/blobs/") {
            true => spoilt(request, &pass),
            false => pass(request),
        }
    };
    FaultServer::start(answer).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_update_goes_through_whatever_lies_before_the_registry_and_says_what_came() {
    let scene = Scene::new().unwrap();
    let registry = Registry::start(&scene.folder().join("registry")).unwrap();
    let host = registry.host();
    let key = scene.desk.path("os.pub");
    scene.release("1.0", true, ROOT_BYTES).unwrap();
    scene.release("1.1", true, ROOT_BYTES).unwrap();
    scene.desk.push("1.1", &format!("{host}/os"), &["--plain-http", &host, "--with-signatures"]).unwrap();
    let mut machine = scene.machine("", &[&key], "").unwrap();
    scene.provision(&machine, &scene.desk.reference("1.0"), &key, &SMALL_DISK).unwrap();
    machine.pretend(Slot::A).unwrap();

    // A ticket is good for one answer, and no answer is longer than 3 MB.
    let used = Mutex::new(HashSet::new());
    let storage = front(&host, move |request, pass| {
        let is_new = used.lock().unwrap().insert(request.path.clone());
        if is_new { pass(request).broken_after(3_000_000) } else { Reply::new(403, "expired") }
    });
    let storage = storage.await;
    let place = storage.host().to_owned();
    let rows = [
        ("good", front(&host, |request, pass| pass(request)).await),
        ("no_ranges", front(&host, |request, pass| pass(&request.without_range())).await),
        ("stripped", front(&host, |request, pass| pass(request).without("Content-Range")).await),
        (
            "busy",
            front(&host, |request, pass| match request.number % 2 {
                0 => Reply::new(429, "").with("Retry-After", "0"),
                _ => pass(request),
            })
            .await,
        ),
        (
            "expiring",
            front(&host, move |request, _| {
                let location = format!("http://{place}{}?ticket={}", request.path, request.number);
                Reply::new(307, "").with("Location", &location)
            })
            .await,
        ),
    ];
    let mut came = Vec::new();
    for (name, server) in &rows {
        let settings = format!(
            "[source]\nimage = \"{}/os:1.1\"\nplain_http = [\"{}\", \"{}\"]\n[trust.policy.os]\nkeys = {:?}\n",
            server.host(),
            server.host(),
            storage.host(),
            [&key],
        );
        let machine = machine.copy(&scene.folder().join(name), &settings).unwrap();
        let staged = ask(&machine, &["update", "--stage"], 0);
        assert_eq!(staged.said["outcome"], "staged", "{name}: {}", staged.said);
        let (bytes, fetched) =
            (staged.number("/network/bytes").unwrap(), staged.number("/traffic/fetched").unwrap());
        assert!(bytes >= fetched, "{name}: documents come on top of {fetched}, and {bytes} came");
        println!("{name}: {bytes} bytes in {} requests", staged.number("/network/requests").unwrap());
        came.push(bytes);
    }
    assert!(came[1..].iter().all(|bytes| *bytes >= came[0]), "no fault makes it less: {came:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_update_beyond_its_budget_fails_before_it_begins_or_stops_where_it_is() {
    let scene = Scene::new().unwrap();
    let registry = Registry::start(&scene.folder().join("registry")).unwrap();
    let host = registry.host();
    let key = scene.desk.path("os.pub");
    scene.release("1.0", true, ROOT_BYTES).unwrap();
    scene.desk.boot_files(30).unwrap();
    scene.release("1.1", true, ROOT_BYTES).unwrap();
    scene.desk.push("1.1", &format!("{host}/os"), &["--plain-http", &host, "--with-signatures"]).unwrap();
    let mut machine = scene.machine("", &[&key], "").unwrap();
    scene.provision(&machine, &scene.desk.reference("1.0"), &key, &SMALL_DISK).unwrap();
    machine.pretend(Slot::A).unwrap();
    let settings = |host: &str, more: &str| {
        format!(
            "[source]\nimage = \"{host}/os:1.1\"\nplain_http = [\"{host}\"]\n{more}\n[trust.policy.os]\nkeys = {:?}\n",
            [&key]
        )
    };

    let small = machine.copy(&scene.folder().join("small"), &settings(&host, "budget = \"2 MB\"")).unwrap();
    let plan = ask(&small, &["update", "--dry-run"], 36);
    let refused = ask(&small, &["update", "--stage"], 36);
    for answer in [&plan, &refused] {
        assert_eq!(answer.said["reason"], "over-budget");
        assert!(answer.said["detail"].as_str().unwrap().contains("2097152"), "{}", answer.said);
    }

    // Every answer begins from the start and breaks, each a little later than the one before.
    let broken =
        front(&host, |request, pass| pass(&request.without_range()).broken_after(request.number * 200_000));
    let broken = broken.await;
    let settings = settings(broken.host(), "budget = \"12 MB\"");
    let stopped = machine.copy(&scene.folder().join("stopped"), &settings).unwrap();
    let answer = ask(&stopped, &["update", "--stage"], 36);
    assert_eq!(answer.said["reason"], "over-budget", "{}", answer.said);
}
