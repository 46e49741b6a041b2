//! Credentials for a registry, from the files and helpers that docker and podman keep.
//!
//! Not here: when they are sent (`http`: only to the registry that asked, or to the token service it names, over TLS
//! unless that host is named for plain HTTP). Rule: a secret appears in no message and no log.

use std::env;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential_from_reader};

use super::RegistryError;

/// The largest credentials file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What proves to a registry who asks.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A user name and its password or access key.
    Password {
        /// The user.
        user: String,
        /// The secret.
        password: String,
    },
    /// A refresh token that a token service exchanges.
    IdentityToken(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credential::Password { user, .. } => write!(f, "password of {user}"),
            Credential::IdentityToken(_) => f.write_str("identity token"),
        }
    }
}

/// Looks up the credential for `host`: in `named` when a file is named, else in docker's `config.json` (`DOCKER_CONFIG`
/// or `~/.docker`) and podman's `auth.json` (`REGISTRY_AUTH_FILE`, `XDG_RUNTIME_DIR`, `~/.config`). None when no file
/// has one. May run a credential helper, so it blocks.
///
/// # Errors
/// A file that is there and unreadable, or a helper that failed: the operator meant to send something.
pub fn find(host: &str, named: Option<&Path>) -> Result<Option<Credential>, RegistryError> {
    let files = named.map_or_else(usual_files, |file| vec![file.to_owned()]);
    for path in files {
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(err) if err.kind() == std::io::ErrorKind::NotFound && named.is_none() => continue,
            Err(source) => {
                return Err(RegistryError::Io { doing: "opening the credentials in", path, source });
            }
        };
        match get_credential_from_reader(file.take(FILE_BYTES_MAX), server(host)) {
            Ok(credential) => return Ok(Some(credential.into())),
            Err(CredentialRetrievalError::NoCredentialConfigured) => {}
            Err(error) => return Err(unusable(host, &path, &error)),
        }
    }
    Ok(None)
}

/// The name under which docker keeps the credentials of its own registry.
fn server(host: &str) -> &str {
    if host == "docker.io" { "https://index.docker.io/v1/" } else { host }
}

fn usual_files() -> Vec<PathBuf> {
    let home = |below: &str| env::var_os("HOME").map(|home| Path::new(&home).join(below));
    let folder = |name: &str, below: &str| env::var_os(name).map(|dir| Path::new(&dir).join(below));
    let docker = folder("DOCKER_CONFIG", "config.json").or_else(|| home(".docker/config.json"));
    let podman = env::var_os("REGISTRY_AUTH_FILE").map(PathBuf::from);
    [docker, podman, folder("XDG_RUNTIME_DIR", "containers/auth.json"), home(".config/containers/auth.json")]
        .into_iter()
        .flatten()
        .collect()
}

/// A helper's output is left out of the message: it may hold the secret.
fn unusable(host: &str, path: &Path, error: &CredentialRetrievalError) -> RegistryError {
    let detail = match error {
        CredentialRetrievalError::HelperFailure { helper, .. } => format!("`{helper} get` failed"),
        other => other.to_string(),
    };
    RegistryError::Denied {
        what: format!("the credentials of {host}"),
        detail: format!("{}: {detail}", path.display()),
    }
}

impl From<DockerCredential> for Credential {
    fn from(credential: DockerCredential) -> Credential {
        match credential {
            DockerCredential::IdentityToken(token) => Credential::IdentityToken(token),
            DockerCredential::UsernamePassword(user, password) => Credential::Password { user, password },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn a_named_file_gives_the_credential_of_exactly_that_host() {
        // `dXNlcjpzZWNyZXQ=` is `user:secret`.
        let file = file(
            r#"{"auths":{"r.example:5000":{"auth":"dXNlcjpzZWNyZXQ="},"id.example":{"auth":"","identitytoken":"T"}}}"#,
        );
        let found = |host| find(host, Some(file.path())).unwrap();
        let password = Credential::Password { user: "user".into(), password: "secret".into() };
        assert_eq!(found("r.example:5000"), Some(password));
        assert_eq!(found("id.example"), Some(Credential::IdentityToken("T".into())));
        assert_eq!(found("r.example"), None);
        assert_eq!(found("r.example:5001"), None);
        assert!(!format!("{:?}", found("r.example:5000")).contains("secret"));
    }

    #[test]
    fn a_named_file_that_is_missing_or_broken_is_an_error() {
        assert!(matches!(
            find("r.example", Some(Path::new("/nonexistent/config.json"))),
            Err(RegistryError::Io { .. })
        ));
        let broken = file("{");
        let error = find("r.example", Some(broken.path())).unwrap_err();
        assert!(error.to_string().contains(broken.path().to_str().unwrap()), "{error}");
    }
}
