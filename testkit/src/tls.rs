//! A certificate authority of a test's own, and the certificates it signs, as PEM files.
//!
//! Made anew each time; nothing is read from disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::TestkitError;
use crate::child::GuardedDir;

/// An authority; clones are the same one.
#[derive(Debug, Clone)]
pub struct Authority {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    issuer: Issuer<'static, KeyPair>,
    dir: GuardedDir,
}

fn failed(error: rcgen::Error) -> TestkitError {
    TestkitError::failed("test certificate", error.to_string())
}

fn write(path: &Path, text: &str) -> Result<(), TestkitError> {
    std::fs::write(path, text).map_err(TestkitError::file("write", path))
}

impl Authority {
    /// A new authority.
    ///
    /// # Errors
    /// [`TestkitError::File`] when its files cannot be written.
    pub fn new() -> Result<Self, TestkitError> {
        let mut ca = CertificateParams::new(Vec::<String>::new()).map_err(failed)?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(DnType::CommonName, "fleet test authority");
        ca.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().map_err(failed)?;
        let cert = ca.self_signed(&key).map_err(failed)?;
        let dir = GuardedDir::create("fleet-tls-")?;
        write(&dir.path().join("ca.pem"), &cert.pem())?;
        Ok(Self { inner: Arc::new(Inner { issuer: Issuer::new(ca, key), dir }) })
    }

    /// The file with the authority's certificate.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.inner.dir.path().join("ca.pem")
    }

    /// A client's certificate and key.
    ///
    /// # Errors
    /// [`TestkitError::File`] when they cannot be written.
    pub fn client(&self, name: &str) -> Result<(PathBuf, PathBuf), TestkitError> {
        self.sign(self.inner.dir.path(), name)
    }

    fn sign(&self, dir: &Path, name: &str) -> Result<(PathBuf, PathBuf), TestkitError> {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        let mut leaf = CertificateParams::new(names).map_err(failed)?;
        leaf.distinguished_name.push(DnType::CommonName, name);
        leaf.use_authority_key_identifier_extension = true;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().map_err(failed)?;
        let cert = leaf.signed_by(&key, &self.inner.issuer).map_err(failed)?;
        let files = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        write(&files.0, &cert.pem())?;
        write(&files.1, &key.serialize_pem())?;
        Ok(files)
    }

    /// What a server's configuration needs to speak TLS on `port`; it asks for client certificates unless a later
    /// line says otherwise.
    pub(crate) fn server_lines(&self, dir: &Path, port: u16) -> Result<String, TestkitError> {
        let (cert, key) = self.sign(dir, "server")?;
        Ok(format!(
            "tls-port {port}\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\n",
            cert.display(),
            key.display(),
            self.ca().display()
        ))
    }
}
