//! Real signers, and small releases for them to sign.
//!
//! Rule: keys and signatures come from cosign itself, as Debian ships it, offline; nothing here imitates its formats.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use switchback::digest::Digest;
use switchback::image::config::{Kind, OsConfig, Requirements, SlotContent};
use switchback::image::manifest::{self, IndexRoot, OsManifest, SlotLayer};
use switchback::registry::http::HttpRegistry;
use switchback::registry::{MANIFEST_MEDIA_TYPE, Registry as _, RegistryAccess};
use switchback::trust::PublicKey;
use switchback_bootloader::record::BootFileKind;

use crate::lab::registry::Registry;
use crate::lab::tools;

/// Which cosign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cosign {
    /// 2.x: payload and signature under a tag.
    Two,
    /// 3.x: a bundle as a referrer.
    Three,
}

/// A folder with keys, and the programs that use them.
#[derive(Debug)]
pub struct Signers {
    folder: PathBuf,
    two: PathBuf,
    three: PathBuf,
}

impl Signers {
    /// Brings both programs; keys lie in `folder`.
    pub fn new(folder: &Path) -> Result<Signers> {
        Ok(Signers {
            folder: folder.to_owned(),
            two: tools::fetched("cosign2")?,
            three: tools::fetched("cosign3")?,
        })
    }

    /// A new ECDSA P-256 key, made by cosign.
    pub fn p256(&self, name: &str) -> Result<Key> {
        let prefix = format!("--output-key-prefix={name}");
        tools::run(self.command(Cosign::Two).args(["generate-key-pair", &prefix]))?;
        Ok(Key {
            private: self.folder.join(format!("{name}.key")),
            public: self.folder.join(format!("{name}.pub")),
        })
    }

    /// A new key of openssl's `algorithm`, taken over by cosign.
    pub fn imported(&self, name: &str, algorithm: &[&str]) -> Result<Key> {
        let pem = self.folder.join(format!("{name}.pem"));
        let mut openssl = Command::new(tools::program("openssl", "openssl")?);
        tools::run(openssl.arg("genpkey").args(algorithm).arg("-out").arg(&pem))?;
        let prefix = format!("--output-key-prefix={name}");
        tools::run(
            self.command(Cosign::Three).args(["import-key-pair", "--yes", &prefix, "--key"]).arg(&pem),
        )?;
        Ok(Key {
            private: self.folder.join(format!("{name}.key")),
            public: self.folder.join(format!("{name}.pub")),
        })
    }

    /// Signs `image` (`host/repository@sha256:…`).
    pub fn sign(&self, cosign: Cosign, key: &Key, image: &str) -> Result<()> {
        self.offline(cosign, "sign", key, &[image]).map(drop)
    }

    /// Signs `image` with cosign 2 in its referrers mode: the payload of the one form in the place of the other.
    pub fn sign_as_referrer(&self, key: &Key, image: &str) -> Result<()> {
        let mut command = self.command(Cosign::Two);
        command.env("COSIGN_EXPERIMENTAL", "1").args(["sign", "--yes", "--tlog-upload=false"]);
        command.args(["--allow-http-registry", "--registry-referrers-mode=oci-1-1", "--key"]);
        tools::run(command.arg(&key.private).arg(image)).map(drop)
    }

