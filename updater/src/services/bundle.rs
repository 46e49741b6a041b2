//! What an OCI runtime is told of one slot: its `config.json` (OCI runtime-spec 1.0, config.md and config-linux.md).
//!
//! Not here: starting it (`runtime`). Rule: a service gets what its declaration names and nothing else: no capability, a root
//! that it cannot write, no new privileges, its own namespaces, a bound on memory and processes, no system call that
//! reaches past them.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use switchback_partitions::slot::Slot;

use super::store::{SchemaError, Stored};
use super::volume::Volumes;
use crate::config::service::{Name, Service};
use crate::file;

/// The longest list of users or groups that is read, in bytes.
const USERS_BYTES_MAX: u64 = 1 << 20;
/// Where programs are looked for when the image does not say.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// In a network of its own no port is anybody else's: a service needs no capability to bind port 53.
const FREE_PORTS: (&str, &str) = ("net.ipv4.ip_unprivileged_port_start", "0");
/// The namespaces that each slot has for itself, beside that of its network.
const NAMESPACES: [&str; 5] = ["pid", "ipc", "uts", "mount", "cgroup"];
/// What the kernel tells in `/proc` and `/sys` and no service needs to know.
const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
/// Switches of the kernel that a process of user 0 could turn even without a capability.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Calls that need no capability, or only one in a user namespace of one's own, and have been the way out of many a
/// container: the kernel says no to them.
const DENIED_CALLS: [&str; 16] = [
    "add_key",
    "bpf",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "mount",
    "open_by_handle_at",
    "perf_event_open",
    "process_vm_writev",
    "ptrace",
    "request_key",
    "unshare",
    "userfaultfd",
];
/// The capabilities of Linux 6.12 (include/uapi/linux/capability.h), without `CAP_`.
const CAPABILITIES: &str = "AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN \
    DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD \
    NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT \
    SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM";

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
    /// A label of the image.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// A capability that no kernel has.
    #[error("while preparing the service {service}: there is no capability {name}")]
    NoCapability {
        /// Which.
        service: Name,
        /// Its name.
        name: String,
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
    /// Where the volumes are.
    pub volumes: &'a Volumes,
}

/// A service's user, as its image counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

