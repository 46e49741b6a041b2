//! The reference appliance as a release: a root with an init of its own, an OCI runtime and what leads clients to services.
//!
//! Not here: its init (`tests/appliance/init`), its services (`service_image`), what is asked of it (`tests/appliance.rs`). Rule: what the
//! appliance needs is in its root; what the test needs is named `lab` there and is nothing else's.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::fixtures::Lab;
use super::release::{
    Kernel, PRODUCT, Release, copy, make_folders, write, write_busybox, write_guest_parts, write_updater,
};
use super::tools;
use crate::service_image::copy_program;

/// What kernel and initramfs may take together, in bytes.
pub const BOOT_BYTES_MAX: u64 = 20 << 20;

/// What runs containers and leads clients to them, with Debian's packages.
const PROGRAMS: [(&str, &str); 4] =
    [("crun", "crun"), ("nft", "nftables"), ("ip", "iproute2"), ("conntrack", "conntrack")];

/// What the kernel needs for the network, for virtual cables and to lead clients to a slot; what they depend on comes along.
const MODULES: [&str; 10] = [
    "virtio_net",
    "veth",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_ct",
    "nft_fib_inet",
    "nft_objref",
    "nf_conntrack_netlink",
    "nfnetlink_cttimeout",
];

/// The only users there are.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nrancher:x:1000:1000:rancher:/:/bin/sh\n";
const GROUP: &str = "root:x:0:\nrancher:x:1000:\n";
/// `nft` knows transports by these names.
const PROTOCOLS: &str = "icmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6-icmp 58 IPv6-ICMP\n";

/// The supervisor runs.
const HEALTH: &str = "[[check]]\nname = \"supervisor\"\nkind = \"command\"\n\
                      command = [\"/etc/appliance/supervised\"]\ntimeout = \"30s\"\n";
const SUPERVISED: &str = "#!/bin/sh\nfor p in /proc/[0-9]*; do\n    [ \"$(tr '\\0' ' ' <$p/cmdline)\" != 'switchback daemon ' ] || exit 0\n\
                          done 2>/dev/null\necho 'the supervisor does not run' >&2\nexit 1\n";

/// A release of the appliance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appliance {
    /// Its version.
    pub version: &'static str,
}

impl Release for Appliance {
    fn name(&self) -> String {
        format!("appliance-{}", self.version)
    }

    fn version(&self) -> &str {
        self.version
    }

    fn slot_size(&self) -> &'static str {
        "96M"
    }

    fn state_size(&self) -> &'static str {
        "384M"
    }

    fn build(&self, lab: &Lab, layout: &Path) -> Result<()> {
        let root = tempfile::Builder::new().prefix("lab-appliance").tempdir()?;
        self.write_root(root.path(), &lab.key())?;
        let (kernel, modules) = Kernel::V6_1.files()?;
        let mut command = Command::new(tools::switchback()?);
        command.args([
            "image",
            "build",
            "--product",
            PRODUCT,
            "--name",
            "appliance",
            "--version",
            self.version,
        ]);
        command.arg("--root").arg(root.path()).arg("--kernel").arg(kernel).arg("--modules-dir").arg(modules);
        command.arg("--init-binary").arg(tools::device_binary()?);
        // `panic=-1`: a panic resets at once.
        command.args(["--cmdline", "console=ttyS0 quiet panic=-1", "--level", "3"]);
        command.arg("--output").arg(format!("oci:{}", layout.display()));
        tools::run(&mut command).map(drop)
    }
}

impl Appliance {
    fn write_root(&self, root: &Path, key: &Path) -> Result<()> {
        make_folders(root)?;
        fs::create_dir_all(root.join("etc/appliance"))?;
        write_busybox(root)?;
        for (program, package) in PROGRAMS {
            copy_program(root, program, package)?;
        }
        write_updater(root, key)?;
        write_modules(root)?;
        copy(&tools::appliance_init()?, &root.join("sbin/init"), 0o755)?;
        let version = self.version;
        let os_release = format!("ID=appliance\nNAME=Appliance\nVERSION_ID={version}\n");
        write(root, "etc/os-release", &os_release, 0o644)?;
        write(root, "etc/passwd", PASSWD, 0o644)?;
        write(root, "etc/group", GROUP, 0o644)?;
        write(root, "etc/protocols", PROTOCOLS, 0o644)?;
        write(root, "usr/lib/switchback/health.d/appliance.toml", HEALTH, 0o644)?;
        write(root, "etc/appliance/supervised", SUPERVISED, 0o755)?;
        write(root, "etc/appliance/start", include_str!("appliance/start"), 0o644)?;
        write_guest_parts(root, version, "appliance")?;
        write(root, "etc/switchback/lab.template", include_str!("appliance/config.toml"), 0o644)?;
        write(root, "usr/bin/lab-hands", include_str!("appliance/lab-hands"), 0o755)
    }
}

/// The modules and the list in loading order, as the appliance's init reads it.
fn write_modules(root: &Path) -> Result<()> {
    let (_, folder) = Kernel::V6_1.files()?;
    let version = folder.file_name().context("modules lie in a folder of their kernel's name")?;
    let base = folder.ancestors().nth(3).context("modules lie in lib/modules")?;
    let mut order: Vec<PathBuf> = Vec::new();
    for name in MODULES {
        let mut depends = Command::new(tools::program("modprobe", "kmod")?);
        depends.arg("-d").arg(base).arg("-S").arg(version).args(["--show-depends", name]);
        let said = tools::run(&mut depends)?;
        for line in said.lines().filter_map(|line| line.strip_prefix("insmod ")) {
            let path = Path::new(line.trim()).strip_prefix(base)?.to_owned();
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    let mut list = OsString::new();
    for path in &order {
        let to = root.join(path);
        fs::create_dir_all(to.parent().context("a module lies in a folder")?)?;
        copy(&base.join(path), &to, 0o644)?;
        list.push(Path::new("/").join(path));
        list.push("\n");
    }
    write(root, "etc/appliance/modules", &list.to_string_lossy(), 0o644)
}
