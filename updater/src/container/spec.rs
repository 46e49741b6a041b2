//! What is read of a container image's documents (OCI image-spec: manifest.md, image-index.md, config.md; Docker's image
//! manifest version 2, schema 2 has the same names).
//!
//! Not here: which image is chosen, what is in its layers. Rule: only what this updater acts on; the rest is its authors'. (The
//! `oci-spec` crate's types brought a megabyte of derived code and a regular expression engine into the device's binary.)

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// An image manifest.
#[derive(Debug, Deserialize)]
pub(super) struct ImageManifest {
    pub config: Part,
    pub layers: Vec<Part>,
}

/// An index over images for several kinds of machine.
#[derive(Debug, Deserialize)]
pub(super) struct ImageIndex {
    pub manifests: Vec<Part>,
}

/// A descriptor. Its digest may be of a kind that is not verified here, so it is a text still.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Part {
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    pub platform: Option<ForPlatform>,
}

/// What an entry of an index is for.
#[derive(Debug, Deserialize)]
pub(super) struct ForPlatform {
    pub os: String,
    pub architecture: String,
    pub variant: Option<String>,
}

/// An image's config: what it says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Operating system, by Go's name.
    pub os: String,
    /// Architecture, by Go's name.
    pub architecture: String,
    /// How it is run.
    #[serde(default)]
    pub config: Option<Execution>,
    /// Its layers.
    pub(super) rootfs: RootFs,
}

/// How an image is run, as its author has it. Docker writes `null` for what is not said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Execution {
    /// `user`, `user:group`, by name or number.
    pub user: Option<String>,
    /// `NAME=value`.
    pub env: Option<Vec<String>>,
    /// The program, with its first arguments.
    pub entrypoint: Option<Vec<String>>,
    /// Its arguments, or the program where there is no entry point.
    pub cmd: Option<Vec<String>>,
    /// Where it starts.
    pub working_dir: Option<String>,
    /// Words of its author.
    pub labels: Option<HashMap<String, String>>,
}

/// The digests of what is in the layers, bottom first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RootFs {
    pub diff_ids: Vec<String>,
}

impl ImageConfig {
    /// A label, where the image has it.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.config.as_ref()?.labels.as_ref()?.get(name).map(String::as_str)
    }
}
