//! Mirrors before a registry: what they bring, what they may cost when they fail, and what they are never believed in.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use switchback::digest::Digest;
use switchback::registry::meter::Limits;
use switchback::registry::reference::Reference;
use switchback::registry::{Descriptor, Registry as _, RegistryAccess, RegistryError, open_mirrored};
use switchback_partitions::slot::Slot;
use switchback_tests::faults::{FaultServer, Reply};
use switchback_tests::fetching::{PASSWORD, access, auth_file, blob, content, read};
use switchback_tests::lab::nginx::Nginx;
use switchback_tests::lab::registry::Registry;
use switchback_tests::machine::Machine;
use switchback_tests::scene::{SMALL_DISK, Scene};
use switchback_tests::signers::repository;
use switchback_tests::story::{ROOT_BYTES, ask};
use switchback_tests::upstream;

/// The repository `os` of a source and of its mirrors, opened as an update opens it.
fn mirrored(
    source: &str,
    mirrors: &[&str],
    access: &RegistryAccess,
) -> Box<dyn switchback::registry::Registry> {
    let at = |host: &str| -> Reference { format!("{host}/os").parse().unwrap() };
    let mirrors: Vec<Reference> = mirrors.iter().map(|host| at(host)).collect();
    open_mirrored(&at(source), &mirrors, access).unwrap()
}

fn plain(hosts: &[&str]) -> RegistryAccess {
    access(hosts, Limits::default())
}

/// A real registry that holds `content`.
async fn registry_with(folder: &Path, content: &[u8]) -> (Registry, Descriptor) {
    let registry = Registry::start(&folder.join("registry")).unwrap();
    let file = folder.join("blob");
    std::fs::write(&file, content).unwrap();
    let blob = blob(content);
    repository(&registry, "os").unwrap().push_blob_file(&blob, &file).await.unwrap();
    (registry, blob)
}

fn closed() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[tokio::test]
async fn a_dead_or_silent_mirror_costs_one_wait_in_a_whole_run() {
    let folder = tempfile::tempdir().unwrap();
    let content = content(100_000);
    let (registry, blob) = registry_with(folder.path(), &content).await;
    let silent = FaultServer::start(|_| Reply::silence()).await.unwrap();
    let (source, dead) = (registry.host(), closed());
    let access = plain(&[&source, &dead, silent.host()]);
    let at = mirrored(&source, &[&dead, silent.host()], &access);
    for start in (0..100_000).step_by(10_000) {
        let bytes = read(&*at, &blob, start..start + 10_000).await.unwrap();
        assert!(bytes == content[start as usize..start as usize + 10_000], "{start}");
    }
    assert!(at.blob(&blob, 100_000).await.unwrap() == content);
    assert_eq!(silent.requests().len(), 2, "asked, asked once more, and never again");
}

#[tokio::test]
async fn a_mirror_that_lacks_a_blob_is_asked_for_it_once_and_for_others_still() {
    let folder = tempfile::tempdir().unwrap();
    let content = content(10_000);
    let (registry, there) = registry_with(folder.path(), &content).await;
    let other = b"only the mirror has this".to_vec();
    let (absent, served) = (there.digest.to_string(), other.clone());
    let mirror = FaultServer::start(move |request| match request.path.contains(&absent) {
        true => Reply::new(404, ""),
        false => Reply::serve(&served, request),
    });
    let mirror = mirror.await.unwrap();
    let source = registry.host();
    let at = mirrored(&source, &[mirror.host()], &plain(&[&source, mirror.host()]));
    for _ in 0..5 {
        assert!(read(&*at, &there, 100..200).await.unwrap() == content[100..200]);
    }
    assert!(at.blob(&there, 10_000).await.unwrap() == content);
    assert_eq!(mirror.requests().len(), 1);
    assert_eq!(at.blob(&blob(&other), 100).await.unwrap(), other);
}

#[tokio::test]
async fn a_mirror_that_breaks_in_the_middle_is_gone_on_from_by_the_source() {
    let content = content(90_000);
    let served = content.clone();
    let mirror = FaultServer::start(move |request| Reply::serve(&served, request).broken_after(20_000));
    let mirror = mirror.await.unwrap();
    let served = content.clone();
    let source = FaultServer::start(move |request| Reply::serve(&served, request)).await.unwrap();
    let at = mirrored(source.host(), &[mirror.host()], &plain(&[source.host(), mirror.host()]));
    assert!(read(&*at, &blob(&content), 10_000..80_000).await.unwrap() == content[10_000..80_000]);
    assert_eq!(mirror.requests().len(), 2, "it is asked to go on once");
    assert_eq!(source.requests()[0].range(), Some(50_000..=79_999), "not a byte is asked for twice");
    assert!(read(&*at, &blob(&content), 0..10_000).await.unwrap() == content[..10_000]);
    assert_eq!(mirror.requests().len(), 2, "then it is left alone");
}

