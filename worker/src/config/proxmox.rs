//! How to reach and trust the Proxmox API. Pure parsing; the client is elsewhere.

use std::{path::PathBuf, time::Duration};

use reqwest::Url;
use secrecy::SecretString;

use super::resolve::Layers;

/// What the Proxmox client needs.
#[derive(Debug, Clone)]
pub struct ProxmoxConfig {
    /// Overrides `api_url` of every node row.
    pub api_url: Option<Url>,
    /// For node rows without a usable `api_url`.
    pub fallback_url: Option<Url>,
    /// Who we are.
    pub login: Login,
    /// Whose certificates we believe.
    pub trust: TlsTrust,
    /// How long a request of unknown outcome may still take effect.
    pub settle: Duration,
}

/// How we log in.
#[derive(Debug, Clone)]
pub enum Login {
    /// By an API token.
    Token {
        /// `user@realm!name`.
        id: String,
        /// Its secret.
        secret: SecretString,
    },
    /// By a user's password, for tickets.
    Password {
        /// `user@realm`.
        user: String,
        /// The password.
        password: SecretString,
    },
}

/// Whose certificates we believe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsTrust {
    /// Exactly the certificates with these SHA-256 fingerprints.
    Pinned(Vec<[u8; 32]>),
    /// Those signed by a CA in this PEM file.
    CaFile(PathBuf),
    /// Those the system trusts.
    System,
}

/// Reads the Proxmox settings; problems go into `layers`.
pub(super) fn proxmox(layers: &mut Layers) -> Option<ProxmoxConfig> {
    let before = layers.problems.len();
    let api_url = layers.parsed("proxmox.api_url", base_url);
    let fallback_url = layers.parsed("proxmox.host", base_url);
    let login = login(layers);
    let pins = layers.parsed("proxmox.tls_fingerprint", fingerprints);
    let trust = match (pins, layers.text("proxmox.ca_file")) {
        (Some(pins), _) => TlsTrust::Pinned(pins),
        (None, Some(file)) => TlsTrust::CaFile(PathBuf::from(file)),
        (None, None) => TlsTrust::System,
    };
    let settle = layers.number("proxmox.settle_seconds", 0, 600)?;
    if layers.problems.len() > before {
        return None;
    }
    Some(ProxmoxConfig { api_url, fallback_url, login: login?, trust, settle: Duration::from_secs(settle) })
}

/// A token; a user and password only where no token is named.
fn login(layers: &mut Layers) -> Option<Login> {
    let by_password = layers.text("proxmox.token_id").is_none() && layers.text("proxmox.username").is_some();
    if by_password {
        if layers.text("proxmox.password").is_none() {
            layers.problem("proxmox.password", "is not set, while proxmox.username is");
        }
        let user = layers.parsed("proxmox.username", |text| {
            let well_formed = text.contains('@') && !text.contains(['!', ' ', '=']);
            if well_formed { Ok(text.to_owned()) } else { Err("must have the form user@realm".to_owned()) }
        });
        let password =
            layers.parsed("proxmox.password", |text| secret(text, "must be a password on one line"));
        return Some(Login::Password { user: user?, password: password? });
    }
    if layers.text("proxmox.token_id").is_none() {
        layers.problem("proxmox.token_id", "is not set; the Proxmox API needs a token");
    }
    let id = layers.parsed("proxmox.token_id", |text| {
        let well_formed = text
            .split_once('!')
            .is_some_and(|(user, name)| user.contains('@') && !name.is_empty() && !text.contains(['=', ' ']));
        if well_formed { Ok(text.to_owned()) } else { Err("must have the form user@realm!name".to_owned()) }
    });
    if layers.text("proxmox.token_secret").is_none() {
        layers.problem("proxmox.token_secret", "is not set; the Proxmox API needs a token");
    }
    let token = layers.parsed("proxmox.token_secret", |text| {
        if text.is_ascii() {
            secret(text, "must be the token's secret on one line")
        } else {
            Err("must be ASCII".to_owned())
        }
    });
    Some(Login::Token { id: id?, secret: token? })
}

fn secret(text: &str, problem: &str) -> Result<SecretString, String> {
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(problem.to_owned());
    }
    Ok(SecretString::from(text))
}

/// `host`, `host:port`, `https://host:port`, with or without `/api2/json`: the
/// forms found in mPanel's files and seeds. Only HTTPS is accepted.
///
/// # Errors
/// What is wrong with the text.
pub fn base_url(text: &str) -> Result<Url, String> {
    let text = text.trim();
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let mut url = Url::parse(&with_scheme).map_err(|error| format!("is not a URL ({error}): `{text}`"))?;
    if url.scheme() != "https" {
        return Err(format!("must begin with https:// (Proxmox speaks nothing else), is `{text}`"));
    }
    if url.host_str().is_none_or(str::is_empty) || !url.username().is_empty() || url.password().is_some() {
        return Err("must be a plain https://host:port".to_owned());
    }
    if url.port().is_none() && !with_scheme.trim_end_matches('/').ends_with(":443") {
        url.set_port(Some(8006)).map_err(|()| "cannot take a port".to_owned())?;
    }
    let path = url.path().trim_end_matches('/').trim_end_matches("/api2/json").to_owned();
    url.set_path(&path);
    url.set_query(None);
    url.set_fragment(None);
    Ok(url)
}

/// A comma list of SHA-256 fingerprints, with or without colons.
fn fingerprints(text: &str) -> Result<Vec<[u8; 32]>, String> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(fingerprint)
        .collect::<Result<Vec<_>, _>>()
        .and_then(|pins| if pins.is_empty() { Err("holds no fingerprint".to_owned()) } else { Ok(pins) })
}

fn fingerprint(text: &str) -> Result<[u8; 32], String> {
    let wrong = || format!("must be 32 hex pairs (SHA-256), is `{text}`");
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| *c != ':')
        .map(|c| c.to_digit(16).map(|d| d as u8))
        .collect::<Option<_>>()
        .ok_or_else(wrong)?;
    if digits.len() != 64 {
        return Err(wrong());
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_an_address_becomes_one_base() {
        for text in [
            "10.1.10.10",
            "10.1.10.10:8006",
            "https://10.1.10.10:8006",
            "https://10.1.10.10:8006/",
            "https://10.1.10.10:8006/api2/json",
            "https://10.1.10.10:8006/api2/json/",
        ] {
            assert_eq!(base_url(text).unwrap().as_str(), "https://10.1.10.10:8006/", "{text}");
        }
        for text in ["http://10.1.10.10:8006", "", "https://u:p@h", "https://"] {
            assert!(base_url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn fingerprints_are_read_with_and_without_colons() {
        let hex = "00".repeat(31) + "ff";
        let colons = vec!["AB"; 32].join(":");
        let pins = fingerprints(&format!("{hex}, {colons}")).unwrap();
        assert_eq!((pins[0][31], pins[1][0]), (0xff, 0xab));
        assert!(fingerprints("AA:BB").is_err());
        assert!(fingerprints(",").is_err());
    }
}
