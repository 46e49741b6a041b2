//! The command line's grammar, and a line for each verb and option.
//!
//! Not here: what the verbs do (`engine`, `publish`), how answers look (`render`), the rest of the help (`help`). Rule:
//! typed text is checked here, as far as it can be without looking at the machine.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use switchback_partitions::slot::Slot;

use super::help;
use crate::byte_size::ByteSize;
use crate::config::service::Name;
#[cfg(feature = "author")]
use crate::container::Platform;
use crate::registry::reference::Reference;
use crate::services::holder;

/// Atomic A/B upgrades with a way back.
#[derive(Debug, Parser)]
#[command(
    name = "switchback",
    version,
    about = "Atomic A/B operating system upgrades with a way back",
    long_about = "Switchback writes a signed operating system image to the slot that does not run, proves what it \
                  wrote, changes one boot entry, health-checks after the reboot and returns by itself when the \
                  machine is not well. The running slot is never written.",
    after_help = help::SWITCHBACK
)]
pub struct Cli {
    /// Configuration file [default: /etc/switchback/config.toml]; `config.d/*.toml` beside it is read too
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print one JSON document instead of sentences
    #[arg(long, global = true)]
    pub json: bool,
    /// How long work shows on standard error: a bar on a terminal and JSON lines elsewhere, unless said otherwise
    #[arg(long, global = true, value_enum, default_value_t, env = "SWITCHBACK_PROGRESS")]
    pub progress: ProgressStyle,
    /// Exit with 2 instead of 0 when something was changed
    #[arg(long, global = true)]
    pub detailed_exitcode: bool,
    /// Say more on standard error (twice: much more)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// The verb.
    #[command(subcommand)]
    pub verb: Verb,
}

/// How long work shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ProgressStyle {
    /// A bar on a terminal, JSON lines elsewhere
    #[default]
    Auto,
    /// A bar with bytes, speed and remaining time
    Bar,
    /// One JSON document a line
    Json,
    /// Sentences only
    None,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// What runs, what the other slot holds, what happens next and what blocks it
    #[command(after_help = help::STATUS)]
    Status {
        /// Only this service, as it is declared under [service.NAME]
        #[arg(value_name = "SERVICE")]
        service: Option<Name>,
    },
    /// Ask the source whether there is a release to move to; changes nothing
    #[command(after_help = help::CHECK)]
    Check(SourceArgs),
    /// Write a release to the slot that does not run, prove it and arm it; or move a service to its image
    #[command(after_help = help::UPDATE)]
    Update(UpdateArgs),
    /// Go back to what is in the other slot, of the OS or of a service (a trial like any other; nothing is fetched)
    #[command(after_help = help::ROLLBACK)]
    Rollback(RollbackArgs),
    /// What happened: updates, confirmations, returns and their reasons; newest last
    #[command(after_help = help::HISTORY)]
    History {
        /// A service, as it is declared under [service.NAME]; absent: the operating system
        #[arg(value_name = "SERVICE")]
        service: Option<Name>,
        /// Show only the last N entries
        #[arg(long, short = 'n', default_value_t = 20, value_name = "N")]
        limit: usize,
    },
    /// What is kept of starts that failed: health checks, kernel log, crash record, journal; or what a service wrote
    #[command(after_help = help::LOGS)]
    Logs {
        /// A version or a digest, or the beginning of one, as `switchback history` shows them; absent: the newest
        #[arg(value_name = "VERSION|DIGEST", conflicts_with = "service")]
        release: Option<String>,
        /// The end of what this service wrote, in both slots, as it is declared under [service.NAME]
        #[arg(long, value_name = "SERVICE")]
        service: Option<Name>,
    },
    /// Releases that failed here and are not taken again; an operator may release one
    #[command(subcommand, after_help = help::QUARANTINE)]
    Quarantine(QuarantineVerb),
    /// Read all of both slots and compare every byte with what was signed; changes nothing
    #[command(after_help = help::VERIFY)]
    Verify {
        /// Only this slot
        #[arg(value_name = "a|b")]
        slot: Option<Slot>,
    },
    /// Bring the machine to what a file says and say whether that changed anything; for configuration management
    #[command(after_help = help::APPLY)]
    Apply {
        /// The desired state (TOML)
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Say what would be done; change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Run the health checks now and list every failure; changes nothing
    #[command(after_help = help::HEALTH)]
    Health,
    /// After each boot: observe, health-check, confirm or return (called by the system, not by people)
    #[command(after_help = help::BOOT_CHECK)]
    BootCheck {
        /// Decide and say, but leave the reboot of a return to the caller
        #[arg(long)]
        no_reboot: bool,
        /// Judge nothing: leave a mark that the trial's deadline has passed, for the history (asked by the deadline's unit)
        #[arg(long, conflicts_with = "no_reboot")]
        deadline_passed: bool,
    },
    /// Run the declared services, and act by [schedule] (started by the system, not by people)
    #[command(after_help = help::DAEMON)]
    Daemon,
    /// Look at everything that an update relies on and say what is missing; changes nothing
    #[command(after_help = help::DOCTOR)]
    Doctor(DoctorArgs),
    /// Make a blank disk or image file bootable from a release
    #[command(after_help = help::PROVISION)]
    Provision(ProvisionArgs),
    /// The author's side: build, push, sign and inspect images
    #[cfg(feature = "author")]
    #[command(subcommand, after_help = help::IMAGE)]
    Image(ImageVerb),
    /// Print a completion script for a shell
    #[command(after_help = help::COMPLETIONS)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write all of them into a folder, one for each verb
    #[command(after_help = help::MAN)]
    Man {
        /// The folder that all pages go to; it is made when it is missing
        #[arg(long, value_name = "FOLDER")]
        output: Option<PathBuf>,
    },
    /// Become PID 1 of an initramfs: find the slot, open dm-verity, switch root (started by the kernel)
    #[command(hide = true)]
    Init(InitArgs),
    /// Stay beside a service's container and write down how it ends (started by the daemon and by orders)
    #[command(hide = true, name = holder::VERB)]
    Hold {
        /// The folder of the container
        bundle: PathBuf,
        /// What makes the container
        #[arg(last = true, required = true)]
        command: Vec<std::ffi::OsString>,
    },
}

