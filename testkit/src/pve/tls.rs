//! The simulator's own certificate authority and server certificate.
//!
//! Made anew at each start; nothing is read from disk.

use std::net::IpAddr;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};

use super::SimError;

/// What the listener needs and what clients are told.
pub(crate) struct Identity {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) ca_pem: String,
    /// SHA-256 of the server certificate, colon-separated upper-case hex.
    pub(crate) fingerprint: String,
}

/// Makes a CA and a certificate for `localhost`, `127.0.0.1`, `::1` and the address listened on.
pub(crate) fn generate(listen: IpAddr) -> Result<Identity, SimError> {
    let mut ca = CertificateParams::new(Vec::<String>::new()).map_err(SimError::certificate)?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "pve-sim test authority");
    ca.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let ca_key = KeyPair::generate().map_err(SimError::certificate)?;
    let ca_cert = ca.self_signed(&ca_key).map_err(SimError::certificate)?;
    let issuer = Issuer::new(ca, ca_key);

    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if !listen.is_unspecified() && !listen.is_loopback() {
        names.push(listen.to_string());
    }
    let mut leaf = CertificateParams::new(names).map_err(SimError::certificate)?;
    leaf.distinguished_name.push(DnType::CommonName, "pve-sim");
    leaf.use_authority_key_identifier_extension = true;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().map_err(SimError::certificate)?;
    let cert = leaf.signed_by(&key, &issuer).map_err(SimError::certificate)?;

    let fingerprint: Vec<String> =
        Sha256::digest(cert.der()).iter().map(|byte| format!("{byte:02X}")).collect();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(SimError::certificate)?
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone(), ca_cert.der().clone()], private)
        .map_err(SimError::certificate)?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Identity { server: Arc::new(server), ca_pem: ca_cert.pem(), fingerprint: fingerprint.join(":") })
}