#[tokio::test]
async fn a_mirror_with_other_bytes_is_left_after_the_third_and_believed_never() {
    let content = content(5000);
    let mirror = FaultServer::start(|_| Reply::new(200, "nonsense")).await.unwrap();
    let served = content.clone();
    let source = FaultServer::start(move |request| Reply::serve(&served, request)).await.unwrap();
    let at = mirrored(source.host(), &[mirror.host()], &plain(&[source.host(), mirror.host()]));
    for _ in 0..5 {
        assert!(at.blob(&blob(&content), 5000).await.unwrap() == content);
    }
    assert_eq!((mirror.requests().len(), source.requests().len()), (3, 5));
    assert!(!at.disown_mirrors(), "it gave nothing that anybody took");
}

#[tokio::test]
async fn tags_and_manifests_come_from_the_source_or_by_their_digest_from_a_mirror() {
    let manifest = r#"{"schemaVersion":2}"#;
    let digest = Digest::of(manifest.as_bytes());
    let mirror = FaultServer::start(move |_| Reply::new(200, manifest)).await.unwrap();
    let source = FaultServer::start(move |_| Reply::new(200, manifest)).await.unwrap();
    let at = mirrored(source.host(), &[mirror.host()], &plain(&[source.host(), mirror.host()]));
    assert_eq!(at.resolve("1.0").await.unwrap(), digest);
    assert_eq!(at.manifest(&digest, 1000).await.unwrap(), manifest.as_bytes());
    at.manifest_by_tag("1.0", 1000).await.unwrap();
    at.referrers(&digest).await.unwrap();
    assert!(mirror.requests().is_empty(), "while the source answers, no mirror is asked");

    let dead = closed();
    let at = mirrored(&dead, &[mirror.host()], &plain(&[&dead, mirror.host()]));
    assert_eq!(at.manifest(&digest, 1000).await.unwrap(), manifest.as_bytes());
    let other = at.manifest(&Digest::of(b"x"), 1000).await.unwrap_err();
    assert!(matches!(other, RegistryError::Unreachable { .. }), "{other}");
    let tag = at.resolve("1.0").await.unwrap_err();
    assert!(matches!(tag, RegistryError::Unreachable { .. }), "{tag}");
    assert!(mirror.requests().iter().all(|request| request.path.contains("sha256:")));
}