/// What may be done with the quarantine.
#[derive(Debug, Subcommand)]
pub enum QuarantineVerb {
    /// The releases that failed here, and why
    #[command(after_help = help::QUARANTINE_LIST)]
    List {
        /// A service, as it is declared under [service.NAME]; absent: the operating system
        #[arg(value_name = "SERVICE")]
        service: Option<Name>,
    },
    /// Let a release be tried again; if it fails again, it is quarantined again
    #[command(after_help = help::QUARANTINE_RELEASE, allow_missing_positional = true)]
    Release {
        /// A service, as it is declared under [service.NAME]; absent: the operating system
        #[arg(value_name = "SERVICE")]
        service: Option<Name>,
        /// A version, a digest or the beginning of one, as `switchback quarantine list` shows them
        #[arg(value_name = "VERSION|DIGEST")]
        release: String,
    },
}

/// Where a release is looked for.
#[derive(Debug, Clone, Args)]
pub struct SourceArgs {
    /// A tag, a digest (`@sha256:…`) or a whole reference (`host/repo:tag`, `oci:FOLDER:tag`); default: the configured source
    #[arg(long, value_name = "RELEASE", value_parser = release_name)]
    pub to: Option<String>,
}

/// Options of `update`.
#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// A service, as it is declared under [service.NAME]; absent: the operating system
    #[arg(value_name = "SERVICE", conflicts_with_all = ["dry_run", "stage", "reboot"])]
    pub service: Option<Name>,
    /// Where to look.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Say what would be fetched and written; change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Stop when the slot is written and proven; do not arm it
    #[arg(long, conflicts_with = "reboot")]
    pub stage: bool,
    /// Reboot into the trial as soon as it is armed
    #[arg(long)]
    pub reboot: bool,
}

/// Options of `rollback`.
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// A service, as it is declared under [service.NAME]; absent: the operating system
    #[arg(value_name = "SERVICE", conflicts_with_all = ["dry_run", "below_floor", "reboot"])]
    pub service: Option<Name>,
    /// Say what would happen; change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Allow a release whose security version is below the floor
    #[arg(long)]
    pub below_floor: bool,
    /// Reboot into the trial as soon as it is armed
    #[arg(long)]
    pub reboot: bool,
}

/// Options of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Do not ask the registry
    #[arg(long)]
    pub offline: bool,
}

