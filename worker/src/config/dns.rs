//! Whether and where names of pods are kept. Pure parsing; off unless a zone is set.

use reqwest::Url;
use secrecy::SecretString;

use super::resolve::Layers;

/// What keeping names needs.
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// PowerDNS's API, without `/api/v1`.
    pub api_url: Url,
    /// Its key.
    pub api_key: SecretString,
    /// The zone of pods without a domain of their own, with its final dot.
    pub zone: String,
    /// The zone's name servers, with final dots; empty: a missing zone is not made.
    pub nameservers: Vec<String>,
    /// How long records may be cached, seconds.
    pub ttl_s: u32,
}

/// Reads the settings; problems go into `layers`.
pub(super) fn dns(layers: &mut Layers) -> Option<DnsConfig> {
    layers.text("dns.zone").filter(|zone| !zone.is_empty())?;
    let zone = layers.parsed("dns.zone", domain);
    for key in ["dns.api_url", "dns.api_key"] {
        if layers.text(key).is_none_or(str::is_empty) {
            layers.problem(key, "is not set, while dns.zone is");
        }
    }
    let api_url = layers.parsed("dns.api_url", |text| match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
        _ => Err(format!("must be a URL http://host:port, is `{text}`")),
    });
    let api_key = layers.parsed("dns.api_key", |text| {
        if text.chars().any(|c| c.is_control() || !c.is_ascii()) {
            return Err("must be the key on one line".to_owned());
        }
        Ok(SecretString::from(text))
    });
    let nameservers = match layers.text("dns.nameservers") {
        None | Some("") => Some(Vec::new()),
        Some(_) => layers.parsed("dns.nameservers", |text| {
            text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(domain).collect()
        }),
    };
    let ttl = layers.number("dns.ttl_seconds", 1, 604_800);
    Some(DnsConfig {
        api_url: api_url?,
        api_key: api_key?,
        zone: zone?,
        nameservers: nameservers?,
        ttl_s: u32::try_from(ttl?).ok()?,
    })
}

/// A domain name in lower case, with its final dot.
fn domain(text: &str) -> Result<String, String> {
    let name = text.trim_end_matches('.').to_ascii_lowercase();
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
    };
    if name.len() <= 200 && name.contains('.') && name.split('.').all(label) {
        Ok(format!("{name}."))
    } else {
        Err(format!("must be a domain name, is `{text}`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_get_their_final_dot_and_nonsense_is_refused() {
        assert_eq!(domain("Pods.Example").unwrap(), "pods.example.");
        assert_eq!(domain("pods.example.").unwrap(), "pods.example.");
        for bad in ["", ".", "example", "a..b", "-a.b", "a b.c", "a;b.c"] {
            assert!(domain(bad).is_err(), "{bad}");
        }
    }
}
