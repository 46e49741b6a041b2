//! Uploads, by way of `oci-client`: the author's side.
//!
//! Not here: anything a device does. Rule: a blob is streamed from its file, never held in memory, and a manifest is sent
//! as the bytes that were given, since its digest is what gets signed.

use std::path::Path;

use backon::Retryable;
use futures_util::{StreamExt, stream};
use http::HeaderValue;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError as OciError;
use oci_client::secrets::RegistryAuth;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::sync::OnceCell;

use super::super::credentials::Credential;
use super::super::{Descriptor, RegistryError};
use super::client::{Client, chain};
use crate::digest::Digest;

/// How much of a file is read at once, in bytes.
const READ_BYTES: usize = 1 << 20;

/// The client for uploads, made when the first one is asked for.
#[derive(Default)]
pub(super) struct Uploads(OnceCell<oci_client::Client>);

impl Uploads {
    pub(super) async fn blob_file(
        &self,
        registry: &Client,
        descriptor: &Descriptor,
        path: &Path,
        what: &str,
    ) -> Result<(), RegistryError> {
        let (client, image) = self.open(registry, &descriptor.digest, None).await?;
        let upload = || async {
            let file = tokio::fs::File::open(path).await.map_err(|source| RegistryError::Io {
                doing: "opening",
                path: path.to_owned(),
                source,
            })?;
            let content = stream::try_unfold(file, |mut file| async {
                let mut buffer = Vec::with_capacity(READ_BYTES);
                let count = (&mut file).take(READ_BYTES as u64).read_to_end(&mut buffer).await?;
                Ok::<_, OciError>((count > 0).then(|| (buffer.into(), file)))
            });
            let digest = descriptor.digest.to_string();
            let sent = client.push_blob_stream(&image, content.boxed(), &digest, Some(descriptor.size)).await;
            sent.map(drop).map_err(|error| translate(error, what))
        };
        upload.retry(registry.backoff()).when(RegistryError::is_transient).await
    }

    pub(super) async fn blob(
        &self,
        registry: &Client,
        descriptor: &Descriptor,
        bytes: &[u8],
        what: &str,
    ) -> Result<(), RegistryError> {
        let (client, image) = self.open(registry, &descriptor.digest, None).await?;
        let upload = || async {
            let sent = client.push_blob(&image, bytes.to_vec(), &descriptor.digest.to_string()).await;
            sent.map(drop).map_err(|error| translate(error, what))
        };
        upload.retry(registry.backoff()).when(RegistryError::is_transient).await
    }

    pub(super) async fn manifest(
        &self,
        registry: &Client,
        tag: Option<&str>,
        digest: &Digest,
        media_type: &str,
        bytes: &[u8],
        what: &str,
    ) -> Result<(), RegistryError> {
        let (client, image) = self.open(registry, digest, tag).await?;
        let media_type = HeaderValue::try_from(media_type)
            .map_err(|err| RegistryError::Refused { what: what.to_owned(), detail: err.to_string() })?;
        let upload = || async {
            let sent = client.push_manifest_raw(&image, bytes.to_vec(), media_type.clone()).await;
            sent.map(drop).map_err(|error| translate(error, what))
        };
        upload.retry(registry.backoff()).when(RegistryError::is_transient).await
    }

    async fn open(
        &self,
        registry: &Client,
        digest: &Digest,
        tag: Option<&str>,
    ) -> Result<(&oci_client::Client, oci_client::Reference), RegistryError> {
        let (host, repository) = (registry.host.clone(), registry.repository.clone());
        let image = match tag {
            Some(tag) => oci_client::Reference::with_tag(host, repository, tag.to_owned()),
            None => oci_client::Reference::with_digest(host, repository, digest.to_string()),
        };
        let client = self.0.get_or_try_init(|| connect(registry, &image)).await?;
        Ok((client, image))
    }
}

