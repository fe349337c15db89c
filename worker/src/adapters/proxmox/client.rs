//! One HTTP call to the Proxmox API: form encoding, token, timeouts, and the
//! translation of every way in which it can fail.
//!
//! Knows no operation; those are in [`super::cluster`], [`super::create`],
//! [`super::guest`] and [`super::task`].

use std::{error::Error as StdError, sync::Arc, time::Duration};

use backon::{ExponentialBuilder, Retryable};
use hyper::ext::ReasonPhrase;
use reqwest::{Certificate, Client, Method, Response, Url, redirect};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    error::{Class, Outcome, PveError, classify},
    gate::Gates,
    login::{Credentials, TicketRow},
    tls,
    types::{Envelope, typed},
};
use crate::config::{ProxmoxConfig, TlsTrust};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Wrong credentials are answered after 3 s, so a GET may not give up earlier.
const GET_TIMEOUT: Duration = Duration::from_secs(20);
/// Proxmox's relay between nodes gives up after 30 s.
const MUTATION_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest answer that is read, bytes: that of thousands of guests is shorter.
const ANSWER_MAX: usize = 8 << 20;
/// Below the server's 5 s, else reused connections die in mid-request.
const POOL_IDLE: Duration = Duration::from_secs(3);

/// The Proxmox client cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The CA file cannot be used.
    #[error("PROXMOX_CA_FILE {file}: {detail}")]
    CaFile {
        /// The file.
        file: String,
        /// What is wrong with it.
        detail: String,
    },
    /// TLS or the HTTP client refuses its settings.
    #[error("the Proxmox client cannot be set up: {0}")]
    Client(String),
}

/// The Proxmox APIs of this installation: one HTTP client, one login.
#[derive(Clone, Debug)]
pub struct Pve {
    http: Client,
    credentials: Arc<Credentials>,
    gates: Arc<Gates>,
}

impl Pve {
    /// Builds the client. Opens no connection.
    ///
    /// # Errors
    /// [`SetupError`], for the operator.
    pub fn new(config: &ProxmoxConfig) -> Result<Self, SetupError> {
        tls::install_provider();
        let builder = Client::builder()
            .http1_only()
            .no_proxy()
            .https_only(true)
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(POOL_IDLE);
        let builder = match &config.trust {
            TlsTrust::Pinned(fingerprints) => {
                let tls = tls::pinned(fingerprints.clone())
                    .map_err(|error| SetupError::Client(error.to_string()))?;
                builder.tls_backend_preconfigured(tls)
            }
            TlsTrust::CaFile(path) => {
                let problem =
                    |detail: String| SetupError::CaFile { file: path.display().to_string(), detail };
                let pem = std::fs::read(path).map_err(|error| problem(error.to_string()))?;
                let certificates =
                    Certificate::from_pem_bundle(&pem).map_err(|error| problem(error.to_string()))?;
                if certificates.is_empty() {
                    return Err(problem("holds no certificate in PEM form".to_owned()));
                }
                builder.tls_certs_only(certificates)
            }
            TlsTrust::System => builder,
        };
        let http = builder.build().map_err(|error| SetupError::Client(chain(&error)))?;
        let credentials = Arc::new(Credentials::new(config.login.clone())?);
        Ok(Self { http, credentials, gates: Arc::default() })
    }

    /// The API at `base`.
    #[must_use]
    pub fn at(&self, base: &Url) -> PveClient {
        PveClient { pve: self.clone(), base: base.clone() }
    }
}

/// One Proxmox API.
#[derive(Clone, Debug)]
pub struct PveClient {
    pve: Pve,
    base: Url,
}

impl PveClient {
    /// The user that our tasks are listed under.
    #[must_use]
    pub fn user(&self) -> &str {
        self.pve.credentials.user()
    }

    /// The API's address.
    #[must_use]
    pub fn base(&self) -> &Url {
        &self.base
    }

