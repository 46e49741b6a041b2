//! TLS as registries are spoken to: the system's authorities and the named ones, judged by a clock that is not behind.
//!
//! Not here: which hosts go without TLS (`client`). Rule: what is wrong with a certificate is said in words that a person
//! can act on, and it is final: asking again gives the same certificate.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{CertificateError, RootCertStore, crypto};
use rustls_platform_verifier::Verifier;

use crate::host::clock;

/// The clock of certificates.
#[derive(Debug)]
struct JudgedClock {
    signed_unix_secs: u64,
}

impl TimeProvider for JudgedClock {
    fn current_time(&self) -> Option<UnixTime> {
        let now = clock::judged_unix_secs(self.signed_unix_secs);
        Some(UnixTime::since_unix_epoch(Duration::from_secs(now)))
    }
}

/// The certificates of a PEM file; none when it holds none.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| error.to_string())
}

/// TLS that believes the system's authorities and `roots`. `signed_unix_secs` is the newest time that a trusted key signed.
pub(super) fn config(
    roots: Vec<CertificateDer<'static>>,
    signed_unix_secs: u64,
) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let clock = Arc::new(JudgedClock { signed_unix_secs });
    let builder = ClientConfig::builder_with_details(Arc::clone(&provider), clock)
        .with_safe_default_protocol_versions()?;
    let mut config = match Verifier::new_with_extra_roots(roots.iter().cloned(), Arc::clone(&provider)) {
        Ok(verifier) => {
            let verifier: Arc<dyn ServerCertVerifier> = Arc::new(verifier);
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        }
        // No warning: a machine that only speaks to named hosts over plain HTTP needs no authorities, and with none at all
        // every TLS connection fails by name, as it must.
        Err(error) => {
            tracing::debug!(%error, "no CA certificates of the system; only the named ones are trusted");
            let mut store = RootCertStore::empty();
            roots.into_iter().try_for_each(|root| store.add(root))?;
            builder.with_root_certificates(store).with_no_client_auth()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// What a connection failed of, when asking again gives the same: the certificate, or no TLS at all.
pub(super) fn final_fault(error: &reqwest::Error) -> Option<String> {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        // An `io::Error` is no parent of what it carries, but of that one's causes.
        let carried = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let found = carried.map_or_else(
            || error.downcast_ref::<rustls::Error>(),
            |carried| carried.downcast_ref::<rustls::Error>(),
        );
        if let Some(fault) = found {
            return in_words(fault);
        }
        cause = match carried {
            Some(carried) => Some(carried),
            None => error.source(),
        };
    }
    None
}

fn in_words(fault: &rustls::Error) -> Option<String> {
    let clock = |edge: &str, at: &UnixTime, now: &UnixTime| {
        let (at, now) = (clock::in_words(at.as_secs()), clock::in_words(now.as_secs()));
        format!(
            "its certificate is valid {edge} {at}, and this machine takes the time for {now}: check the clock"
        )
    };
    match fault {
        rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
            Some(clock("until", not_after, time))
        }
        rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before }) => {
            Some(clock("from", not_before, time))
        }
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => Some(
            "its certificate is signed by an authority that this machine does not know; `ca_file` names more".into(),
        ),
        rustls::Error::InvalidCertificate(why) => Some(format!("its certificate is not accepted: {why}")),
        rustls::Error::InvalidMessage(_) => Some(
            "it does not speak TLS; a registry that is meant to be asked in the clear is named under `plain_http`"
                .into(),
        ),
        _ => None,
    }
}