/// Options of `provision`.
#[derive(Debug, Args)]
pub struct ProvisionArgs {
    /// Whole disk (`/dev/vda`) or image file; a file that does not exist is created with --size
    pub target: PathBuf,
    /// The release for slot A: `oci:FOLDER:tag`, `host/repo:tag` or `…@sha256:…`
    #[arg(long, value_name = "RELEASE")]
    pub release: Reference,
    /// Public key (PEM) the release must be signed with; may be given several times
    #[arg(long, value_name = "FILE", required = true)]
    pub trust: Vec<PathBuf>,
    /// How many distinct keys must have signed
    #[arg(long, default_value_t = 1)]
    pub threshold: usize,
    /// Size of a new image file, e.g. `2G`
    #[arg(long, value_name = "SIZE")]
    pub size: Option<ByteSize>,
    /// Size of each root slot; default: a quarter of what the other partitions leave, at most 8 GiB
    #[arg(long, value_name = "SIZE")]
    pub slot_size: Option<ByteSize>,
    /// Size of the EFI system partition; default: 128 MiB, or more when the boot files need it
    #[arg(long, value_name = "SIZE")]
    pub esp_size: Option<ByteSize>,
    /// Size of the state partition; default: 64 MiB, or more when the boot files need it
    #[arg(long, value_name = "SIZE")]
    pub state_size: Option<ByteSize>,
    /// Logical sector size of a new image file in bytes: 512 or 4096
    #[arg(long, default_value_t = 512)]
    pub sector_size: u32,
    /// The systemd-boot binary for the ESP
    #[arg(long, value_name = "FILE", default_value = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi")]
    pub loader: PathBuf,
    /// Registries that may be asked over plain HTTP, as `host:port`
    #[arg(long, value_name = "HOST:PORT")]
    pub plain_http: Vec<String>,
    /// Overwrite a disk that already holds a partition table
    #[arg(long)]
    pub force: bool,
    /// Print the plan; change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Options of `init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Hold the watchdog until the boot is confirmed or its deadline passed
    #[arg(long)]
    pub keep_watchdog: bool,
}

/// The author's verbs.
#[cfg(feature = "author")]
#[derive(Debug, Subcommand)]
pub enum ImageVerb {
    /// Turn a root folder, partition image or container image, and a kernel or UKI, into a release in an OCI layout folder
    #[command(after_help = help::IMAGE_BUILD)]
    Build(Box<BuildArgs>),
    /// Bind an OS image and the service images that were tested with it into one release, in an OCI layout folder
    #[command(after_help = help::IMAGE_BIND)]
    Bind(BindArgs),
    /// Copy a release between registries and OCI layout folders; what is there already is not sent
    #[command(after_help = help::IMAGE_PUSH)]
    Push(PushArgs),
    /// Sign a release's digest with a private key (or use `cosign sign`)
    #[command(after_help = help::IMAGE_SIGN)]
    Sign(SignArgs),
    /// Show what a release is made of and who signed it
    #[command(after_help = help::IMAGE_INSPECT)]
    Inspect(InspectArgs),
    /// Show what an update from one release to another would fetch and write
    #[command(after_help = help::IMAGE_DIFF)]
    Diff(DiffArgs),
    /// Make a key pair for signing releases
    #[command(after_help = help::IMAGE_KEYGEN)]
    Keygen {
        /// Writes PREFIX.key (private, mode 0600) and PREFIX.pub
        prefix: PathBuf,
        /// Kind of key
        #[arg(long, value_enum, default_value_t = KeyKind::P256)]
        kind: KeyKind,
    },
}

/// Kinds of signing key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KeyKind {
    /// ECDSA on P-256
    P256,
    /// Ed25519
    Ed25519,
}

