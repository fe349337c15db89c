//! PowerDNS by its HTTP API (`/api/v1`): zones and RRsets.
//!
//! Knows nothing of pods. Every call may be repeated: a zone that exists is
//! success, and an RRset is replaced or deleted as a whole.

use std::time::Duration;

use reqwest::{Client, Method, StatusCode, Url, header::HeaderValue, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::proxmox::install_tls_provider;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(15);
/// Longest part of an answer that goes into an error.
const TEXT_MAX: usize = 200;

/// PowerDNS refused, or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The client cannot be set up.
    #[error("the PowerDNS client cannot be set up: {0}")]
    Setup(String),
    /// It cannot be reached.
    #[error("PowerDNS at {api} cannot be reached: {detail}")]
    Unreachable {
        /// Its address.
        api: String,
        /// What happened.
        detail: String,
    },
    /// It refuses the key.
    #[error("PowerDNS at {api} refuses the key; check PDNS_API_KEY")]
    Credentials {
        /// Its address.
        api: String,
    },
    /// It refuses the request.
    #[error("PowerDNS at {api} answers {status} to {call}: {text}")]
    Refused {
        /// Its address.
        api: String,
        /// The call.
        call: String,
        /// The HTTP status.
        status: u16,
        /// Its words.
        text: String,
    },
}

/// All records of one name and type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RrSet {
    /// The name, with its final dot.
    pub name: String,
    /// `A`, `AAAA`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// How long it may be cached, seconds.
    #[serde(default)]
    pub ttl: u32,
    /// The records.
    #[serde(default)]
    pub records: Vec<Record>,
    /// Remarks.
    #[serde(default)]
    pub comments: Vec<Comment>,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What it says.
    pub content: String,
    /// Whether it is not answered.
    #[serde(default)]
    pub disabled: bool,
}

/// One remark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comment {
    /// The text.
    pub content: String,
    /// Who made it.
    #[serde(default)]
    pub account: String,
}

/// A change of an RRset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It becomes this.
    Replace(RrSet),
    /// It goes.
    Delete {
        /// Its name.
        name: String,
        /// Its type.
        kind: String,
    },
}

#[derive(Deserialize)]
struct Zone {
    #[serde(default)]
    rrsets: Vec<RrSet>,
}

/// One PowerDNS server.
#[derive(Clone, Debug)]
pub struct PowerDns {
    http: Client,
    base: Url,
    key: HeaderValue,
}

impl PowerDns {
    /// The server behind the API at `base`. Opens no connection.
    ///
    /// # Errors
    /// [`DnsError::Setup`].
    pub fn new(base: &Url, key: &SecretString) -> Result<Self, DnsError> {
        install_tls_provider();
        let http = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .build()
            .map_err(|error| DnsError::Setup(error.to_string()))?;
        let mut key = HeaderValue::from_str(key.expose_secret())
            .map_err(|_| DnsError::Setup("the key holds characters that HTTP refuses".to_owned()))?;
        key.set_sensitive(true);
        Ok(Self { http, base: base.clone(), key })
    }

    /// The RRsets of a name in a zone; `None` when there is no such zone.
    ///
    /// # Errors
    /// [`DnsError`].
    pub async fn rrsets(&self, zone: &str, name: &str) -> Result<Option<Vec<RrSet>>, DnsError> {
        // Servers that do not know the parameter answer with all of them.
        let answer = self.send(Method::GET, &["zones", zone], &[("rrset_name", name)], None).await;
        match answer {
            Ok(body) => {
                let zone: Zone = serde_json::from_value(body).map_err(|error| DnsError::Refused {
                    api: self.base.to_string(),
                    call: "GET zone".to_owned(),
                    status: 200,
                    text: error.to_string(),
                })?;
                Ok(Some(zone.rrsets.into_iter().filter(|set| set.name.eq_ignore_ascii_case(name)).collect()))
            }
            Err(DnsError::Refused { status: 404 | 422, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a zone; one that is there already is left as it is.
    ///
    /// # Errors
    /// [`DnsError`].
    pub async fn create_zone(&self, zone: &str, nameservers: &[String]) -> Result<(), DnsError> {
        let body = json!({ "name": zone, "kind": "Native", "nameservers": nameservers });
        match self.send(Method::POST, &["zones"], &[], Some(&body)).await {
            Ok(_) | Err(DnsError::Refused { status: 409, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Changes RRsets of a zone, all or none.
    ///
    /// # Errors
    /// [`DnsError`].
    pub async fn change(&self, zone: &str, changes: &[Change]) -> Result<(), DnsError> {
        let rrsets: Vec<Value> = changes
            .iter()
            .map(|change| match change {
                Change::Replace(set) => json!({
                    "name": set.name, "type": set.kind, "ttl": set.ttl, "changetype": "REPLACE",
                    "records": set.records, "comments": set.comments,
                }),
                Change::Delete { name, kind } => {
                    json!({ "name": name, "type": kind, "changetype": "DELETE" })
                }
            })
            .collect();
        let body = json!({ "rrsets": rrsets });
        self.send(Method::PATCH, &["zones", zone], &[], Some(&body)).await.map(|_| ())
    }

    async fn send(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Value, DnsError> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v1", "servers", "localhost"]).extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.http.request(method.clone(), url).header("X-API-Key", self.key.clone());
        if let Some(body) = body {
            request = request.json(body);
        }
        let unreachable = |error: reqwest::Error| DnsError::Unreachable {
            api: self.base.to_string(),
            detail: error.without_url().to_string(),
        };
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(unreachable)?;
        if status.is_success() {
            return Ok(serde_json::from_slice(&bytes).unwrap_or(Value::Null));
        }
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(DnsError::Credentials { api: self.base.to_string() });
        }
        let said: Option<String> = serde_json::from_slice::<Value>(&bytes)
            .ok()
            .and_then(|value| value.get("error")?.as_str().map(str::to_owned));
        let text = said.unwrap_or_else(|| String::from_utf8_lossy(&bytes).into_owned());
        Err(DnsError::Refused {
            api: self.base.to_string(),
            call: format!("{method} /{}", path.join("/")),
            status: status.as_u16(),
            text: text.chars().filter(|c| !c.is_control()).take(TEXT_MAX).collect(),
        })
    }
}
