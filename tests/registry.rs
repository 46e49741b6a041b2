//! The registry client against a real registry, and against a server that does what registries, caches and bad lines do.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use switchback::digest::Digest;
use switchback::registry::http::HttpRegistry;
use switchback::registry::{
    Descriptor, MANIFEST_MEDIA_TYPE, Registry as _, RegistryAccess, RegistryError, describe, open,
};
use switchback_tests::certificates::Certificates;
use switchback_tests::faults::{FaultServer, Reply, Request};
use switchback_tests::fetching::{PASSWORD, auth_file, blob, client, content, hasty, read};
use switchback_tests::lab::registry::Registry;
use switchback_tests::lab::tools;
use switchback_tests::signers::repository;

#[tokio::test]
async fn what_is_pushed_to_a_real_registry_is_read_back_whole_and_in_ranges() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(&folder.path().join("registry")).unwrap();
    let at = repository(&registry, "team/os").unwrap();
    let content = content(9_000_000);
    let file = folder.path().join("blob");
    std::fs::write(&file, &content).unwrap();
    let blob = blob(&content);
    assert!(!at.has_blob(&blob.digest).await.unwrap());
    at.push_blob_file(&blob, &file).await.unwrap();
    assert!(at.has_blob(&blob.digest).await.unwrap());
    for range in [0..0, 0..1, 4_000_000..4_500_000, 8_999_999..9_000_000, 0..9_000_000] {
        let bytes = read(&at, &blob, range.clone()).await.unwrap();
        assert!(bytes == content[range.start as usize..range.end as usize], "{range:?}");
    }
    assert!(at.serves_ranges());

    let config = at.push_blob("application/vnd.oci.empty.v1+json", b"{}").await.unwrap();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST_MEDIA_TYPE, "config": config, "layers": [blob],
    });
    let manifest = manifest.to_string();
    let digest = at.push_manifest(Some("1.0"), MANIFEST_MEDIA_TYPE, manifest.as_bytes()).await.unwrap();
    assert_eq!(at.resolve("1.0").await.unwrap(), digest);
    assert_eq!(at.manifest(&digest, 10_000).await.unwrap(), manifest.as_bytes());

    let absent = |error: RegistryError| assert!(error.is_absent(), "{error}");
    absent(at.resolve("2.0").await.unwrap_err());
    absent(at.manifest(&Digest::of(b"x"), 10_000).await.unwrap_err());
    absent(at.blob(&describe("x", Digest::of(b"x"), 1), 10).await.unwrap_err());
    assert_eq!(at.referrers(&digest).await.unwrap(), []);
    assert!(matches!(at.manifest(&digest, 50).await, Err(RegistryError::TooLarge { limit: 50, .. })));
    assert!(matches!(at.blob(&blob, 100).await, Err(RegistryError::TooLarge { limit: 100, .. })));

    let about = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST_MEDIA_TYPE, "config": config, "layers": [],
        "subject": describe(MANIFEST_MEDIA_TYPE, digest, manifest.len() as u64),
    });
    let first = at.push_manifest(None, MANIFEST_MEDIA_TYPE, about.to_string().as_bytes()).await.unwrap();
    let listed: Vec<Digest> = at.referrers(&digest).await.unwrap().iter().map(|it| it.digest).collect();
    assert_eq!(listed, [first], "a registry without the referrers API gets the fallback tag");
}