/// Options of `image build`.
#[cfg(feature = "author")]
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// Root folder that becomes a reproducible EROFS image
    #[arg(long, value_name = "FOLDER", conflicts_with = "partition",
        required_unless_present_any = ["partition", "from_container"])]
    pub root: Option<PathBuf>,
    /// Container image that becomes the root, with the kernel and modules in it: `host/repo:tag` or `oci:FOLDER[:tag]`
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["root", "partition"])]
    pub from_container: Option<Reference>,
    /// Which image of a container image for several machines
    #[arg(long, value_name = "OS/ARCH", default_value = "linux/amd64", requires = "from_container")]
    pub platform: Platform,
    /// The most bytes that the container image's layers may have together, packed or unpacked
    #[arg(long, value_name = "SIZE", default_value = "16G", requires = "from_container")]
    pub container_limit: ByteSize,
    /// Which kernel of a container image that has several
    #[arg(long, value_name = "VERSION", requires = "from_container", conflicts_with_all = ["kernel", "uki"])]
    pub kernel_version: Option<String>,
    /// Use the initial RAM file system in the container image; default: one with `switchback init` is packed
    #[arg(long, requires = "from_container", conflicts_with_all = ["kernel", "uki", "initrd"])]
    pub initrd_from_image: bool,
    /// A finished partition image, as `root=FILE`
    #[arg(long, value_name = "NAME=FILE")]
    pub partition: Option<String>,
    /// Unified kernel image; its command line must carry the root hash
    #[arg(long, value_name = "FILE", conflicts_with = "kernel", required_unless_present_any = ["kernel", "from_container"])]
    pub uki: Option<PathBuf>,
    /// Kernel
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM file system; default: one with `switchback init` is packed
    #[arg(long, value_name = "FILE", conflicts_with = "uki")]
    pub initrd: Option<PathBuf>,
    /// Device tree
    #[arg(long, value_name = "FILE", conflicts_with = "uki")]
    pub devicetree: Option<PathBuf>,
    /// The static switchback binary packed as /init; default: this program when it is static
    #[arg(long, value_name = "FILE")]
    pub init_binary: Option<PathBuf>,
    /// Folder of kernel modules, `…/lib/modules/VERSION`
    #[arg(long, value_name = "FOLDER")]
    pub modules_dir: Option<PathBuf>,
    /// A module the initramfs loads besides the default ones; may be given several times
    #[arg(long = "module", value_name = "NAME [PARAMETERS]", allow_hyphen_values = true)]
    pub modules: Vec<String>,
    /// Words added to the kernel command line
    #[arg(long, default_value = "", allow_hyphen_values = true, conflicts_with = "uki")]
    pub cmdline: String,
    /// Product the image is for; a machine takes only its own [default: a container image's label io.switchback.product]
    #[arg(long, required_unless_present = "from_container")]
    pub product: Option<String>,
    /// Name of the operating system [default: a container image's label org.opencontainers.image.title]
    #[arg(long, required_unless_present = "from_container")]
    pub name: Option<String>,
    /// Version [default: a container image's label org.opencontainers.image.version]
    #[arg(long, required_unless_present = "from_container")]
    pub version: Option<String>,
    /// Number that rises when older releases must no longer be installed
    #[arg(long, default_value_t = 0)]
    pub security_version: u64,
    /// Hardware the image fits; may be given several times; default: any
    #[arg(long)]
    pub compatible: Vec<String>,
    /// Memory the image needs
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub ram: ByteSize,
    /// dm-verity's salt as hex digits; default: from the contents
    #[arg(long, value_name = "HEX")]
    pub verity_salt: Option<String>,
    /// Compression level of the chunks, 1 to 19
    #[arg(long, default_value_t = 19, value_parser = clap::value_parser!(i32).range(1..=19))]
    pub level: i32,
    /// An earlier release: chunks that it has and chunks that it lacks do not share frames, so that an update from it fetches less, and
    /// unchanged files of a root folder lie where the first one has them, so that it writes less; may be given several times
    #[arg(long, value_name = "RELEASE")]
    pub like: Vec<Reference>,
    /// Leave packed kernel modules (.ko.xz and the like) as they are; plain ones make smaller updates
    #[arg(long)]
    pub keep_compressed_modules: bool,
    /// Accept a root without the updater's contract file
    #[arg(long)]
    pub foreign: bool,
    /// Where the release goes: `oci:FOLDER[:TAG]`; the tag defaults to the version
    #[arg(long, value_name = "oci:FOLDER")]
    pub output: Reference,
    /// How the registries of container image and earlier releases are reached.
    #[command(flatten)]
    pub registry: RegistryArgs,
}