#[tokio::test]
async fn each_mirror_gets_the_credentials_of_its_own_host() {
    let folder = tempfile::tempdir().unwrap();
    let content = content(5000);
    let served = content.clone();
    let mirror = FaultServer::start(move |request| match request.header("authorization") {
        Some(PASSWORD) => Reply::serve(&served, request),
        _ => Reply::new(401, "").with("WWW-Authenticate", r#"Basic realm="x""#),
    });
    let mirror = mirror.await.unwrap();
    let refusing =
        || FaultServer::start(|_| Reply::new(401, "").with("WWW-Authenticate", r#"Basic realm="x""#));
    let (other, source) = (refusing().await.unwrap(), refusing().await.unwrap());
    let hosts = [source.host(), other.host(), mirror.host()];
    let access = RegistryAccess { auth_file: Some(auth_file(folder.path(), mirror.host())), ..plain(&hosts) };
    let at = mirrored(source.host(), &[other.host(), mirror.host()], &access);
    assert!(read(&*at, &blob(&content), 100..200).await.unwrap() == content[100..200]);
    assert_eq!((source.requests().len(), other.requests().len()), (0, 1));
    assert!(other.requests()[0].header("authorization").is_none());
}

/// An author, a registry with 1.1 and a machine with 1.0.
struct Stage {
    scene: Scene,
    registry: Registry,
    machine: Machine,
    key: PathBuf,
}

fn stage() -> Stage {
    let scene = Scene::new().unwrap();
    let registry = Registry::start(&scene.folder().join("registry")).unwrap();
    let key = scene.desk.path("os.pub");
    for version in ["1.0", "1.1"] {
        scene.release(version, true, ROOT_BYTES).unwrap();
    }
    let mut machine = scene.machine("", &[&key], "").unwrap();
    scene.provision(&machine, &scene.desk.reference("1.0"), &key, &SMALL_DISK).unwrap();
    machine.pretend(Slot::A).unwrap();
    let stage = Stage { scene, registry, machine, key };
    stage.push_to(&stage.registry.host());
    stage
}

impl Stage {
    fn push_to(&self, host: &str) {
        let more = ["--plain-http", host, "--with-signatures"];
        self.scene.desk.push("1.1", &format!("{host}/os"), &more).unwrap();
    }

    /// A copy of the machine that follows the registry with these mirrors.
    fn device(&self, name: &str, mirrors: &[&str], plain: &[&str]) -> Machine {
        let host = self.registry.host();
        let plain: Vec<&str> = plain.iter().copied().chain([host.as_str()]).collect();
        let settings = format!(
            "[source]\nimage = \"{host}/os:1.1\"\nplain_http = {plain:?}\nmirrors = {mirrors:?}\n\
             [trust.policy.os]\nkeys = {:?}\n",
            [&self.key]
        );
        self.machine.copy(&self.scene.folder().join(name), &settings).unwrap()
    }

    /// Updates a device; gives what it fetched.
    fn update(&self, device: &Machine) -> u64 {
        let staged = ask(device, &["update", "--stage"], 0);
        assert_eq!(staged.said["outcome"], "staged", "{}", staged.said);
        staged.number("/traffic/fetched").unwrap()
    }

    fn blobs_served(&self) -> (u64, u64) {
        self.registry.served("/blobs/").unwrap()
    }
}

#[test]
fn an_update_takes_its_blobs_from_a_second_registry_or_a_stick_and_all_else_from_the_source() {
    let stage = stage();
    let mirror = Registry::start(&stage.scene.folder().join("mirror")).unwrap();
    stage.push_to(&mirror.host());
    let before = stage.blobs_served();
    let at_mirror = || (mirror.served("/blobs/").unwrap(), mirror.served("/manifests/1.1").unwrap());
    let (blobs_before, tags_before) = at_mirror();
    let host = mirror.host();
    let device = stage.device("second", &[&format!("{host}/os")], &[&host]);
    let fetched = stage.update(&device);
    assert_eq!(stage.blobs_served(), before, "the source is asked for no blob");
    let (blobs, tags) = at_mirror();
    assert!(blobs.1 - blobs_before.1 >= fetched, "{blobs_before:?} {blobs:?} {fetched}");
    assert_eq!(tags, tags_before, "a mirror says nothing of tags");

    let stick = format!("oci:{}", stage.scene.desk.path("images").display());
    let device = stage.device("stick", &["oci:not-plugged-in", &stick], &[]);
    let staged = ask(&device, &["update", "--stage"], 0);
    assert_eq!(stage.blobs_served(), before);
    let came = staged.number("/network/bytes").unwrap();
    assert!(came < fetched / 10, "documents alone came over the network: {came} of {fetched}");
}

#[test]
fn wrong_bytes_of_a_mirror_are_fetched_again_from_the_source_and_what_was_right_is_kept() {
    let stage = stage();
    let host = stage.registry.host();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // The mirror's disk is bad: whatever is larger than a document is spoilt.
    let mirror = runtime.block_on(FaultServer::start(move |request| {
        let reply =
            upstream::ask(&host, request).unwrap_or_else(|error| Reply::new(500, format!("{error:?}")));
        if reply.body_bytes() > 100_000 { reply.spoilt() } else { reply }
    }));
    let mirror = mirror.unwrap();
    let device = stage.device("spoilt", &[&format!("{}/os", mirror.host())], &[mirror.host()]);
    stage.update(&device);
    assert!(!mirror.requests().is_empty(), "it was asked");
    let large = mirror.requests().iter().filter(|request| request.path.contains("/blobs/")).count();
    let status = ask(&device, &["status"], 0);
    assert_eq!(status.said["state"], "staged");
    println!("{large} blobs asked for at the mirror before it was left alone");
}

#[test]
fn a_second_device_behind_a_caching_nginx_costs_the_registry_nothing() {
    let stage = stage();
    let nginx = Nginx::before(&stage.registry.host(), &stage.scene.folder().join("nginx")).unwrap();
    let host = nginx.host();
    let before = stage.blobs_served();
    let mirror = format!("{host}/os");
    let fetched = stage.update(&stage.device("first", &[&mirror], &[&host]));
    let first = stage.blobs_served();
    assert!(first.1 - before.1 >= fetched, "it fills its cache: {before:?}, {first:?}");
    assert_eq!(stage.update(&stage.device("second", &[&mirror], &[&host])), fetched);
    assert_eq!(stage.blobs_served(), first, "not one blob more");

    let (requests, bytes) = (first.0 - before.0, first.1 - before.1);
    println!(
        "{fetched} bytes fetched by each of two devices; the registry sent {bytes} in {requests} answers"
    );
}