#[tokio::test]
async fn a_password_and_a_private_authority_open_a_real_registry() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(folder.path(), 2).unwrap();
    let authority = certificates.authority.clone();
    let htpasswd = folder.path().join("htpasswd");
    // The bcrypt hash of `secret`.
    std::fs::write(&htpasswd, "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n").unwrap();
    let more = format!(
        "{}auth:\n  htpasswd:\n    realm: lab\n    path: {}\n",
        certificates.settings(),
        htpasswd.display()
    );
    let registry = Registry::start_with(&folder.path().join("registry"), &more).unwrap();
    let empty = folder.path().join("empty.json");
    std::fs::write(&empty, "{}").unwrap();
    let access = |ca: bool, auth: &Path| RegistryAccess {
        ca_file: ca.then(|| authority.clone()),
        auth_file: Some(auth.to_owned()),
        patience: hasty(),
        ..RegistryAccess::default()
    };
    let password = auth_file(folder.path(), &registry.host());
    let reference = format!("{}/os:1.0", registry.host()).parse().unwrap();

    let at = open(&reference, &access(true, &password)).unwrap();
    let config = at.push_blob("application/vnd.oci.empty.v1+json", b"{}").await.unwrap();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST_MEDIA_TYPE, "config": config, "layers": [],
    });
    let digest =
        at.push_manifest(Some("1.0"), MANIFEST_MEDIA_TYPE, manifest.to_string().as_bytes()).await.unwrap();
    assert_eq!(at.resolve("1.0").await.unwrap(), digest);

    let without_password = open(&reference, &access(true, &empty)).unwrap().resolve("1.0").await;
    assert!(matches!(without_password, Err(RegistryError::Denied { .. })), "{without_password:?}");
    let without_authority = open(&reference, &access(false, &password)).unwrap().resolve("1.0").await;
    let error = without_authority.unwrap_err();
    assert!(matches!(error, RegistryError::Broken { .. }), "{error}");
    assert!(error.to_string().contains("an authority that this machine does not know"), "{error}");
    let no_certificate =
        open(&reference, &RegistryAccess { ca_file: Some(empty), ..RegistryAccess::default() });
    assert!(matches!(no_certificate.err(), Some(RegistryError::Refused { .. })));
}

/// Set where the system has no certificates, so that a test can see that it is really so.
const NO_AUTHORITIES: &str = "SWITCHBACK_TEST_NO_AUTHORITIES";

#[tokio::test]
async fn plain_http_goes_to_named_hosts_alone() {
    if std::env::var_os(NO_AUTHORITIES).is_some() {
        assert!(reqwest::Client::builder().build().is_err(), "the system has certificates after all");
    }
    let server = FaultServer::start(|_| Reply::new(200, "{}")).await.unwrap();
    let unnamed = RegistryAccess { patience: hasty(), ..RegistryAccess::default() };
    let at = HttpRegistry::new(server.host(), "os", unnamed).unwrap();
    let error = at.resolve("1.0").await.unwrap_err();
    assert!(matches!(error, RegistryError::Unreachable { .. }), "TLS to a plain server: {error}");
    assert!(server.requests().is_empty(), "not one request in the clear");
    client(&[&server], None).resolve("1.0").await.unwrap();
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_broken_body_is_resumed_where_it_stopped() {
    let content = content(100_000);
    let blob = blob(&content);
    let served = content.clone();
    let server = FaultServer::start(move |request: &Request| match request.number {
        0..=2 => Reply::serve(&served, request).broken_after(20_000),
        _ => Reply::serve(&served, request),
    });
    let server = server.await.unwrap();
    let at = client(&[&server], None);
    assert!(read(&at, &blob, 10_000..90_000).await.unwrap() == content[10_000..90_000]);
    let ranges: Vec<_> = server.requests().iter().map(|request| request.range().unwrap()).collect();
    assert_eq!(ranges, [10_000..=89_999, 30_000..=89_999, 50_000..=89_999, 70_000..=89_999]);
}

#[tokio::test]
async fn a_body_that_always_breaks_is_given_up() {
    let content = content(10_000);
    let blob = blob(&content);
    let server = FaultServer::start(move |request| Reply::serve(&content, request).broken_after(1));
    let server = server.await.unwrap();
    let error = read(&client(&[&server], None), &blob, 0..10_000).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("at byte 4 of 10000"), "{error}");
    assert_eq!(server.requests().len(), 4);
}

