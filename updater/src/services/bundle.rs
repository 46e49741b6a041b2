//! What an OCI runtime is told of one slot: its `config.json` (OCI runtime-spec 1.0, config.md).
//!
//! Not here: starting it (`runtime`). Rule: a service gets what its declaration names and nothing else: no capability, a root
//! that it cannot write, no new privileges, its own namespaces, a bound on memory and processes.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxMemoryBuilder, LinuxNamespace,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder, LinuxResourcesBuilder, Mount, MountBuilder,
    ProcessBuilder, RootBuilder, Spec, SpecBuilder, User, UserBuilder, get_default_maskedpaths,
    get_default_mounts, get_default_namespaces, get_default_readonly_paths,
};
use switchback_partitions::slot::Slot;

use super::store::Stored;
use crate::config::service::{Name, Service};
use crate::file;

/// The longest list of users or groups that is read, in bytes.
const USERS_BYTES_MAX: u64 = 1 << 20;
/// Where programs are looked for when the image does not say.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// In a network of its own no port is anybody else's: a service needs no capability to bind port 53.
const FREE_PORTS: (&str, &str) = ("net.ipv4.ip_unprivileged_port_start", "0");

/// Why a service cannot be run as it is declared.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Neither the declaration nor the image names a program.
    #[error("while preparing the service {service}: its image names no program; give it a `command`")]
    NoProgram {
        /// Which.
        service: Name,
    },
    /// A name that the image does not know.
    #[error("while preparing the service {service}: its image knows no {what} `{name}`")]
    Unknown {
        /// Which.
        service: Name,
        /// `user` or `group`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A capability that no kernel has.
    #[error("while preparing the service {service}: there is no capability {name}")]
    NoCapability {
        /// Which.
        service: Name,
        /// Its name.
        name: String,
    },
    /// The specification's own rules.
    #[error("while preparing the service {service}")]
    Spec {
        /// Which.
        service: Name,
        /// What is wrong.
        source: OciSpecError,
    },
}

/// One slot of one service, as it is to run.
pub struct Slotted<'a> {
    /// The service.
    pub name: &'a Name,
    /// As it is declared.
    pub service: &'a Service,
    /// Which slot.
    pub slot: Slot,
    /// The image in it.
    pub image: &'a Stored,
    /// Its network namespace; `None`: one of its own with nothing in it.
    pub network: Option<&'a Path>,
    /// The folder with the volumes.
    pub volumes: &'a Path,
}

