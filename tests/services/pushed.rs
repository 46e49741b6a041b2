//! Images as people push them: by skopeo, buildah and podman, as OCI and as Docker manifests, to a real registry.
//!
//! Rule: the registry and all who push run inside the machine; none of the host's own images or credentials is seen.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use switchback_tests::lab::{containers, tools};
use switchback_tests::services::{Recipe, ServiceLab};

use super::scene::{DNS, DNSMASQ, asked, dnsmasq, nothing_is_lost};

const REGISTRY: &str = "127.0.0.1:5000";
const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// `docker-registry` in the machine.
struct Registry(Child);

impl Drop for Registry {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn registry(lab: &ServiceLab) -> Registry {
    let config = lab.path("registry.yml");
    let text = format!(
        "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {REGISTRY}\n",
        lab.path("registry").display()
    );
    std::fs::write(&config, text).unwrap();
    let mut server =
        lab.inside(false, &tools::program("docker-registry", "docker-registry").unwrap()).unwrap();
    let server =
        server.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = Registry(server.spawn().unwrap());
    let bash = tools::program("bash", "bash").unwrap();
    let began = Instant::now();
    let listens = || {
        let mut look = lab.inside(false, &bash).unwrap();
        let look = look.args(["-c", "exec 3<>/dev/tcp/127.0.0.1/5000"]).stderr(Stdio::null());
        look.status().unwrap().success()
    };
    while !listens() {
        assert!(began.elapsed() < Duration::from_secs(30), "the registry does not listen");
        std::thread::sleep(Duration::from_millis(100));
    }
    server
}

/// A program of the machine's, with its images and home in the machine's folder.
fn program(lab: &ServiceLab, name: &str, package: &str) -> Command {
    let mut command = lab.inside(false, &tools::program(name, package).unwrap()).unwrap();
    let folder = lab.path("");
    command
        .envs(containers::environment(&folder).unwrap())
        .env("HOME", &folder)
        .env("XDG_RUNTIME_DIR", &folder);
    command
}

#[test]
fn images_pushed_by_skopeo_buildah_and_podman_are_deployed() {
    let mut lab = ServiceLab::new().unwrap();
    let _registry = registry(&lab);
    // The tag, who pushes it, the words, and what comes to lie in the registry.
    let rows: [(&str, &str, &[&str], &str); 6] = [
        ("skopeo-oci", "skopeo", &["copy", "--dest-tls-verify=false"], OCI),
        ("skopeo-docker", "skopeo", &["copy", "--dest-tls-verify=false", "--format", "v2s2"], DOCKER),
        ("buildah-oci", "buildah", &["push", "--tls-verify=false", "--format", "oci"], OCI),
        ("buildah-docker", "buildah", &["push", "--tls-verify=false", "--format", "v2s2"], DOCKER),
        ("podman-oci", "podman", &["push", "--tls-verify=false", "--format", "oci"], OCI),
        ("podman-docker", "podman", &["push", "--tls-verify=false", "--format", "v2s2"], DOCKER),
    ];
    for (tag, pusher, words, media_type) in rows {
        lab.cook(&Recipe {
            tag,
            programs: DNSMASQ,
            files: &[],
            command: &dnsmasq("--address=/example.internal/192.0.2.1"),
        })
        .unwrap();
        let to = format!("{REGISTRY}/system/dnsmasq:{tag}");
        let from = if pusher == "skopeo" { lab.reference(tag) } else { format!("localhost/{tag}") };
        let mut push = program(&lab, pusher, pusher);
        tools::run(push.args(words).args([&from, &format!("docker://{to}")])).unwrap();
        let mut look = program(&lab, "skopeo", "skopeo");
        let raw =
            tools::run(look.args(["inspect", "--raw", "--tls-verify=false", &format!("docker://{to}")]))
                .unwrap();
        let manifest: Value = serde_json::from_str(&raw).unwrap();
        assert_eq!(manifest["mediaType"].as_str().unwrap_or(OCI), media_type, "{tag}: {raw}");
        lab.services = format!(
            "{}[source]\nplain_http = [\"{REGISTRY}\"]\n",
            DNS.replace("IMAGE", &to).replace("DRAIN", "1s")
        );
        lab.services = lab.services.replace("soak = \"5s\"", "soak = \"1s\"");
        let unsigned = lab.ask(&["update", "dns"]).unwrap();
        assert_eq!(unsigned.code, 10, "{tag}: {}", unsigned.said);
        // Half of them with the bundle of cosign 3, half with the tag of cosign 2.
        let mut sign = lab.signing(&to).unwrap();
        sign.args(["--plain-http", REGISTRY]);
        if media_type == DOCKER {
            sign.arg("--legacy");
        }
        tools::run(&mut sign).unwrap();
        let answer = lab.ask(&["update", "dns"]).unwrap();
        assert_eq!(answer.code, 0, "{tag}: {} {}", answer.said, answer.told);
        assert_eq!(answer.said["release"]["version"], tag, "{}", answer.said);
        println!("{tag}: {media_type}, signed and deployed in {} s", answer.said["seconds"]);
        nothing_is_lost(&format!("pushed by {tag}"), &asked(&lab, 2, 10).reports().unwrap());
    }
}