#[tokio::test]
async fn everything_in_answer_to_a_range_is_cut_from_that_one_pass() {
    let content = content(50_000);
    let blob = blob(&content);
    let served = content.clone();
    let server = FaultServer::start(move |_| Reply::new(200, served.clone())).await.unwrap();
    let at = client(&[&server], None);
    assert!(at.serves_ranges());
    assert!(read(&at, &blob, 10_000..20_000).await.unwrap() == content[10_000..20_000]);
    assert!(!at.serves_ranges(), "the caller learns that one pass is cheaper");
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn an_answer_with_other_bytes_than_the_wanted_ones_is_refused() {
    let content = content(1000);
    let blob = blob(&content);
    for (reply, why) in [
        (Reply::new(206, &content[100..150]), "`nothing`"),
        (Reply::new(206, &content[..100]).with("Content-Range", "bytes 0-99/1000"), "bytes 0-99/1000"),
        (Reply::new(206, &content[100..200]).with("Content-Range", "bytes 100-199/2000"), "/2000"),
        (Reply::new(206, &content[100..150]).with("Content-Range", "bytes 100-149/1000"), "100-149"),
        (Reply::new(206, "--x").with("Content-Type", "multipart/byteranges; boundary=x"), "`nothing`"),
        (Reply::new(200, &content[..500]), "500 bytes are announced"),
        (Reply::new(416, ""), "status 416"),
        (Reply::new(204, ""), "status 204"),
        (Reply::new(206, "x").with("Content-Encoding", "gzip"), "compressed"),
    ] {
        let server = FaultServer::start(move |_| reply.clone()).await.unwrap();
        let error = read(&client(&[&server], None), &blob, 100..200).await.unwrap_err();
        assert!(matches!(error, RegistryError::Broken { .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(server.requests().len(), 1, "asking again would give the same");
    }
}

#[tokio::test]
async fn an_endless_body_ends_at_the_limit() {
    let piece = content(10_000);
    let blob = Descriptor { size: 50_000, ..blob(&piece) };
    let server = FaultServer::start(move |request| {
        let range = request.range().map(|range| format!("bytes {}-{}/50000", range.start(), range.end()));
        match range {
            Some(range) => Reply::new(206, piece.clone()).with("Content-Range", &range).endless(),
            None => Reply::new(200, piece.clone()).endless(),
        }
    });
    let server = server.await.unwrap();
    let at = client(&[&server], None);
    assert!(matches!(
        at.manifest_by_tag("1.0", 30_000).await,
        Err(RegistryError::TooLarge { limit: 30_000, .. })
    ));
    assert!(matches!(at.blob(&blob, 1 << 20).await, Err(RegistryError::TooLarge { limit: 50_000, .. })));
    assert_eq!(read(&at, &blob, 10..40_010).await.unwrap().len(), 40_000);
}

#[tokio::test]
async fn a_manifest_that_announces_too_much_is_not_read() {
    let server = FaultServer::start(|_| Reply::new(200, vec![b' '; 5 << 20])).await.unwrap();
    let error = client(&[&server], None).resolve("1.0").await.unwrap_err();
    assert!(matches!(error, RegistryError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn other_bytes_than_the_digest_says_are_refused() {
    let server = FaultServer::start(|_| Reply::new(200, "{}")).await.unwrap();
    let at = client(&[&server], None);
    let error = at.manifest(&Digest::of(b"x"), 1000).await.unwrap_err();
    assert!(matches!(error, RegistryError::Mismatch { .. }), "{error}");
    let error = at.blob(&describe("x", Digest::of(b"x"), 2), 1000).await.unwrap_err();
    assert!(matches!(error, RegistryError::Mismatch { .. }), "{error}");
    let error = at.blob(&describe("x", Digest::of(b"{}"), 3), 1000).await.unwrap_err();
    assert!(matches!(error, RegistryError::Length { .. }), "{error}");
}

#[tokio::test]
async fn a_digest_or_tag_that_climbs_never_becomes_a_request() {
    let server = FaultServer::start(|_| Reply::new(200, "{}")).await.unwrap();
    let at = client(&[&server], None);
    for tag in ["../../v2/other/manifests/1.0", "1.0?x=1", "a/b", "", ".", &"x".repeat(129)] {
        assert!(matches!(at.resolve(tag).await, Err(RegistryError::Refused { .. })), "{tag}");
    }
    let list = r#"{"manifests":[{"mediaType":"x","digest":"sha256:../../../etc/passwd","size":1}]}"#;
    let server = FaultServer::start(move |_| Reply::new(200, list)).await.unwrap();
    assert_eq!(client(&[&server], None).referrers(&Digest::of(b"x")).await.unwrap(), []);
}

#[tokio::test]
async fn a_list_of_referrers_is_cut_off() {
    let entry = |n: u32| describe("x", Digest::of(&n.to_le_bytes()), 1);
    let list: Vec<_> = (0..5000).map(entry).collect();
    let list = serde_json::json!({ "manifests": list }).to_string();
    let server = FaultServer::start(move |_| Reply::new(200, list.clone())).await.unwrap();
    assert_eq!(client(&[&server], None).referrers(&Digest::of(b"x")).await.unwrap().len(), 1024);
}

#[tokio::test]
async fn silence_and_dripping_are_given_up_in_time() {
    let content = content(20_000);
    let blob = blob(&content);
    let silent = FaultServer::start(|_| Reply::silence()).await.unwrap();
    let began = Instant::now();
    let error = client(&[&silent], None).resolve("1.0").await.unwrap_err();
    assert!(matches!(error, RegistryError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("silent"), "{error}");
    let dripping =
        FaultServer::start(move |request| Reply::serve(&content, request).drip(Duration::from_millis(20)));
    let dripping = dripping.await.unwrap();
    let error = read(&client(&[&dripping], None), &blob, 0..20_000).await.unwrap_err();
    assert!(error.to_string().contains("bytes in 500ms"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_busy_registry_is_asked_again_when_it_wants_to_be() {
    for (status, wait) in [(429, Some("1")), (503, None), (500, None), (502, None)] {
        let server = FaultServer::start(move |request| match (request.number, wait) {
            (0, Some(wait)) => Reply::new(status, "").with("Retry-After", wait),
            (0 | 1, _) => Reply::new(status, ""),
            _ => Reply::new(200, "{}"),
        });
        let server = server.await.unwrap();
        let began = Instant::now();
        client(&[&server], None).resolve("1.0").await.unwrap();
        assert_eq!(server.requests().len(), 3, "{status}");
        assert_eq!(began.elapsed() >= Duration::from_secs(1), wait.is_some(), "{:?}", began.elapsed());
    }
    let server = FaultServer::start(|_| Reply::new(429, "").with("Retry-After", "86400")).await.unwrap();
    let error = client(&[&server], None).resolve("1.0").await.unwrap_err();
    assert!(matches!(error, RegistryError::Unreachable { .. }), "{error}");
    assert_eq!(server.requests().len(), 1, "a day is not waited for");
}

#[tokio::test]
async fn a_password_goes_to_the_registry_that_asked_and_to_no_other_host() {
    let folder = tempfile::tempdir().unwrap();
    let content = content(5000);
    let blob = blob(&content);
    let served = content.clone();
    let storage = FaultServer::start(move |request| Reply::serve(&served, request)).await.unwrap();
    let place = format!("http://{}/signed?secret=1", storage.host());
    let registry = FaultServer::start(move |request| match request.header("authorization") {
        Some(PASSWORD) => Reply::new(307, "").with("Location", &place),
        _ => Reply::new(401, "").with("WWW-Authenticate", r#"Basic realm="x""#),
    });
    let registry = registry.await.unwrap();
    let file = auth_file(folder.path(), registry.host());
    let at = client(&[&registry, &storage], Some(&file));
    for range in [0..100, 100..200, 200..300] {
        assert!(
            read(&at, &blob, range.clone()).await.unwrap()
                == content[range.start as usize..range.end as usize]
        );
    }
    assert_eq!(registry.requests().len(), 2, "asked without, then with; then the storage is known");
    assert_eq!(registry.requests()[0].header("authorization"), None, "not before it is asked for");
    assert_eq!(storage.requests().len(), 3);
    assert!(storage.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn a_storage_address_that_expired_is_asked_for_anew() {
    let content = content(5000);
    let blob = blob(&content);
    let served = content.clone();
    let storage = FaultServer::start(move |request| match request.number {
        1 => Reply::new(403, "expired"),
        _ => Reply::serve(&served, request),
    });
    let storage = storage.await.unwrap();
    let place = format!("http://{}/signed", storage.host());
    let registry = FaultServer::start(move |_| Reply::new(302, "").with("Location", &place)).await.unwrap();
    let at = client(&[&registry, &storage], None);
    for range in [0..100, 100..200] {
        assert!(
            read(&at, &blob, range.clone()).await.unwrap()
                == content[range.start as usize..range.end as usize]
        );
    }
    assert_eq!((registry.requests().len(), storage.requests().len()), (2, 3));
}

#[tokio::test]
async fn a_redirect_leads_to_no_unnamed_plain_host_no_other_scheme_and_not_in_circles() {
    let other = FaultServer::start(|_| Reply::new(200, "{}")).await.unwrap();
    let other_place = format!("http://{}/", other.host());
    for (location, why) in [
        (other_place.as_str(), "plain HTTP"),
        ("file:///etc/passwd", "`file:`"),
        ("/v2/os/manifests/1.0", "redirects"),
    ] {
        let place = location.to_owned();
        let server = FaultServer::start(move |_| Reply::new(302, "").with("Location", &place)).await.unwrap();
        let error = client(&[&server], None).resolve("1.0").await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    assert!(other.requests().is_empty());
}

#[tokio::test]
async fn a_token_is_fetched_when_asked_for_and_again_when_it_expires() {
    let folder = tempfile::tempdir().unwrap();
    let service = FaultServer::start(|request| match request.header("authorization") {
        Some(PASSWORD) => Reply::new(200, format!(r#"{{"token":"t{}"}}"#, request.number)),
        _ => Reply::new(401, ""),
    });
    let service = service.await.unwrap();
    let challenge = format!(r#"Bearer realm="http://{}/token",service="lab""#, service.host());
    // Every token is good for two requests.
    let registry = FaultServer::start(move |request| {
        let good = match request.number {
            0..=2 => "Bearer t0",
            _ => "Bearer t1",
        };
        match request.header("authorization") {
            Some(token) if token == good => Reply::new(200, "{}"),
            _ => Reply::new(401, "").with("WWW-Authenticate", &challenge),
        }
    });
    let registry = registry.await.unwrap();
    let file = auth_file(folder.path(), registry.host());
    let at = client(&[&registry, &service], Some(&file));
    for _ in 0..4 {
        at.resolve("1.0").await.unwrap();
    }
    assert_eq!(service.requests().len(), 2);
    assert_eq!(service.requests()[0].path, "/token?service=lab&scope=repository%3Aos%3Apull");
    assert!(registry.requests().iter().all(|request| request.header("authorization") != Some(PASSWORD)));

    // A token service at a host that is not named for plain HTTP sees nothing.
    let at = client(&[&registry], Some(&file));
    let error = at.resolve("1.0").await.unwrap_err();
    assert!(matches!(error, RegistryError::Refused { .. }), "{error}");
    assert_eq!(service.requests().len(), 2);
}

#[tokio::test]
async fn a_refused_access_is_told_from_an_absent_image() {
    for (status, absent) in [(403, false), (401, false), (404, true)] {
        let server = FaultServer::start(move |_| Reply::new(status, "")).await.unwrap();
        let error = client(&[&server], None).resolve("1.0").await.unwrap_err();
        assert_eq!(error.is_absent(), absent, "{error}");
        assert_eq!(matches!(error, RegistryError::Denied { .. }), !absent, "{error}");
    }
}

#[tokio::test]
async fn a_named_authority_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(folder.path(), 2).unwrap();
    let registry = Registry::start_with(&folder.path().join("registry"), &certificates.settings()).unwrap();
    let access = RegistryAccess {
        ca_file: Some(certificates.authority),
        patience: hasty(),
        ..RegistryAccess::default()
    };
    let error = HttpRegistry::new(&registry.host(), "os", access).unwrap().resolve("1.0").await.unwrap_err();
    assert!(error.is_absent(), "{error}");
}

#[test]
fn a_device_without_ca_certificates_reaches_named_plain_hosts_and_named_authorities() {
    let empty = tempfile::tempdir().unwrap();
    for test in ["plain_http_goes_to_named_hosts_alone", "a_named_authority_is_enough"] {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.env("SSL_CERT_FILE", "/dev/null").env("SSL_CERT_DIR", empty.path()).env(NO_AUTHORITIES, "1");
        let said = tools::run(again.args(["--exact", test])).unwrap();
        assert!(said.contains("1 passed"), "{said}");
    }
}
