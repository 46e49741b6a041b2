//! Certificates for a registry on the loopback, by openssl: of a private authority, valid when a test wants them to be.
//!
//! Not here: which of them are believed. Rule: their dates are made by a clock that is set back for openssl alone, so that
//! they are what an authority would have issued then.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::lab::tools;

/// What a server and its clients are given.
#[derive(Debug, Clone)]
pub struct Certificates {
    /// The authority's certificate.
    pub authority: PathBuf,
    /// One that it gave to 127.0.0.1.
    pub cert: PathBuf,
    /// The key of that one.
    pub key: PathBuf,
}

impl Certificates {
    /// Certificates in `folder`, valid from now for `days`.
    pub fn new(folder: &Path, days: u32) -> Result<Certificates> {
        Certificates::make(folder, None, days)
    }

    /// Certificates issued at `from` (`2020-01-01 00:00:00`, UTC).
    pub fn issued(folder: &Path, from: &str, days: u32) -> Result<Certificates> {
        Certificates::make(folder, Some(from), days)
    }

    /// The registry's configuration that goes with them.
    pub fn settings(&self) -> String {
        format!("  tls:\n    certificate: {}\n    key: {}\n", self.cert.display(), self.key.display())
    }

    fn make(folder: &Path, from: Option<&str>, days: u32) -> Result<Certificates> {
        std::fs::create_dir_all(folder)?;
        let days = days.to_string();
        let openssl = |args: &[&str]| {
            let program = tools::program("openssl", "openssl")?;
            let mut command = match from {
                Some(from) => at(from, &program)?,
                None => Command::new(program),
            };
            tools::run(command.args(args).current_dir(folder))
        };
        let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let authority =
            ["req", "-x509", "-days", &days, "-subj", "/CN=lab", "-keyout", "ca.key", "-out", "ca.pem"];
        openssl(&[&authority[..], &new_key].concat())?;
        let request = ["req", "-subj", "/CN=registry", "-keyout", "key.pem", "-out", "request.pem"];
        openssl(&[&request[..], &new_key].concat())?;
        std::fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")?;
        let sign = ["x509", "-req", "-days", &days, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
        openssl(&[&sign[..], &["-in", "request.pem", "-extfile", "names", "-out", "cert.pem"]].concat())?;
        let [authority, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|name| folder.join(name));
        Ok(Certificates { authority, cert, key })
    }
}

/// A program for which it is `time` (UTC) when it starts; the kernel's monotonic clock stays true, so that waits end.
pub fn at(time: &str, program: &Path) -> Result<Command> {
    let mut command = Command::new(tools::program("faketime", "faketime")?);
    command.env("TZ", "UTC").env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1");
    command.arg("-f").arg(format!("@{time}")).arg(program);
    Ok(command)
}
