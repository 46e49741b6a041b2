//! Why an install stopped, and which reason that is.

use std::io;
use std::path::PathBuf;

use switchback_bootloader::record::BootError;

use crate::digest::Digest;
use crate::facts::is_full;
use crate::image::frame::FrameError;
use crate::image::index::{IndexError, Lie};
use crate::reason::Reason;
use crate::registry::RegistryError;
use crate::trust::TrustError;

/// Why an install stopped.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The registry could not give what was asked.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A signature, or what it covers, is not as the policy wants it.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The chunk index lies.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A chunk's bytes are wrong; it was not written.
    #[error("while verifying a chunk; it was not written")]
    Chunk(#[from] FrameError),
    /// The stored signatures of a slot cannot be read.
    #[error("while reading the slot's stored signatures")]
    Passport {
        /// The parser's word.
        source: serde_json::Error,
    },
    /// The signed config does not describe a slot partition that the manifest brings.
    #[error(
        "while matching config and manifest: the config describes no verity-protected slot partition `{name}`"
    )]
    NoSuchSlot {
        /// The partition's class name.
        name: String,
    },
    /// The release asks for more than this machine has.
    #[error("while comparing the release with the machine: {detail}")]
    Requirement {
        /// Which requirement.
        reason: Reason,
        /// What is asked and what is there.
        detail: String,
    },
    /// A boot file has other bytes than the manifest says; it was removed.
    #[error("while verifying the boot file {digest}: its bytes are others; it was thrown away")]
    BadBootFile {
        /// What it should be.
        digest: Digest,
    },
    /// The body of a range ended early.
    #[error("while fetching: the body ended {missing} bytes early")]
    ShortBody {
        /// Bytes that did not come.
        missing: u64,
    },
    /// The slot's partition cannot be read.
    #[error("while reading the slot")]
    ReadSlot(#[source] io::Error),
    /// The slot's partition cannot be written.
    #[error("while writing the slot")]
    WriteSlot(#[source] io::Error),
    /// The partition table or the slot's marks cannot be changed.
    #[error("while marking the slot's partitions")]
    Slot(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The hash tree cannot be written.
    #[error("while writing the hash tree")]
    Tree(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// What was read back is not what was signed.
    #[error("while reading the slot back")]
    ReadBack(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The computed root hash is not the signed one.
    #[error("while hashing the slot: its dm-verity root is {found}, the signed one is {expected}")]
    RootHash {
        /// From the signed config.
        expected: String,
        /// Computed while writing.
        found: String,
    },
    /// The boot record, the boot files or the ESP.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A file of the state folder.
    #[error("while using {}", path.display())]
    State {
        /// Which file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The copy of the chunk index that this run left in the state folder does not read back.
    #[error(
        "while reading the chunk index from its copy in the state folder; run the same command again, which fetches it anew"
    )]
    KeptIndex(#[source] io::Error),
    /// The person asked to stop; everything done so far is kept.
    #[error("stopped on request; run the same command again to continue")]
    Interrupted,
    /// A worker broke a rule of its own.
    #[error("while installing: a worker ended unexpectedly")]
    Worker,
}

impl InstallError {
    /// The closed reason of this error.
    pub fn reason(&self) -> Reason {
        match self {
            InstallError::Registry(error) => registry_reason(error),
            InstallError::Trust(error) => trust_reason(error),
            InstallError::Index(IndexError { lie: Lie::Version { .. }, .. }) => Reason::FormatRefused,
            InstallError::Index(_) | InstallError::RootHash { .. } => Reason::IndexLies,
            InstallError::Chunk(_) | InstallError::ShortBody { .. } => Reason::CorruptChunk,
            InstallError::Passport { .. } | InstallError::NoSuchSlot { .. } => Reason::FormatRefused,
            InstallError::Requirement { reason, .. } => *reason,
            InstallError::BadBootFile { .. } => Reason::CorruptBlob,
            InstallError::ReadSlot(_) | InstallError::WriteSlot(_) | InstallError::Tree(_) => {
                Reason::WriteFailed
            }
            InstallError::Slot(_) => Reason::WriteFailed,
            InstallError::ReadBack(_) => Reason::ReadBackMismatch,
            InstallError::Boot(BootError::NoSpace { .. }) => Reason::EspTooSmall,
            InstallError::Boot(BootError::Mismatch { .. }) => Reason::ReadBackMismatch,
            InstallError::Boot(_) => Reason::BootRecordFailed,
            InstallError::State { source, .. } if is_full(source) => Reason::StateFull,
            InstallError::State { .. } | InstallError::KeptIndex(_) => Reason::StateUnreadable,
            InstallError::Interrupted => Reason::Interrupted,
            InstallError::Worker => Reason::Internal,
        }
    }

    /// True when content has other bytes than were signed: the same content from elsewhere may have the right ones.
    pub fn is_wrong_bytes(&self) -> bool {
        matches!(self, InstallError::Chunk(_) | InstallError::BadBootFile { .. })
    }

    pub(super) fn slot(source: impl std::error::Error + Send + Sync + 'static) -> InstallError {
        InstallError::Slot(Box::new(source))
    }

    pub(super) fn tree(source: impl std::error::Error + Send + Sync + 'static) -> InstallError {
        InstallError::Tree(Box::new(source))
    }

    pub(super) fn read_back(source: impl std::error::Error + Send + Sync + 'static) -> InstallError {
        InstallError::ReadBack(Box::new(source))
    }

    pub(super) fn writing_slot(source: io::Error) -> InstallError {
        InstallError::WriteSlot(source)
    }

    pub(super) fn reading_slot(source: io::Error) -> InstallError {
        InstallError::ReadSlot(source)
    }
}

/// The reason of a registry's error.
pub fn registry_reason(error: &RegistryError) -> Reason {
    match error {
        RegistryError::Absent { .. } => Reason::RegistryAbsent,
        RegistryError::Denied { .. } | RegistryError::Refused { .. } => Reason::RegistryDenied,
        RegistryError::Unreachable { .. } => Reason::RegistryUnreachable,
        RegistryError::Broken { .. } | RegistryError::TooLarge { .. } => Reason::RegistryBroken,
        RegistryError::Mismatch { .. } | RegistryError::Length { .. } => Reason::CorruptBlob,
        RegistryError::OverBudget { .. } => Reason::OverBudget,
        RegistryError::Io { .. } => Reason::RegistryUnreachable,
    }
}

/// The reason of a trust error.
pub fn trust_reason(error: &TrustError) -> Reason {
    match error {
        TrustError::NoSignature { .. }
        | TrustError::NotTrusted { .. }
        | TrustError::BelowThreshold { .. } => Reason::SignatureRefused,
        TrustError::OtherBytes { .. } => Reason::CorruptBlob,
        TrustError::Unreadable { .. } => Reason::FormatRefused,
        TrustError::Key(_) | TrustError::Policy(_) => Reason::NoPolicy,
        TrustError::NotForThis { field: "kind", .. } => Reason::WrongKind,
        TrustError::NotForThis { field: "product", .. } => Reason::WrongProduct,
        TrustError::NotForThis { .. } => Reason::WrongHardware,
        TrustError::BelowFloor { .. } => Reason::BelowFloor,
    }
}
