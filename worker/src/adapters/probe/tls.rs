//! TLS for looks from outside: who is believed, and when the certificate ends,
//! which is told of those that are not believed too.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::der;

/// Who is believed.
#[derive(Debug, Clone)]
pub(super) struct Trust {
    /// Absent where the system has no certificates at all: then nobody is.
    verifier: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl Trust {
    pub(super) fn load(ca_file: Option<&Path>) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        // Single certificates that cannot be read are passed over, as everybody does.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(file) = ca_file {
            let unusable = |why: String| format!("telemetry.ca_file {} {why}", file.display());
            let certificates = CertificateDer::pem_file_iter(file)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| unusable(format!("cannot be read: {error}")))?;
            if certificates.is_empty() {
                return Err(unusable("holds no certificate".to_owned()));
            }
            for certificate in certificates {
                roots.add(certificate).map_err(|error| unusable(format!("cannot be used: {error}")))?;
            }
        }
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().ok();
        Ok(Self { verifier, provider })
    }

    /// Agrees on TLS; `None` when time runs out. Beside it the certificate's end.
    pub(super) async fn shake_hands(
        &self,
        host: &str,
        stream: TcpStream,
        deadline: Instant,
    ) -> (Option<Result<TlsStream<TcpStream>, String>>, Option<i64>) {
        let Some(verifier) = self.verifier.clone() else {
            let text =
                "no certificate authorities are known; install ca-certificates or set telemetry.ca_file";
            return (Some(Err(text.to_owned())), None);
        };
        let name = match ServerName::try_from(host.to_owned()) {
            Ok(name) => name,
            Err(error) => return (Some(Err(format!("{host} is no name for TLS: {error}"))), None),
        };
        let witness = Arc::new(Witness { verifier, end: OnceLock::new() });
        let config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map(|builder| {
                builder
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::clone(&witness) as Arc<dyn ServerCertVerifier>)
                    .with_no_client_auth()
            });
        let config = match config {
            Ok(config) => config,
            Err(error) => return (Some(Err(error.to_string())), None),
        };
        let shaken = timeout_at(deadline, TlsConnector::from(Arc::new(config)).connect(name, stream)).await;
        let shaken = shaken.ok().map(|shaken| shaken.map_err(|error| error.to_string()));
        (shaken, witness.end.get().copied())
    }
}

/// Verifies as usual, and notes when the certificate ends.
#[derive(Debug)]
struct Witness {
    verifier: Arc<WebPkiServerVerifier>,
    end: OnceLock<i64>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(end) = der::not_after(end_entity.as_ref()) {
            // One handshake shows one certificate.
            let _ = self.end.set(end);
        }
        self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