impl Slotted<'_> {
    /// What the runtime is told.
    pub fn spec(&self) -> Result<Spec, BundleError> {
        let args = self.args()?;
        let user = self.user()?;
        let capabilities = self.capabilities()?;
        self.build(args, user, capabilities)
            .map_err(|source| BundleError::Spec { service: self.name.clone(), source })
    }

    fn build(
        &self,
        args: Vec<String>,
        user: User,
        capabilities: HashSet<Capability>,
    ) -> Result<Spec, OciSpecError> {
        let config = self.image.config.config().as_ref();
        let cwd = config.and_then(|config| config.working_dir().clone()).filter(|cwd| cwd.starts_with('/'));
        let set = LinuxCapabilitiesBuilder::default()
            .bounding(capabilities.clone())
            .effective(capabilities.clone())
            .permitted(capabilities.clone())
            .inheritable(capabilities.clone())
            .ambient(capabilities)
            .build()?;
        let process = ProcessBuilder::default()
            .terminal(false)
            .user(user)
            .args(args)
            .env(self.env())
            .cwd(cwd.unwrap_or_else(|| "/".into()))
            .capabilities(set)
            .no_new_privileges(true)
            .build()?;
        let root = RootBuilder::default().path(&self.image.root).readonly(true).build()?;
        let resources = LinuxResourcesBuilder::default()
            .memory(LinuxMemoryBuilder::default().limit(signed(self.service.memory.0)).build()?)
            .pids(LinuxPidsBuilder::default().limit(i64::from(self.service.pids)).build()?)
            .build()?;
        let linux = LinuxBuilder::default()
            .namespaces(self.namespaces()?)
            .sysctl(HashMap::from([(FREE_PORTS.0.to_owned(), FREE_PORTS.1.to_owned())]))
            .resources(resources)
            .cgroups_path(PathBuf::from("/switchback").join(format!("{}-{}", self.name, self.slot)))
            .masked_paths(get_default_maskedpaths())
            .readonly_paths(get_default_readonly_paths())
            .build()?;
        SpecBuilder::default()
            .version("1.0.2")
            .hostname(self.name.as_str())
            .process(process)
            .root(root)
            .mounts(self.mounts()?)
            .linux(linux)
            .build()
    }

    /// The declaration's command, or the image's entry point and its arguments.
    fn args(&self) -> Result<Vec<String>, BundleError> {
        let config = self.image.config.config().as_ref();
        let own = || {
            let parts = config.map(|config| [config.entrypoint().clone(), config.cmd().clone()]);
            parts.into_iter().flatten().flatten().flatten().collect()
        };
        let args: Vec<String> =
            if self.service.command.is_empty() { own() } else { self.service.command.clone() };
        match args.is_empty() {
            true => Err(BundleError::NoProgram { service: self.name.clone() }),
            false => Ok(args),
        }
    }

    /// The image's environment with the declaration's on top; nothing of this process's own.
    fn env(&self) -> Vec<String> {
        let config = self.image.config.config().as_ref();
        let image = config.and_then(|config| config.env().clone()).unwrap_or_default();
        let key = |line: &String| line.split('=').next().unwrap_or_default().to_owned();
        let mut env: Vec<String> =
            image.into_iter().filter(|line| !self.service.env.contains_key(&key(line))).collect();
        env.extend(self.service.env.iter().map(|(key, value)| format!("{key}={value}")));
        if !env.iter().any(|line| line.starts_with("PATH=")) {
            env.push(PATH.to_owned());
        }
        env
    }

    fn capabilities(&self) -> Result<HashSet<Capability>, BundleError> {
        let named = self.service.capabilities.iter().map(|capability| {
            let unknown =
                || BundleError::NoCapability { service: self.name.clone(), name: capability.full() };
            capability.name().parse::<Capability>().map_err(|_| unknown())
        });
        named.collect()
    }

    /// The user and group of the declaration, or the image's, or root; names are looked up in the image.
    fn user(&self) -> Result<User, BundleError> {
        let config = self.image.config.config().as_ref();
        let image = || config.and_then(|config| config.user().clone());
        let text = self.service.user.clone().or_else(image).unwrap_or_default();
        let (user, group) =
            text.split_once(':').map_or((&text[..], None), |(user, group)| (user, Some(group)));
        let unknown = |what, name: &str| BundleError::Unknown {
            service: self.name.clone(),
            what,
            name: name.to_owned(),
        };
        let (uid, own_gid) = match user {
            "" => (0, 0),
            user => match user.parse() {
                Ok(uid) => (uid, self.entry("etc/passwd", |line| line[2] == user).map_or(0, |entry| entry.1)),
                Err(_) => {
                    self.entry("etc/passwd", |line| line[0] == user).ok_or_else(|| unknown("user", user))?
                }
            },
        };
        let gid = match group {
            None => own_gid,
            Some(group) => match group.parse() {
                Ok(gid) => gid,
                Err(_) => {
                    let found = self.entry("etc/group", |line| line[0] == group);
                    found.ok_or_else(|| unknown("group", group))?.0
                }
            },
        };
        let built = UserBuilder::default().uid(uid).gid(gid).build();
        built.map_err(|source| BundleError::Spec { service: self.name.clone(), source })
    }

    /// The third and fourth word of the line of a list of users or groups in the image.
    fn entry(&self, path: &str, is_it: impl Fn(&[&str]) -> bool) -> Option<(u32, u32)> {
        let root = &self.image.root;
        let bytes = file::read_inside(Some(root), &root.join(path), USERS_BYTES_MAX).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let line = lines.find(|line| line.len() >= 3 && is_it(line))?;
        Some((line[2].parse().ok()?, line.get(3).and_then(|word| word.parse().ok()).unwrap_or(0)))
    }

    fn namespaces(&self) -> Result<Vec<LinuxNamespace>, OciSpecError> {
        let mut namespaces = get_default_namespaces();
        if let Some(network) = self.network {
            namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Network);
            let ours = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Network).path(network);
            namespaces.push(ours.build()?);
        }
        Ok(namespaces)
    }

    fn mounts(&self) -> Result<Vec<Mount>, OciSpecError> {
        let mut mounts = get_default_mounts();
        for (place, mode) in [("/run", "mode=0755"), ("/tmp", "mode=1777")] {
            let options = ["nosuid", "nodev", mode, "size=65536k"].map(str::to_owned).to_vec();
            let mount = MountBuilder::default().destination(place).typ("tmpfs").source("tmpfs");
            mounts.push(mount.options(options).build()?);
        }
        for volume in &self.service.volumes {
            let options = ["rbind", "rw", "nosuid", "nodev"].map(str::to_owned).to_vec();
            let mount = MountBuilder::default().destination(&volume.path).typ("bind");
            let mount = mount.source(self.volumes.join(volume.name.as_str())).options(options);
            mounts.push(mount.build()?);
        }
        Ok(mounts)
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::digest::Digest;

    /// The specification of a service that is declared so, from an image whose config says that.
    fn spec(declared: &str, config: Value) -> Result<Value, String> {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), "root:x:0:0::/:\ndns:x:53:530::/:\n").unwrap();
        std::fs::write(root.path().join("etc/group"), "dns:x:530:\nlog:x:4:\n").unwrap();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": config, "rootfs": { "type": "layers", "diff_ids": [] }
        });
        let image = Stored::of(Digest::of(b""), root.path(), serde_json::from_value(config).unwrap());
        let service: Service = toml::from_str(&format!("image = \"x/y\"\n{declared}")).unwrap();
        let (name, volumes) = ("dns".parse().unwrap(), Path::new("/data/volumes"));
        let slotted = Slotted {
            name: &name,
            service: &service,
            slot: Slot::A,
            image: &image,
            network: Some(Path::new("/run/netns/switchback-0-a")),
            volumes,
        };
        slotted.spec().map(|spec| serde_json::to_value(spec).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_service_that_asks_for_nothing_gets_nothing() {
        let spec = spec("", json!({ "Entrypoint": ["/dns"], "Cmd": ["-k"], "Env": ["A=1"] })).unwrap();
        assert_eq!(spec["process"]["args"], json!(["/dns", "-k"]));
        assert_eq!(spec["process"]["noNewPrivileges"], true);
        for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
            assert_eq!(spec["process"]["capabilities"][set], json!([]), "{set}");
        }
        assert_eq!(spec["root"]["readonly"], true);
        assert_eq!(spec["linux"]["resources"]["memory"]["limit"], 256 << 20);
        assert_eq!(spec["linux"]["resources"]["pids"]["limit"], 64);
        let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
        let kinds: Vec<&str> = namespaces.iter().map(|one| one["type"].as_str().unwrap()).collect();
        for kind in ["pid", "ipc", "uts", "mount", "cgroup", "network"] {
            assert!(kinds.contains(&kind), "{kinds:?}");
        }
        let network = namespaces.iter().find(|one| one["type"] == "network").unwrap();
        assert_eq!(network["path"], "/run/netns/switchback-0-a");
        let binds = spec["mounts"].as_array().unwrap().iter().filter(|mount| mount["type"] == "bind");
        assert_eq!(binds.count(), 0);
        let env = spec["process"]["env"].as_array().unwrap();
        assert!(
            env.contains(&"A=1".into()) && env.iter().any(|line| line.as_str().unwrap().starts_with("PATH="))
        );
    }

    #[test]
    fn what_is_declared_goes_before_what_the_image_says() {
        let declared = "command = [\"/other\"]\nenv = { A = \"2\" }\nuser = \"dns:log\"\n\
                        capabilities = [\"CAP_SYS_TIME\"]\nvolumes = [\"leases:/var/lib/misc\"]\nmemory = \"8M\"";
        let image = json!({ "Entrypoint": ["/dns"], "Cmd": ["-k"], "Env": ["A=1", "B=1"], "User": "0" });
        let spec = spec(declared, image).unwrap();
        assert_eq!(spec["process"]["args"], json!(["/other"]));
        let env = spec["process"]["env"].as_array().unwrap();
        assert!(env.contains(&"A=2".into()) && env.contains(&"B=1".into()) && !env.contains(&"A=1".into()));
        assert_eq!(
            (&spec["process"]["user"]["uid"], &spec["process"]["user"]["gid"]),
            (&53.into(), &4.into())
        );
        assert_eq!(spec["process"]["capabilities"]["effective"], json!(["CAP_SYS_TIME"]));
        assert_eq!(spec["linux"]["resources"]["memory"]["limit"], 8 << 20);
        let mounts = spec["mounts"].as_array().unwrap();
        let bind = mounts.iter().find(|mount| mount["type"] == "bind").unwrap();
        assert_eq!(bind["source"], "/data/volumes/leases");
        assert_eq!(bind["destination"], "/var/lib/misc");
    }

    #[test]
    fn users_are_those_of_the_image_and_unknown_ones_are_named() {
        let user = |text: &str| {
            let spec = spec(&format!("user = \"{text}\""), json!({ "Cmd": ["/x"] }))?;
            let number = |key: &str| spec["process"]["user"][key].as_u64().unwrap();
            Ok::<_, String>((number("uid"), number("gid")))
        };
        for (text, expected) in [
            ("dns", (53, 530)),
            ("53", (53, 530)),
            ("7", (7, 0)),
            ("7:8", (7, 8)),
            ("root", (0, 0)),
            ("0:dns", (0, 530)),
        ] {
            assert_eq!(user(text), Ok(expected), "{text}");
        }
        assert!(user("nobody").unwrap_err().contains("knows no user `nobody`"));
        assert!(user("dns:staff").unwrap_err().contains("knows no group `staff`"));
        assert!(spec("", json!({})).unwrap_err().contains("names no program"));
        let odd = spec("capabilities = [\"FLY\"]", json!({ "Cmd": ["/x"] }));
        assert!(odd.unwrap_err().contains("there is no capability CAP_FLY"));
    }
}