impl Slotted<'_> {
    /// What the runtime is told.
    pub fn spec(&self) -> Result<Value, BundleError> {
        let User { uid, gid } = self.user()?;
        let caps = self.capabilities()?;
        let config = self.image.config.config.as_ref();
        let cwd = config.and_then(|config| config.working_dir.clone()).filter(|cwd| cwd.starts_with('/'));
        let (port_switch, first_port) = FREE_PORTS;
        Ok(json!({
            "ociVersion": "1.0.2",
            "hostname": self.name.as_str(),
            "process": {
                "terminal": false,
                "user": { "uid": uid, "gid": gid },
                "args": self.args()?,
                "env": self.env(),
                "cwd": cwd.unwrap_or_else(|| "/".into()),
                "capabilities": {
                    "bounding": caps, "effective": caps, "permitted": caps, "inheritable": caps, "ambient": caps,
                },
                "noNewPrivileges": true,
            },
            "root": { "path": self.image.root, "readonly": true },
            "mounts": self.mounts()?,
            "linux": {
                "namespaces": self.namespaces(),
                "sysctl": { port_switch: first_port },
                "resources": {
                    "memory": { "limit": signed(self.service.memory.0) },
                    "pids": { "limit": self.service.pids },
                },
                "cgroupsPath": group(self.name, self.slot),
                "seccomp": {
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [{ "names": DENIED_CALLS, "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
                },
                "maskedPaths": MASKED,
                "readonlyPaths": READ_ONLY,
            },
        }))
    }

    /// The declaration's command, or the image's entry point and its arguments.
    fn args(&self) -> Result<Vec<String>, BundleError> {
        let config = self.image.config.config.as_ref();
        let own = || {
            let parts = config.map(|config| [config.entrypoint.clone(), config.cmd.clone()]);
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
        let config = self.image.config.config.as_ref();
        let image = config.and_then(|config| config.env.clone()).unwrap_or_default();
        let key = |line: &String| line.split('=').next().unwrap_or_default().to_owned();
        let mut env: Vec<String> =
            image.into_iter().filter(|line| !self.service.env.contains_key(&key(line))).collect();
        env.extend(self.service.env.iter().map(|(key, value)| format!("{key}={value}")));
        if !env.iter().any(|line| line.starts_with("PATH=")) {
            env.push(PATH.to_owned());
        }
        env
    }

    fn capabilities(&self) -> Result<Vec<String>, BundleError> {
        let named = self.service.capabilities.iter().map(|capability| {
            let is_known = CAPABILITIES.split_whitespace().any(|name| name == capability.name());
            let unknown =
                || BundleError::NoCapability { service: self.name.clone(), name: capability.full() };
            is_known.then(|| capability.full()).ok_or_else(unknown)
        });
        named.collect()
    }

    /// The user and group of the declaration, or the image's, or root; names are looked up in the image.
    pub fn user(&self) -> Result<User, BundleError> {
        let config = self.image.config.config.as_ref();
        let image = || config.and_then(|config| config.user.clone());
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
        Ok(User { uid, gid })
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

    fn namespaces(&self) -> Vec<Value> {
        let mut namespaces: Vec<Value> = NAMESPACES.iter().map(|kind| json!({ "type": kind })).collect();
        namespaces.push(match self.network {
            Some(network) => json!({ "type": "network", "path": network }),
            None => json!({ "type": "network" }),
        });
        namespaces
    }

    /// What every service finds in its root (runtime-spec, config-linux.md, "Default Filesystems"), two places to write to that
    /// end with it, and its volumes.
    fn mounts(&self) -> Result<Vec<Value>, SchemaError> {
        let mount = |place: &str, kind: &str, options: &[&str]| json!({ "destination": place, "type": kind, "source": kind, "options": options });
        let quiet = ["nosuid", "noexec", "nodev"];
        let mut mounts = vec![
            mount("/proc", "proc", &quiet),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=64k"]),
            mount(
                "/dev/pts",
                "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            ),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &quiet),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
            mount("/run", "tmpfs", &["nosuid", "nodev", "mode=0755", "size=65536k"]),
            mount("/tmp", "tmpfs", &["nosuid", "nodev", "mode=1777", "size=65536k"]),
        ];
        for volume in &self.service.volumes {
            let folder = self.volumes.path(&volume.name, self.image.schema(&volume.name)?);
            mounts.push(json!({
                "destination": volume.path, "type": "bind", "source": folder,
                "options": ["rbind", "rw", "nosuid", "nodev"],
            }));
        }
        Ok(mounts)
    }
}

/// The control group of a slot.
pub(super) fn group(name: &Name, slot: Slot) -> PathBuf {
    PathBuf::from("/switchback").join(format!("{name}-{slot}"))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
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
        let (name, volumes) = ("dns".parse().unwrap(), Volumes::of(Path::new("/data")));
        let slotted = Slotted {
            name: &name,
            service: &service,
            slot: Slot::A,
            image: &image,
            network: Some(Path::new("/run/netns/switchback-0-a")),
            volumes: &volumes,
        };
        let spec = slotted.spec().map_err(|error| error.to_string())?;
        // Written by hand, it must be what the specification's own types read, and nothing that they do not know.
        let read: oci_spec::runtime::Spec = serde_json::from_value(spec.clone()).unwrap();
        let again = serde_json::to_value(read).unwrap();
        assert_eq!(again["mounts"].as_array().map(Vec::len), spec["mounts"].as_array().map(Vec::len));
        for part in ["process", "root", "linux"] {
            let keys = |value: &Value| value[part].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
            assert!(keys(&spec).iter().all(|key| keys(&again).contains(key)), "{part}: {again}");
        }
        Ok(spec)
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
    fn a_volume_is_that_of_the_schema_which_the_image_names() {
        let labelled =
            |schema: &str| json!({ "Cmd": ["/x"], "Labels": { "io.switchback.schema.leases": schema } });
        let declared = "volumes = [\"leases:/var/lib/misc\", \"keys:/keys\"]";
        let spec = spec(declared, labelled("2"));
        let mounts = spec.unwrap()["mounts"].as_array().unwrap().clone();
        let sources: Vec<_> = mounts
            .iter()
            .filter(|mount| mount["type"] == "bind")
            .map(|mount| mount["source"].clone())
            .collect();
        assert_eq!(sources, ["/data/volumes/leases@2", "/data/volumes/keys"]);
        let wrong = self::spec(declared, labelled("two")).unwrap_err();
        assert!(wrong.contains("io.switchback.schema.leases is `two`"), "{wrong}");
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