/// How a registry is reached.
#[derive(Debug, Clone, Args)]
pub struct RegistryArgs {
    /// Registries that may be asked over plain HTTP, as `host:port`
    #[arg(long, value_name = "HOST:PORT")]
    pub plain_http: Vec<String>,
    /// Certificates (PEM) to trust for TLS
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Credentials in Docker's format; default: where docker and podman keep theirs
    #[arg(long, value_name = "FILE")]
    pub auth_file: Option<PathBuf>,
}

/// Options of `image bind`.
#[cfg(feature = "author")]
#[derive(Debug, Args)]
pub struct BindArgs {
    /// What the release calls itself
    #[arg(long)]
    pub version: String,
    /// The OS image, as `image build` made it
    #[arg(long, value_name = "RELEASE")]
    pub os: Reference,
    /// A service and its container image, as `dns=host/repo:tag`; may be given several times
    #[arg(long = "service", value_name = "NAME=IMAGE", required = true, value_parser = bound_service)]
    pub services: Vec<(Name, Reference)>,
    /// Where the release goes: `oci:FOLDER[:TAG]`; the tag defaults to the version
    #[arg(long, value_name = "oci:FOLDER")]
    pub output: Reference,
    /// How the images' registries are reached.
    #[command(flatten)]
    pub registry: RegistryArgs,
}

/// `NAME=IMAGE`.
#[cfg(feature = "author")]
fn bound_service(text: &str) -> Result<(Name, Reference), String> {
    let (name, image) =
        text.split_once('=').ok_or("expected a service and its image, as dns=host/repo:tag")?;
    Ok((name.parse()?, image.parse::<Reference>().map_err(|error| error.to_string())?))
}

/// Options of `image push`.
#[cfg(feature = "author")]
#[derive(Debug, Args)]
pub struct PushArgs {
    /// The release to copy
    pub from: Reference,
    /// Where to: `host/repo` or `oci:FOLDER`
    pub to: Reference,
    /// Tags at the destination besides its own; may be given several times
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
    /// Copy the signatures and whatever else is attached too
    #[arg(long)]
    pub with_signatures: bool,
    /// An earlier release: make a patch from it and attach it at the destination; may be given several times
    #[arg(long, value_name = "RELEASE")]
    pub patch_from: Vec<Reference>,
    /// How the registries are reached.
    #[command(flatten)]
    pub registry: RegistryArgs,
}

/// Options of `image diff`.
#[cfg(feature = "author")]
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The release that a machine has
    pub from: Reference,
    /// The release that it is to get
    pub to: Reference,
    /// How the registries are reached.
    #[command(flatten)]
    pub registry: RegistryArgs,
}

/// Options of `image sign`.
#[cfg(feature = "author")]
#[derive(Debug, Args)]
pub struct SignArgs {
    /// The release to sign
    pub release: Reference,
    /// Private key (PEM, PKCS#8)
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// Write cosign 2's `.sig` tag instead of a sigstore bundle
    #[arg(long)]
    pub legacy: bool,
    /// How the registry is reached.
    #[command(flatten)]
    pub registry: RegistryArgs,
}

/// Options of `image inspect`.
#[cfg(feature = "author")]
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The release to show
    pub release: Reference,
    /// How the registry is reached.
    #[command(flatten)]
    pub registry: RegistryArgs,
}

/// A tag, `@digest` or reference, refused while it is still only typed text.
pub(crate) fn release_name(text: &str) -> Result<String, String> {
    let checked = match text.strip_prefix('@').or_else(|| text.starts_with("sha256:").then_some(text)) {
        Some(digest) => digest.parse::<crate::digest::Digest>().map(drop).map_err(|e| e.to_string()),
        None if text.contains(['/', ':']) => text.parse::<Reference>().map(drop).map_err(|e| e.to_string()),
        None => Ok(()),
    };
    checked.map(|()| text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn one_word_to_release_is_a_release_of_the_os_and_two_begin_with_a_service() {
        let parse = |words: &str| match Cli::try_parse_from(words.split(' ')).unwrap().verb {
            Verb::Quarantine(QuarantineVerb::Release { service, release }) => {
                (service.map(|name| name.to_string()), release)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(parse("switchback quarantine release dns"), (None, "dns".into()));
        assert_eq!(parse("switchback quarantine release 1.2"), (None, "1.2".into()));
        assert_eq!(parse("switchback quarantine release dns 1.2"), (Some("dns".into()), "1.2".into()));
    }
}