    /// Reads. Repeated a few times when the network fails, since reading twice is harmless.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<T, PveError> {
        let attempt = || async {
            let data = self.send(Method::GET, path, query, GET_TIMEOUT).await?;
            typed(data).map_err(|text| self.error(&Method::GET, path, Class::BadAnswer, None, text))
        };
        attempt
            .retry(
                ExponentialBuilder::default()
                    .with_min_delay(Duration::from_millis(200))
                    .with_max_delay(Duration::from_secs(2))
                    .with_max_times(3)
                    .with_jitter(),
            )
            .when(|error: &PveError| matches!(error.class, Class::NodeUnreachable | Class::Ambiguous))
            .await
    }

    /// Changes something, by a form. Never repeated here.
    pub(super) async fn mutate<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        parameters: &[(&str, &str)],
    ) -> Outcome<T> {
        let result = self.send(method.clone(), path, parameters, MUTATION_TIMEOUT).await;
        result
            .and_then(|data| {
                typed(data).map_err(|text| self.error(&method, path, Class::BadAnswer, None, text))
            })
            .into()
    }

    /// One request, behind its node's gate. A ticket that has gone stale is
    /// replaced once: a request that was refused by 401 had no effect.
    async fn send(
        &self,
        method: Method,
        path: &[&str],
        parameters: &[(&str, &str)],
        timeout: Duration,
    ) -> Result<Value, PveError> {
        let result = self.guarded(&method, path, parameters, timeout).await;
        let stale = matches!(&result, Err(error) if error.class == Class::BadCredentials)
            && self.pve.credentials.forget(self.base.as_str());
        if stale { self.guarded(&method, path, parameters, timeout).await } else { result }
    }

    async fn guarded(
        &self,
        method: &Method,
        path: &[&str],
        parameters: &[(&str, &str)],
        timeout: Duration,
    ) -> Result<Value, PveError> {
        let node = if path.first() == Some(&"nodes") { path.get(1).copied().unwrap_or_default() } else { "" };
        let pass = self.pve.gates.pass(self.base.as_str(), node).await.map_err(|wait| {
            let whom = if node.is_empty() { "the API" } else { "the node" };
            let text =
                format!("{whom} did not answer several times; asked again in {} s", wait.as_secs() + 1);
            self.error(method, path, Class::NodeUnreachable, None, text)
        })?;
        let result = self.request(method, path, parameters, timeout).await;
        let silent =
            matches!(&result, Err(error) if matches!(error.class, Class::NodeUnreachable | Class::Ambiguous));
        pass.note(!silent);
        result
    }

    async fn request(
        &self,
        method: &Method,
        path: &[&str],
        parameters: &[(&str, &str)],
        timeout: Duration,
    ) -> Result<Value, PveError> {
        let url = self.url(path);
        // A body on GET or DELETE is refused with 501: their parameters go into the query.
        let in_query = matches!(*method, Method::GET | Method::DELETE);
        let build = || {
            let mut url = url.clone();
            if in_query && !parameters.is_empty() {
                url.query_pairs_mut().extend_pairs(parameters);
            }
            let request = self.pve.http.request(method.clone(), url).timeout(timeout);
            if in_query { request } else { request.form(parameters) }
        };
        let api = self.base.as_str();
        let request = match self.pve.credentials.sign(api, method, build()) {
            Some(request) => request,
            None => {
                self.buy_ticket().await?;
                self.pve.credentials.sign(api, method, build()).unwrap_or_else(build)
            }
        };
        tracing::debug!(api = %self.base, call = %call(method, path), "proxmox request");
        let response = request.send().await.map_err(|error| self.network(method, path, &error))?;
        self.answer(method, path, response).await
    }

    /// Logs in by password. Two at once are harmless: the later ticket stays.
    async fn buy_ticket(&self) -> Result<(), PveError> {
        let Some(form) = self.pve.credentials.form() else { return Ok(()) };
        let path = ["access", "ticket"];
        let odd = |text: String| self.error(&Method::POST, &path, Class::BadAnswer, None, text);
        let request = self.pve.http.post(self.url(&path)).timeout(GET_TIMEOUT).form(&form);
        let response = request.send().await.map_err(|error| {
            // Whatever became of the login, the call it was for did not leave.
            let error = self.network(&Method::POST, &path, &error);
            if error.class == Class::Ambiguous {
                PveError { class: Class::NodeUnreachable, ..error }
            } else {
                error
            }
        })?;
        let row: TicketRow = typed(self.answer(&Method::POST, &path, response).await?).map_err(odd)?;
        self.pve.credentials.keep(self.base.as_str(), &row).map_err(|error| odd(error.to_string()))
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api2", "json"]).extend(path);
        }
        url
    }

    async fn answer(
        &self,
        method: &Method,
        path: &[&str],
        mut response: Response,
    ) -> Result<Value, PveError> {
        let status = response.status();
        let reason = response
            .extensions()
            .get::<ReasonPhrase>()
            .map(|phrase| String::from_utf8_lossy(phrase.as_bytes()).into_owned())
            .or_else(|| status.canonical_reason().map(str::to_owned))
            .unwrap_or_default();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.network(method, path, &error))? {
            if body.len() + chunk.len() > ANSWER_MAX {
                let text = format!("the answer is longer than {} MiB; is this Proxmox?", ANSWER_MAX >> 20);
                return Err(self.error(method, path, Class::BadAnswer, Some(status.as_u16()), text));
            }
            body.extend_from_slice(&chunk);
        }
        let envelope = serde_json::from_slice::<Envelope>(&body);
        if status.is_success() {
            return envelope.map(|envelope| envelope.data).map_err(|error| {
                let text = format!("answer is not JSON: {error}");
                self.error(method, path, Class::BadAnswer, Some(status.as_u16()), text)
            });
        }
        // The standard phrase says nothing; then the text is in the body.
        let generic = reason.is_empty() || Some(reason.as_str()) == status.canonical_reason();
        let (message, errors) = envelope.map(|e| (e.message, e.errors)).unwrap_or_default();
        let mut text = match message {
            Some(message) if generic && !message.trim().is_empty() => message.trim().to_owned(),
            _ => reason,
        };
        let errors: Vec<(String, String)> = errors
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, error)| (name.clone(), error.as_str().unwrap_or_default().trim().to_owned()))
            .collect();
        let class = classify(status.as_u16(), &text, &errors);
        for (name, error) in &errors {
            text.push_str(&format!("; {name}: {error}"));
        }
        Err(self.error(method, path, class, Some(status.as_u16()), text))
    }

    /// What a failure below HTTP means: before the request was written nothing
    /// can have happened, after it anything can.
    fn network(&self, method: &Method, path: &[&str], error: &reqwest::Error) -> PveError {
        let text = chain(error);
        let class =
            if text.contains("invalid peer certificate") || text.contains("which is not among the pinned") {
                Class::TlsRefused
            } else if error.is_connect() || error.is_builder() {
                Class::NodeUnreachable
            } else {
                Class::Ambiguous
            };
        self.error(method, path, class, None, text)
    }

    pub(super) fn error(
        &self,
        method: &Method,
        path: &[&str],
        class: Class,
        status: Option<u16>,
        text: String,
    ) -> PveError {
        PveError {
            class,
            status,
            text: text.chars().take(1000).collect(),
            call: call(method, path),
            api: self.base.as_str().trim_end_matches('/').to_owned(),
        }
    }
}

fn call(method: &Method, path: &[&str]) -> String {
    format!("{method} /{}", path.join("/"))
}

/// The error and its causes on one line, without the URL that reqwest repeats.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !texts.iter().any(|known| known.contains(&text)) {
            texts.push(text);
        }
        next = error.source();
    }
    if texts.len() > 1 && texts[0].starts_with("error sending request") {
        texts.remove(0);
    }
    texts.join(": ")
}
