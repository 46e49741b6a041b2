//! A release of an OS with its services: a signed OCI image index that names each image by its digest (OCI image-spec,
//! image-index.md), with `artifactType` [`RELEASE_ARTIFACT_TYPE`].
//!
//! Not here: the images' own manifests (`manifest`, `container`), signatures. Rule: one OS image, each service once, nothing
//! that this module does not know: one signature covers all of it, so all of it must be understood.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::manifest::{Descriptor, MANIFEST_BYTES_MAX, MANIFEST_MEDIA_TYPE, VERSION_ANNOTATION};
use super::text::{is_one_line, is_plain_name, unique_keys};
use crate::digest::Digest;

/// Media type of every OCI image index.
pub const INDEX_MEDIA_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// `artifactType` of a release index.
pub const RELEASE_ARTIFACT_TYPE: &str = "application/vnd.switchback.release.v1";
/// Annotation of a service image's entry: which service it is for.
pub const SERVICE_ANNOTATION: &str = "io.switchback.service";
/// The largest release index that is parsed, in bytes. One with ten services has about 4 KiB.
pub const RELEASE_BYTES_MAX: u64 = 256 * 1024;
/// The longest name of a service, as `[service.NAME]` allows it, in bytes.
const SERVICE_BYTES_MAX: usize = 32;
/// The longest version, as the OS image's config allows it, in bytes.
const VERSION_BYTES_MAX: usize = 128;

/// What a release binds together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseIndex {
    /// What it calls itself.
    pub version: String,
    /// The OS image's manifest.
    pub os: Descriptor,
    /// The image of each service, by the service's name: a manifest, or an index over several kinds of machine.
    pub services: BTreeMap<String, Descriptor>,
    /// The index's own annotations, the version among them.
    pub annotations: BTreeMap<String, String>,
}

/// Why a release index was refused.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseIndexError {
    /// Longer than [`RELEASE_BYTES_MAX`].
    #[error("while reading the release index: {bytes} bytes are more than the {RELEASE_BYTES_MAX} allowed")]
    TooLong {
        /// Its length.
        bytes: u64,
    },
    /// No JSON, or a field that is unknown, missing, doubled or of the wrong type.
    #[error("while reading the release index: it is no OCI image index as this format has it")]
    Json {
        /// What the parser found.
        source: serde_json::Error,
    },
    /// It does not bind one OS and its services.
    #[error("while reading the release index: {0}")]
    Content(String),
}

/// As it is written.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireIndex {
    schema_version: u32,
    media_type: String,
    artifact_type: String,
    manifests: Vec<WireEntry>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "unique_keys")]
    annotations: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireEntry {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "unique_keys")]
    annotations: BTreeMap<String, String>,
}

/// What tells an index from a manifest, before either is parsed.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    artifact_type: Option<String>,
}

/// True when these signed bytes call themselves a release index.
pub fn is_release_index(bytes: &[u8]) -> bool {
    let shape: Option<Shape> = serde_json::from_slice(bytes).ok();
    shape.is_some_and(|shape| shape.artifact_type.as_deref() == Some(RELEASE_ARTIFACT_TYPE))
}

impl ReleaseIndex {
    /// Parses and checks an index. Every refusal names what was found.
    pub fn parse(bytes: &[u8]) -> Result<ReleaseIndex, ReleaseIndexError> {
        if bytes.len() as u64 > RELEASE_BYTES_MAX {
            return Err(ReleaseIndexError::TooLong { bytes: bytes.len() as u64 });
        }
        let wire: WireIndex =
            serde_json::from_slice(bytes).map_err(|source| ReleaseIndexError::Json { source })?;
        wire.checked().map_err(ReleaseIndexError::Content)
    }

    /// The canonical bytes: compact JSON, the OS first, then the services by name.
    pub fn to_json(&self) -> Vec<u8> {
        let manifests = std::iter::once(&self.os).chain(self.services.values());
        let wire = WireIndex {
            schema_version: 2,
            media_type: INDEX_MEDIA_TYPE.into(),
            artifact_type: RELEASE_ARTIFACT_TYPE.into(),
            manifests: manifests.map(WireEntry::of).collect(),
            annotations: self.annotations.clone(),
        };
        #[expect(clippy::expect_used, reason = "texts and numbers under text keys always serialise")]
        serde_json::to_vec(&wire).expect("an index serialises")
    }
}

impl WireEntry {
    fn of(descriptor: &Descriptor) -> WireEntry {
        let Descriptor { media_type, digest, size, annotations } = descriptor.clone();
        WireEntry { media_type, digest, size, annotations }
    }
}

