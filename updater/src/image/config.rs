//! The OS image's config: what the image is, what it asks of a machine, what its slots hold.
//!
//! Not here: where the blobs lie (`manifest`), whether this machine may take it (`trust`). Rule: a config in hand has
//! passed every check of [`OsConfig::parse`]; unknown fields of the known major are skipped, another major is refused.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::BLOCK_BYTES;
use super::text::{hex_bytes, hex32, is_one_line, is_plain_name};
use crate::digest::Digest;

/// The one major version of the config that this build reads and writes.
pub const SCHEMA: u32 = 1;
/// The largest config that is parsed, in bytes. A real one has about 1 KiB.
pub const CONFIG_BYTES_MAX: u64 = 256 * 1024;
/// The longest name of a product, version or slot, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// The longest title or hardware name, in bytes.
pub const TITLE_BYTES_MAX: usize = 128;
/// The longest kernel command line, in bytes: x86 takes 2048, arm64 the same.
pub const CMDLINE_BYTES_MAX: usize = 2048;
/// The most hardware names of one image.
pub const COMPATIBLE_MAX: usize = 256;
/// The most slot partitions of one image.
pub const SLOTS_MAX: usize = 16;
/// The largest slot partition in bytes.
pub const SLOT_BYTES_MAX: u64 = 1 << 40;
/// The longest dm-verity salt in bytes (its superblock has room for that many).
pub const SALT_BYTES_MAX: usize = 256;

/// What an image is for. A signed service is no OS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An operating system for a slot.
    Os,
    /// A service image.
    Service,
}

/// What the image asks of a machine; zero and absent ask nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirements {
    /// Physical memory in bytes.
    #[serde(default)]
    pub ram_bytes: u64,
    /// Size of the `root` slot partition in bytes.
    #[serde(default)]
    pub slot_bytes: u64,
    /// Free room on the ESP for one slot's boot files, in bytes.
    #[serde(default)]
    pub esp_bytes: u64,
    /// The oldest updater version that can install this image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updater: Option<String>,
}

/// dm-verity over one slot partition: the parameters of `veritysetup format` and its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerityInfo {
    /// The root hash.
    #[serde(with = "hex32")]
    pub root: [u8; 32],
    /// The salt.
    #[serde(with = "hex_bytes")]
    pub salt: Vec<u8>,
    /// UUID of the superblock.
    pub uuid: Uuid,
    /// Data block size in bytes.
    pub data_block_bytes: u32,
    /// Hash block size in bytes.
    pub hash_block_bytes: u32,
    /// Number of data blocks.
    pub data_blocks: u64,
}

/// What one slot partition holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotContent {
    /// Class name of the slot partition: `root`.
    pub name: String,
    /// Raw bytes; a multiple of [`BLOCK_BYTES`].
    pub bytes: u64,
    /// SHA-256 of the raw bytes.
    pub sha256: Digest,
    /// dm-verity, where the partition is protected by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verity: Option<VerityInfo>,
}

/// An image's config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsConfig {
    /// Major version of this document: [`SCHEMA`].
    pub schema: u32,
    /// OS or service.
    pub kind: Kind,
    /// Which product it is for: a plain name that policies compare.
    pub product: String,
    /// Title for people and boot menus.
    pub name: String,
    /// Version of the release: letters, digits and `.+~_-`.
    pub version: String,
    /// Rises when going back would be dangerous; devices keep a floor of it.
    #[serde(default)]
    pub security_version: u64,
    /// Hardware it runs on; empty = any.
    #[serde(default)]
    pub compatible: Vec<String>,
    /// What it asks of a machine.
    #[serde(default)]
    pub requirements: Requirements,
    /// What each slot partition holds, in the manifest's order.
    pub slots: Vec<SlotContent>,
    /// Kernel command line for kernel + initrd; absent with a UKI, which carries its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
}