async fn connect(
    registry: &Client,
    image: &oci_client::Reference,
) -> Result<oci_client::Client, RegistryError> {
    let what = || format!("uploads to {}/{}", registry.host, registry.repository);
    // oci-client fills its fields from a default client, and making that one panics where there is no CA bundle.
    reqwest::Client::builder().build().map_err(|error| RegistryError::Refused {
        what: what(),
        detail: format!("{}; apt-get install ca-certificates", chain(&error)),
    })?;
    let config = ClientConfig {
        protocol: ClientProtocol::HttpsExcept(registry.access.plain_http.clone()),
        extra_root_certificates: certificates(registry)?,
        // One PUT for each blob: what every registry takes.
        use_monolithic_push: true,
        connect_timeout: Some(registry.access.patience.connect),
        read_timeout: Some(registry.access.patience.silence),
        user_agent: concat!("switchback/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    };
    let client = oci_client::Client::try_from(config)
        .map_err(|error| RegistryError::Refused { what: what(), detail: chain(&error) })?;
    let auth = match registry.credential().await? {
        None => RegistryAuth::Anonymous,
        Some(Credential::Password { user, password }) => RegistryAuth::Basic(user, password),
        Some(Credential::IdentityToken(_)) => {
            let detail = "an identity token cannot upload; log in with a password or an access key".into();
            return Err(RegistryError::Denied { what: what(), detail });
        }
    };
    client.store_auth_if_needed(image.resolve_registry(), &auth).await;
    Ok(client)
}

/// The named certificates one by one: oci-client reads the first of a file only.
fn certificates(registry: &Client) -> Result<Vec<Certificate>, RegistryError> {
    const END: &str = "-----END CERTIFICATE-----";
    let Some(path) = &registry.access.ca_file else { return Ok(Vec::new()) };
    let pem = std::fs::read_to_string(path).map_err(|source| RegistryError::Io {
        doing: "reading the certificates in",
        path: path.clone(),
        source,
    })?;
    let one = |text: &str| Certificate { encoding: CertificateEncoding::Pem, data: text.as_bytes().to_vec() };
    Ok(pem.split_inclusive(END).filter(|text| text.ends_with(END)).map(one).collect())
}

fn translate(error: OciError, what: &str) -> RegistryError {
    let (what, detail) = (what.to_owned(), chain(&error));
    match error {
        OciError::AuthenticationFailure(_) | OciError::UnauthorizedError { .. } => {
            RegistryError::Denied { what, detail }
        }
        OciError::ServerError { code: 401 | 403, .. } => RegistryError::Denied { what, detail },
        OciError::ServerError { code: 429 | 500.., .. } | OciError::RequestError(_) => {
            RegistryError::Unreachable { what, detail }
        }
        OciError::ImageManifestNotFoundError(_) => RegistryError::Absent { what },
        _ => RegistryError::Broken { what, detail },
    }
}

/// What a manifest refers to.
pub(super) fn subject_of(manifest: &[u8]) -> Option<Digest> {
    let manifest: Value = serde_json::from_slice(manifest).ok()?;
    manifest.pointer("/subject/digest")?.as_str()?.parse().ok()
}

/// The list under the fallback tag with one more referrer (OCI distribution-spec, "Pushing Manifests with Subject"): what
/// a registry without the referrers API leaves to the client.
pub(super) fn with_referrer(list: Option<Vec<u8>>, manifest: &[u8], entry: &Descriptor) -> Vec<u8> {
    let manifest: Value = serde_json::from_slice(manifest).unwrap_or_default();
    let mut new = json!({"mediaType": entry.media_type, "digest": entry.digest, "size": entry.size});
    let kind = manifest.get("artifactType").or_else(|| manifest.pointer("/config/mediaType"));
    if let Some(kind) = kind {
        new["artifactType"] = kind.clone();
    }
    if let Some(annotations) = manifest.get("annotations") {
        new["annotations"] = annotations.clone();
    }
    let list: Option<Value> = list.and_then(|list| serde_json::from_slice(&list).ok());
    let old = list.as_ref().and_then(|list| list.get("manifests")).and_then(Value::as_array);
    let mut entries: Vec<Value> = old.cloned().unwrap_or_default();
    entries.retain(|old| old.get("digest") != new.get("digest"));
    entries.push(new);
    json!({"schemaVersion": 2, "mediaType": super::super::INDEX_MEDIA_TYPE, "manifests": entries})
        .to_string()
        .into_bytes()
}