impl WireIndex {
    fn checked(self) -> Result<ReleaseIndex, String> {
        let expect = |field: &str, found: &str, expected: &str| match found == expected {
            true => Ok(()),
            false => Err(format!("{field} is `{found}`, expected `{expected}`")),
        };
        expect("schemaVersion", &self.schema_version.to_string(), "2")?;
        expect("mediaType", &self.media_type, INDEX_MEDIA_TYPE)?;
        expect("artifactType", &self.artifact_type, RELEASE_ARTIFACT_TYPE)?;
        let version = self.annotations.get(VERSION_ANNOTATION).cloned().unwrap_or_default();
        if version.is_empty() || !is_one_line(&version, VERSION_BYTES_MAX) {
            return Err(format!("its annotation `{VERSION_ANNOTATION}` is no version: {version:?}"));
        }
        let (mut os, mut services) = (None, BTreeMap::new());
        for WireEntry { media_type, digest, size, annotations } in self.manifests {
            let entry = Descriptor { media_type, digest, size, annotations };
            match entry.annotations.get(SERVICE_ANNOTATION).cloned() {
                None => {
                    expect("an OS image's mediaType", &entry.media_type, MANIFEST_MEDIA_TYPE)?;
                    if entry.size > MANIFEST_BYTES_MAX || os.replace(entry).is_some() {
                        return Err("it does not name exactly one OS image with a manifest of ours".into());
                    }
                }
                Some(name) if !is_plain_name(&name, SERVICE_BYTES_MAX) => {
                    return Err(format!("it names an image for a service with the bad name {name:?}"));
                }
                Some(name) => {
                    if services.insert(name.clone(), entry).is_some() {
                        return Err(format!("it names two images for the service `{name}`"));
                    }
                }
            }
        }
        let os = os.ok_or("it names no OS image")?;
        Ok(ReleaseIndex { version, os, services, annotations: self.annotations })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn index() -> Value {
        let entry = |text: &str| json!({ "mediaType": MANIFEST_MEDIA_TYPE, "digest": Digest::of(text.as_bytes()), "size": 700 });
        let mut dns = entry("dns");
        dns["annotations"] = json!({ SERVICE_ANNOTATION: "dns" });
        json!({
            "schemaVersion": 2, "mediaType": INDEX_MEDIA_TYPE, "artifactType": RELEASE_ARTIFACT_TYPE,
            "manifests": [entry("os"), dns], "annotations": { VERSION_ANNOTATION: "2.0" },
        })
    }

    fn parse(value: &Value) -> Result<ReleaseIndex, String> {
        ReleaseIndex::parse(&serde_json::to_vec(value).unwrap()).map_err(|error| crate::engine::chain(&error))
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let read = parse(&index()).unwrap();
        assert_eq!((&read.version[..], read.os.digest), ("2.0", Digest::of(b"os")));
        assert_eq!(read.services["dns"].digest, Digest::of(b"dns"));
        assert_eq!(ReleaseIndex::parse(&read.to_json()).unwrap(), read);
        assert!(is_release_index(&read.to_json()));
        assert!(!is_release_index(b"{\"schemaVersion\":2}") && !is_release_index(b"[]"));
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let change = |change: &dyn Fn(&mut Value)| {
            let mut value = index();
            change(&mut value);
            parse(&value).unwrap_err()
        };
        type Case<'a> = (&'a dyn Fn(&mut Value), &'a str);
        let cases: [Case<'_>; 8] = [
            (&|v| v["subject"] = json!({}), "unknown field `subject`"),
            (&|v| v["schemaVersion"] = json!(1), "schemaVersion is `1`"),
            (&|v| v["artifactType"] = json!("other"), "artifactType is `other`"),
            (&|v| v["annotations"] = json!({}), "is no version"),
            (&|v| v["manifests"] = json!([]), "no OS image"),
            (&|v| v["manifests"][1]["annotations"] = json!({}), "exactly one OS image"),
            (&|v| v["manifests"][1]["annotations"][SERVICE_ANNOTATION] = json!("../x"), "bad name"),
            (
                &|v| {
                    let dns = v["manifests"][1].clone();
                    v["manifests"].as_array_mut().unwrap().push(dns);
                },
                "two images for the service `dns`",
            ),
        ];
        for (spoil, expected) in cases {
            let refused = change(spoil);
            assert!(refused.contains(expected), "{expected}: {refused}");
        }
        let long = format!("{}{}", index(), " ".repeat(RELEASE_BYTES_MAX as usize));
        assert!(matches!(ReleaseIndex::parse(long.as_bytes()), Err(ReleaseIndexError::TooLong { .. })));
    }
}
