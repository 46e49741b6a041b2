//! Where an image is: `oci:PATH[:TAG|@DIGEST]` or `HOST[:PORT]/REPOSITORY[:TAG|@DIGEST]`.
//!
//! Not here: fetching. Rule: every part is checked against the grammar of the OCI distribution-spec before it becomes
//! part of a URL, so a reference can name neither another path nor another host than the one it shows.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::digest::Digest;

/// The longest reference that is read, in bytes.
const REFERENCE_BYTES_MAX: usize = 1024;

/// An image's place and, when given, which of the images there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The repository.
    pub source: Source,
    /// Which image; none when the reference names the repository alone.
    pub version: Option<Version>,
}

/// A repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An OCI layout folder.
    Layout(PathBuf),
    /// A repository of a registry.
    Registry {
        /// Host, with `:port` when it was given.
        host: String,
        /// The repository's name: `team/os`.
        repository: String,
    },
}

/// Which image of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Version {
    /// A name that may move.
    Tag(String),
    /// The content itself.
    Digest(Digest),
}

/// A text that is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no image reference: {why}; expected `HOST[:PORT]/REPOSITORY[:TAG|@sha256:…]` or `oci:PATH[:TAG|@sha256:…]`"
)]
pub struct ReferenceError {
    text: String,
    why: &'static str,
}

impl Reference {
    /// The same repository, another image.
    pub fn with(&self, version: Version) -> Reference {
        Reference { source: self.source.clone(), version: Some(version) }
    }

    /// The tag, when the reference names one.
    pub fn tag(&self) -> Option<&str> {
        match &self.version {
            Some(Version::Tag(tag)) => Some(tag),
            _ => None,
        }
    }

    /// The digest, when the reference names one.
    pub fn digest(&self) -> Option<Digest> {
        match self.version {
            Some(Version::Digest(digest)) => Some(digest),
            _ => None,
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|why| ReferenceError { text: text.chars().take(200).collect(), why })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.len() > REFERENCE_BYTES_MAX {
        return Err("it is too long");
    }
    let (layout, rest) = match text.strip_prefix("oci:") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (place, version) = split_version(rest, layout)?;
    let source = if layout { layout_source(place)? } else { registry_source(place)? };
    Ok(Reference { source, version })
}

/// Splits `PLACE[:TAG|@DIGEST]`. A colon before the last slash belongs to a port or a folder.
fn split_version(text: &str, layout: bool) -> Result<(&str, Option<Version>), &'static str> {
    if let Some((place, digest)) = text.rsplit_once('@') {
        let digest = digest.parse().map_err(|_| "what follows `@` is no sha256 digest")?;
        // `name:tag@digest`: the digest decides, the tag is for people.
        let place = if layout { place } else { split_tag(place).map_or(place, |(place, _)| place) };
        return Ok((place, Some(Version::Digest(digest))));
    }
    match split_tag(text) {
        Some((place, tag)) if is_tag(tag) => Ok((place, Some(Version::Tag(tag.to_owned())))),
        Some(_) => Err("the tag has characters that a tag may not have"),
        None => Ok((text, None)),
    }
}

fn split_tag(text: &str) -> Option<(&str, &str)> {
    let name_start = text.rfind('/').map_or(0, |slash| slash + 1);
    let colon = text[name_start..].rfind(':')? + name_start;
    // `host:5000` alone is no repository with a tag; without a slash there is no repository at all.
    Some((&text[..colon], &text[colon + 1..]))
}

fn layout_source(place: &str) -> Result<Source, &'static str> {
    if place.is_empty() {
        return Err("the folder is missing");
    }
    Ok(Source::Layout(PathBuf::from(place)))
}

fn registry_source(place: &str) -> Result<Source, &'static str> {
    let (host, repository) = place.split_once('/').ok_or("the registry's host is missing")?;
    // Docker's short names (`debian` for docker.io/library/debian) are not guessed: a typing error must not
    // become a request to another host.
    if !host.contains(['.', ':']) && host != "localhost" {
        return Err("the first part is no host (a name with a dot or a port, or localhost)");
    }
    if !is_host(host) {
        return Err("the host has characters that a host may not have");
    }
    if !is_repository(repository) {
        return Err("the repository has characters that a repository may not have");
    }
    Ok(Source::Registry { host: host.to_owned(), repository: repository.to_owned() })
}

/// `name`, `name:port`, `1.2.3.4:port`, `[::1]:port`.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            let v6 = address.parse::<std::net::Ipv6Addr>().is_ok();
            return v6 && (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port));
        }
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    let label = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    name.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

/// OCI distribution-spec, "Pulling manifests": `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/…)*`.
fn is_repository(repository: &str) -> bool {
    repository.len() <= 255 && repository.split('/').all(is_repository_part)
}

fn is_repository_part(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let separators_fit = part
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|run| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|b| b == b'-'));
    part.bytes().next().is_some_and(alphanumeric)
        && part.bytes().last().is_some_and(alphanumeric)
        && separators_fit
}

/// OCI distribution-spec: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
pub(super) fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Layout(path) => write!(f, "oci:{}", path.display()),
            Source::Registry { host, repository } => write!(f, "{host}/{repository}"),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source)?;
        match &self.version {
            Some(Version::Tag(tag)) => write!(f, ":{tag}"),
            Some(Version::Digest(digest)) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(host: &str, repository: &str) -> Source {
        Source::Registry { host: host.into(), repository: repository.into() }
    }

    #[test]
    fn a_reference_names_a_place_and_an_image() {
        let digest = Digest::of(b"x");
        let at = |place: &str| format!("{place}@{digest}");
        for (text, source, version) in [
            ("r.example/os:1.0", registry("r.example", "os"), Some(Version::Tag("1.0".into()))),
            ("127.0.0.1:5000/a/b-c", registry("127.0.0.1:5000", "a/b-c"), None),
            ("[::1]:5000/os:x", registry("[::1]:5000", "os"), Some(Version::Tag("x".into()))),
            ("localhost/os", registry("localhost", "os"), None),
            (&at("r.example/os"), registry("r.example", "os"), Some(Version::Digest(digest))),
            (&at("r.example/os:1.0"), registry("r.example", "os"), Some(Version::Digest(digest))),
            ("oci:/srv/os", Source::Layout("/srv/os".into()), None),
            ("oci:/srv/a:b/os:1.1", Source::Layout("/srv/a:b/os".into()), Some(Version::Tag("1.1".into()))),
            (&at("oci:rel"), Source::Layout("rel".into()), Some(Version::Digest(digest))),
        ] {
            let parsed: Reference = text.parse().unwrap();
            assert_eq!((parsed.source, parsed.version), (source, version), "{text}");
        }
    }

    #[test]
    fn a_text_that_could_lead_elsewhere_is_refused() {
        for text in [
            "",
            "os",
            "debian/os",
            "r.example",
            "r.example:5000",
            "r.example/../os",
            "r.example/os/",
            "r.example//os",
            "r.example/OS",
            "r.example/os?x=1",
            "user@r.example/os",
            "user:word@r.example/os",
            "r.example:99999/os",
            "r.example/os:../x",
            "r.example/os@sha256:../../x",
            "r.example/os@sha512:00",
            "r.example/a___b",
            "http://r.example/os",
            "oci:",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_shown_reads_back() {
        for text in ["r.example:5000/a/os:1.0", "oci:/srv/os:1.0", "r.example/os"] {
            let parsed: Reference = text.parse().unwrap();
            assert_eq!(parsed.to_string(), text);
            assert_eq!(parsed.to_string().parse(), Ok(parsed));
        }
    }
}
