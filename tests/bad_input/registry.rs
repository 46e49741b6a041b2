//! A registry that is away, refuses, errs, or is not one.

use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;

use switchback::reason::Reason;
use switchback_tests::certificates::Certificates;
use switchback_tests::faults::{FaultServer, Reply, Request};
use switchback_tests::lab::registry::Registry;
use switchback_tests::lab::tools;
use switchback_tests::upstream;

use crate::ground::{Ground, Place};
use crate::table::{Changed, Table};

/// Servers that misbehave, and what they run on.
struct Servers {
    runtime: tokio::runtime::Runtime,
    running: Vec<FaultServer>,
}

impl Servers {
    fn new() -> Servers {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
        Servers { runtime, running: Vec::new() }
    }

    /// A place that looks at a server which answers so.
    fn place(
        &mut self,
        ground: &Arc<Ground>,
        answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Place {
        let server = self.runtime.block_on(FaultServer::start(answer)).unwrap();
        let place = Place::new(ground).looks_at_host(server.host());
        self.running.push(server);
        place
    }
}

/// The answers of the real registry, but for requests that `spoils`.
fn but_for(
    registry: &Registry,
    spoils: impl Fn(&Request) -> bool + Send + Sync + 'static,
    reply: Reply,
) -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
    let host = registry.host();
    move |request| match spoils(request) {
        true => reply.clone(),
        false => upstream::ask(&host, request).unwrap_or_else(|error| Reply::new(500, format!("{error:?}"))),
    }
}

/// A place that looks for a name which no name server can be asked for: its command has a network of its own, without any
/// line.
fn nowhere(ground: &Arc<Ground>) -> Place {
    let mut place = Place::new(ground).looks_at("registry.invalid/os:1.3", "");
    place.under = Some(Box::new(|command| {
        let mut alone = Command::new(tools::program("unshare", "util-linux").unwrap());
        if !nix::unistd::geteuid().is_root() {
            alone.arg("--map-root-user");
        }
        alone.arg("--net").arg(command.get_program()).args(command.get_args());
        alone
    }));
    place
}

#[test]
fn a_registry_that_gives_no_release_changes_nothing() {
    use Changed::{IdleSlot, Nothing};
    let (ground, mut table) = (Ground::get(), Table::new("The registry"));
    let mut servers = Servers::new();
    let release = Place::new(&ground).forge().draft("1.3").unwrap().manifest;
    let (chunks, kernel) =
        (release.slots[0].blob.digest.to_string(), release.boot[0].blob.digest.to_string());
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let good = ground.registry(&folder.path().join("registry"), "");
    let no_such_tag = {
        let host = good.host();
        Place::new(&ground).looks_at(&format!("{host}/os:none"), &format!("plain_http = [\"{host}\"]"))
    };
    let always = |status: u16| move |_: &Request| Reply::new(status, "");
    let busy = |wait: &'static str| move |_: &Request| Reply::new(429, "").with("Retry-After", wait);
    let garbage = |_: &Request| {
        Reply::new(200, "{\"schemaVersion\": 2, \"lay")
            .with("Content-Type", "application/vnd.oci.image.manifest.v1+json")
    };
    let page = |_: &Request| {
        Reply::new(200, "<html><body>Please log in.</body></html>")
            .with("Content-Type", "text/html; charset=utf-8")
    };
    let moved = |request: &Request| Reply::new(302, "").with("Location", &request.path);
    let unreachable = Reason::RegistryUnreachable;
    table.refused_at_once(vec![
        ("nobody listens there", Place::new(&ground).looks_at_host(&closed), unreachable, Nothing),
        ("its name is not found", nowhere(&ground), unreachable, Nothing),
        ("no such tag (404)", no_such_tag, Reason::RegistryAbsent, Nothing),
        (
            "the chunks are missing (404)",
            servers.place(&ground, but_for(&good, move |r| r.path.contains(&chunks), Reply::new(404, ""))),
            Reason::RegistryAbsent,
            IdleSlot,
        ),
        (
            "a boot file is missing (404)",
            servers.place(&ground, but_for(&good, move |r| r.path.contains(&kernel), Reply::new(404, ""))),
            Reason::RegistryAbsent,
            IdleSlot,
        ),
        ("it wants credentials (401)", servers.place(&ground, always(401)), Reason::RegistryDenied, Nothing),
        ("it refuses the access (403)", servers.place(&ground, always(403)), Reason::RegistryDenied, Nothing),
        ("it is busy for ever (429)", servers.place(&ground, busy("1")), unreachable, Nothing),
        ("it is busy for a day (429)", servers.place(&ground, busy("86400")), unreachable, Nothing),
        ("it fails for ever (500)", servers.place(&ground, always(500)), unreachable, Nothing),
        ("its answers are no JSON", servers.place(&ground, garbage), Reason::RegistryBroken, Nothing),
        ("a login page answers", servers.place(&ground, page), Reason::RegistryBroken, Nothing),
        ("it redirects in a circle", servers.place(&ground, moved), Reason::RegistryBroken, Nothing),
    ]);
    table.finish();
    for (server, at_most) in servers.running.iter().zip([400, 400, 2, 2, 12, 2, 12]) {
        let requests = server.requests().len();
        assert!(requests > 0 && requests <= at_most, "{requests} requests at {}", server.host());
    }
}

#[test]
fn tls_that_cannot_be_believed_changes_nothing() {
    let (ground, mut table) = (Ground::get(), Table::new("TLS"));
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(&folder.path().join("good"), 2).unwrap();
    let registry = ground.registry(&folder.path().join("tls"), &certificates.settings());
    let in_the_clear = ground.registry(&folder.path().join("plain"), "");
    let image = format!("{}/os:1.3", registry.host());
    let broken = Reason::RegistryBroken;
    let place = Place::new(&ground).looks_at(&image, "");
    table.refused("its certificate's authority is not known", place, broken, Changed::Nothing);
    let other = Certificates::new(&folder.path().join("other"), 2).unwrap();
    let place = Place::new(&ground).looks_at(&image, &format!("ca_file = {:?}", other.authority));
    table.refused("its certificate is of another authority", place, broken, Changed::Nothing);
    let plain = format!("{}/os:1.3", in_the_clear.host());
    let place = Place::new(&ground).looks_at(&plain, "");
    table.refused("it speaks plain HTTP, and is not named for that", place, broken, Changed::Nothing);
    let place = Place::new(&ground).looks_at_host(&registry.host());
    table.refused("it speaks TLS, and is named for plain HTTP", place, broken, Changed::Nothing);
    table.finish();
}