/// Why a config was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Longer than [`CONFIG_BYTES_MAX`].
    #[error("while reading the image's config: {bytes} bytes are more than the {CONFIG_BYTES_MAX} allowed")]
    TooLong {
        /// Its length.
        bytes: u64,
    },
    /// Written for another updater.
    #[error(
        "while reading the image's config: its schema is {schema}, this updater knows {SCHEMA}; the image needs switchback {} or newer",
        .updater.as_deref().unwrap_or("of a later release")
    )]
    Schema {
        /// The schema it has.
        schema: u32,
        /// The updater version it asks for.
        updater: Option<String>,
    },
    /// No JSON, or a field that is missing, doubled or of the wrong type.
    #[error("while reading the image's config: it is not the JSON of this format")]
    Json {
        /// What the parser found.
        source: serde_json::Error,
    },
    /// A field holds what it must not.
    #[error("while reading the image's config: {field} {problem}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl OsConfig {
    /// Parses and checks a config.
    pub fn parse(bytes: &[u8]) -> Result<OsConfig, ConfigError> {
        if bytes.len() as u64 > CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLong { bytes: bytes.len() as u64 });
        }
        let json = |source| ConfigError::Json { source };
        // The version first: a later major may have changed every other field, and its error must still be helpful.
        let Head { schema, requirements } = serde_json::from_slice(bytes).map_err(json)?;
        if schema != SCHEMA {
            let updater = requirements.get("updater").and_then(|text| text.as_str());
            let updater = updater.filter(|text| is_version(text)).map(str::to_string);
            return Err(ConfigError::Schema { schema, updater });
        }
        let config: OsConfig = serde_json::from_slice(bytes).map_err(json)?;
        config.check()?;
        Ok(config)
    }

    /// The canonical bytes: compact JSON, fields in the order of this type.
    pub fn to_json(&self) -> Vec<u8> {
        #[expect(clippy::expect_used, reason = "texts and numbers under text keys always serialise")]
        serde_json::to_vec(self).expect("a config serialises")
    }

    /// The rules of the format; builders call it before they write, [`OsConfig::parse`] after it has read.
    pub fn check(&self) -> Result<(), ConfigError> {
        require(self.schema == SCHEMA, "schema", || format!("is {}", self.schema))?;
        require(is_plain_name(&self.product, NAME_BYTES_MAX), "product", || {
            format!("{:?} is no plain name (lower-case letters, digits and `._-`)", self.product)
        })?;
        require(!self.name.is_empty() && is_one_line(&self.name, TITLE_BYTES_MAX), "name", || {
            format!("{:?} is no title of one line and at most {TITLE_BYTES_MAX} bytes", self.name)
        })?;
        require(is_version(&self.version), "version", || {
            format!("{:?} is no version (letters, digits and `.+~_-`)", self.version)
        })?;
        if let Some(updater) = &self.requirements.updater {
            require(is_version(updater), "requirements.updater", || format!("{updater:?} is no version"))?;
        }
        let hardware = |name: &String| !name.is_empty() && is_one_line(name, TITLE_BYTES_MAX);
        require(
            self.compatible.len() <= COMPATIBLE_MAX && self.compatible.iter().all(hardware),
            "compatible",
            || format!("needs at most {COMPATIBLE_MAX} names of one line"),
        )?;
        if let Some(cmdline) = &self.cmdline {
            require(is_one_line(cmdline, CMDLINE_BYTES_MAX), "cmdline", || {
                format!("is no single line of at most {CMDLINE_BYTES_MAX} bytes")
            })?;
        }
        self.check_slots()
    }

    fn check_slots(&self) -> Result<(), ConfigError> {
        require((1..=SLOTS_MAX).contains(&self.slots.len()), "slots", || {
            format!("has {} entries, expected 1 to {SLOTS_MAX}", self.slots.len())
        })?;
        for (number, slot) in self.slots.iter().enumerate() {
            require(is_plain_name(&slot.name, NAME_BYTES_MAX), "slots.name", || {
                format!("{:?} is no plain name", slot.name)
            })?;
            require(self.slots[..number].iter().all(|other| other.name != slot.name), "slots.name", || {
                format!("`{}` comes twice", slot.name)
            })?;
            let whole = slot.bytes != 0 && slot.bytes.is_multiple_of(u64::from(BLOCK_BYTES));
            require(whole && slot.bytes <= SLOT_BYTES_MAX, "slots.bytes", || {
                format!("{} is no multiple of {BLOCK_BYTES} up to {SLOT_BYTES_MAX}", slot.bytes)
            })?;
            if let Some(verity) = &slot.verity {
                verity.check(slot.bytes)?;
            }
        }
        Ok(())
    }
}

impl VerityInfo {
    fn check(&self, slot_bytes: u64) -> Result<(), ConfigError> {
        for (field, bytes) in [
            ("slots.verity.data_block_bytes", self.data_block_bytes),
            ("slots.verity.hash_block_bytes", self.hash_block_bytes),
        ] {
            require(bytes.is_power_of_two() && (512..=65536).contains(&bytes), field, || {
                format!("{bytes} is no power of two from 512 to 65536")
            })?;
        }
        require(self.salt.len() <= SALT_BYTES_MAX, "slots.verity.salt", || {
            format!("has {} bytes, at most {SALT_BYTES_MAX} fit", self.salt.len())
        })?;
        // A tree over a part of the partition would leave the rest unprotected without anybody noticing.
        let covered = self.data_blocks.checked_mul(u64::from(self.data_block_bytes));
        require(covered == Some(slot_bytes), "slots.verity.data_blocks", || {
            format!("{} blocks do not make the slot's {slot_bytes} bytes", self.data_blocks)
        })
    }
}

/// The two fields that every major version keeps.
#[derive(Deserialize)]
struct Head {
    schema: u32,
    #[serde(default)]
    requirements: serde_json::Value,
}

fn is_version(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'~' | b'_' | b'-');
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

fn require(holds: bool, field: &'static str, problem: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::Field { field, problem: problem() }) }
}

#[cfg(test)]
pub(crate) mod tests_support {
    use super::*;

    /// A whole, honest config: 5 GiB of root with dm-verity, kernel and initrd.
    pub(crate) fn example() -> OsConfig {
        let verity = VerityInfo {
            root: [7; 32],
            salt: vec![1, 2, 3],
            uuid: Uuid::from_u128(5),
            data_block_bytes: 4096,
            hash_block_bytes: 4096,
            data_blocks: 5 << 18,
        };
        OsConfig {
            schema: SCHEMA,
            kind: Kind::Os,
            product: "example".into(),
            name: "Example OS 1.1".into(),
            version: "1.1".into(),
            security_version: 3,
            compatible: vec!["qemu,q35".into()],
            requirements: Requirements {
                ram_bytes: 1 << 29,
                updater: Some("0.1.0".into()),
                ..Default::default()
            },
            slots: vec![SlotContent {
                name: "root".into(),
                bytes: 5 << 30,
                sha256: Digest::of(b"raw"),
                verity: Some(verity),
            }],
            cmdline: Some("switchback.roothash=07 quiet".into()),
        }
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