    /// Attests something about `image` that is no approval: a list of its parts.
    pub fn attest_parts(&self, cosign: Cosign, key: &Key, image: &str) -> Result<()> {
        let parts = self.folder.join("parts.spdx.json");
        std::fs::write(&parts, r#"{"spdxVersion":"SPDX-2.3","SPDXID":"SPDXRef-DOCUMENT","name":"os"}"#)?;
        let parts = format!("--predicate={}", parts.display());
        self.offline(cosign, "attest", key, &["--type=spdxjson", &parts, image]).map(drop)
    }

    /// What cosign itself says about the signatures of `image`.
    pub fn verify(&self, cosign: Cosign, public: &Path, image: &str) -> Result<String> {
        let mut command = self.command(cosign);
        command.args(["verify", "--insecure-ignore-tlog=true", "--allow-http-registry", "--key"]);
        tools::run(command.arg(public).arg(image))
    }

    fn offline(&self, cosign: Cosign, verb: &str, key: &Key, rest: &[&str]) -> Result<String> {
        let mut command = self.command(cosign);
        command.args([verb, "--yes", "--tlog-upload=false", "--allow-http-registry"]);
        if cosign == Cosign::Three {
            command.arg("--use-signing-config=false");
        }
        tools::run(command.arg("--key").arg(&key.private).args(rest))
    }

    fn command(&self, cosign: Cosign) -> Command {
        let mut command = Command::new(match cosign {
            Cosign::Two => &self.two,
            Cosign::Three => &self.three,
        });
        command.current_dir(&self.folder).env("COSIGN_PASSWORD", "").env("HOME", &self.folder);
        command
    }
}

/// A key pair of cosign's.
#[derive(Debug, Clone)]
pub struct Key {
    /// The encrypted private half.
    pub private: PathBuf,
    /// The public half.
    pub public: PathBuf,
}

impl Key {
    /// The public half as a device reads it.
    pub fn read(&self) -> Result<PublicKey> {
        PublicKey::from_pem(&std::fs::read(&self.public)?)
            .with_context(|| format!("while reading {}", self.public.display()))
    }
}

/// A repository at a running registry, over plain HTTP.
pub fn repository(registry: &Registry, name: &str) -> Result<HttpRegistry> {
    let access = RegistryAccess { plain_http: vec![registry.host()], ..RegistryAccess::default() };
    Ok(HttpRegistry::new(&registry.host(), name, access)?)
}

/// A release in a registry: a true manifest and config over blobs of a few bytes.
#[derive(Debug, Clone)]
pub struct SmallRelease {
    /// The manifest's digest: what gets signed.
    pub digest: Digest,
    /// Its manifest.
    pub manifest: OsManifest,
    /// Its config.
    pub config: OsConfig,
}

/// Pushes a small release of `product` under the tag `version`.
pub async fn push_small_release(to: &HttpRegistry, product: &str, version: &str) -> Result<SmallRelease> {
    let config = small_config(product, version);
    let config_blob = to.push_blob(manifest::CONFIG_MEDIA_TYPE, &config.to_json()).await?;
    let slot =
        to.push_blob(manifest::SLOT_MEDIA_TYPE, format!("slot of {product} {version}").as_bytes()).await?;
    let index =
        to.push_blob(manifest::INDEX_MEDIA_TYPE, format!("index of {product} {version}").as_bytes()).await?;
    let uki =
        to.push_blob(manifest::BOOT_MEDIA_TYPE, format!("uki of {product} {version}").as_bytes()).await?;
    let root = IndexRoot { digest: index.digest, size: index.size };
    let manifest = OsManifest {
        config: manifest::config_descriptor(config_blob.digest, config_blob.size),
        slots: vec![SlotLayer {
            name: "root".into(),
            blob: manifest::slot_descriptor("root", slot.digest, slot.size),
            index: manifest::index_descriptor("root", index.digest, index.size, root),
            index_root: root,
        }],
        boot: vec![manifest::BootLayer {
            kind: BootFileKind::Uki,
            blob: manifest::boot_descriptor(BootFileKind::Uki, uki.digest, uki.size),
        }],
        annotations: Default::default(),
    };
    let digest = to.push_manifest(Some(version), MANIFEST_MEDIA_TYPE, &manifest.to_json()).await?;
    Ok(SmallRelease { digest, manifest, config })
}

fn small_config(product: &str, version: &str) -> OsConfig {
    OsConfig {
        schema: 1,
        kind: Kind::Os,
        product: product.into(),
        name: format!("{product} {version}"),
        version: version.into(),
        security_version: 3,
        compatible: vec!["board-a".into()],
        requirements: Requirements::default(),
        slots: vec![SlotContent {
            name: "root".into(),
            bytes: 4096,
            sha256: Digest::of(&[0; 4096]),
            verity: None,
        }],
        cmdline: None,
    }
}
