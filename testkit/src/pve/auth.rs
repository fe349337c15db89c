//! Who is asking: API tokens, tickets with CSRF tokens, privileges.
//!
//! Knows credentials only. The delay after a failure is kept by `route`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hyper::HeaderMap;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::lock;
use super::wire::{ApiError, Method, Params, Reply, percent_decode};

const TICKET_LIFETIME: Duration = Duration::from_secs(2 * 3600);
/// What a token may do when nothing was taken from it; the list of `/access/permissions`.
const PRIVILEGES: &[&str] = &[
    "Datastore.Allocate",
    "Datastore.AllocateSpace",
    "Datastore.AllocateTemplate",
    "Datastore.Audit",
    "Pool.Allocate",
    "Pool.Audit",
    "SDN.Use",
    "Sys.Audit",
    "Sys.Modify",
    "VM.Allocate",
    "VM.Audit",
    "VM.Backup",
    "VM.Clone",
    "VM.Config.CPU",
    "VM.Config.Cloudinit",
    "VM.Config.Disk",
    "VM.Config.Memory",
    "VM.Config.Network",
    "VM.Config.Options",
    "VM.GuestAgent.Audit",
    "VM.Migrate",
    "VM.PowerMgmt",
    "VM.Snapshot",
    "VM.Snapshot.Rollback",
];

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// `user@realm` or `user@realm!token`.
    pub(crate) name: String,
    pub(crate) by_token: bool,
}

#[derive(Debug)]
struct Ticket {
    user: String,
    csrf: String,
    issued_at: Instant,
}

/// Credentials and issued tickets.
#[derive(Debug)]
pub(crate) struct Auth {
    token_id: String,
    token_secret: String,
    password: String,
    denied: BTreeSet<String>,
    seed: u64,
    tickets: Mutex<HashMap<String, Ticket>>,
}

impl Auth {
    pub(crate) fn new(
        token_id: &str,
        token_secret: &str,
        password: &str,
        denied: &[String],
        seed: u64,
    ) -> Self {
        Self {
            token_id: token_id.to_owned(),
            token_secret: token_secret.to_owned(),
            password: password.to_owned(),
            denied: denied.iter().cloned().collect(),
            seed,
            tickets: Mutex::new(HashMap::new()),
        }
    }

    fn user(&self) -> &str {
        self.token_id.split('!').next().unwrap_or_default()
    }

    /// Finds out who sends a request; a ticket wins over a token.
    pub(crate) fn identify(&self, headers: &HeaderMap, method: Method) -> Result<Identity, ApiError> {
        if let Some(cookie) = ticket_cookie(headers) {
            return self.by_ticket(&cookie, headers, method);
        }
        let header = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let Some(token) = header.strip_prefix("PVEAPIToken=") else {
            return Err(ApiError::new(401, "No ticket"));
        };
        match token.split_once('=') {
            Some((id, secret)) if id == self.token_id && secret == self.token_secret => {
                Ok(Identity { name: id.to_owned(), by_token: true })
            }
            Some((id, _)) if id == self.token_id => Err(ApiError::new(401, "invalid token value!")),
            Some((id, _)) => Err(ApiError::new(401, format!("no such token '{id}'"))),
            None => Err(ApiError::new(401, "no tokenid specified")),
        }
    }

    fn by_ticket(&self, cookie: &str, headers: &HeaderMap, method: Method) -> Result<Identity, ApiError> {
        let tickets = lock(&self.tickets);
        let ticket = tickets
            .get(cookie)
            .filter(|ticket| ticket.issued_at.elapsed() < TICKET_LIFETIME)
            .ok_or_else(|| ApiError::new(401, "permission denied - invalid PVE ticket"))?;
        let csrf = headers.get("csrfpreventiontoken").and_then(|value| value.to_str().ok());
        if method != Method::Get && csrf != Some(ticket.csrf.as_str()) {
            return Err(ApiError::new(401, "Permission denied - invalid csrf token"));
        }
        Ok(Identity { name: ticket.user.clone(), by_token: false })
    }

    /// `POST /access/ticket`; a valid ticket may stand in for the password.
    pub(crate) fn login(&self, params: &Params) -> Result<Reply, ApiError> {
        let mut user = params.text("username").to_owned();
        if let Some(realm) = params.get("realm") {
            user = format!("{user}@{realm}");
        }
        let password = params.text("password");
        let mut tickets = lock(&self.tickets);
        let renewed = tickets.get(password).is_some_and(|ticket| ticket.user == user);
        if user != self.user() || (password != self.password && !renewed) {
            return Err(ApiError::new(401, "authentication failure"));
        }
        let serial = tickets.len();
        let sign = |part: &str| -> String {
            let text = format!("{}:{serial}:{part}:{user}:{}", self.seed, self.token_secret);
            Sha256::digest(text.as_bytes()).iter().take(20).map(|byte| format!("{byte:02X}")).collect()
        };
        let now_s = super::state::unix_s();
        let ticket = format!("PVE:{user}:{now_s:08X}::{}", sign("ticket"));
        let csrf = format!("{now_s:08X}:{}", sign("csrf"));
        let reply = json!({
            "ticket": ticket, "CSRFPreventionToken": csrf, "username": user, "cap": {}, "clustername": "fleet",
        });
        tickets.insert(ticket, Ticket { user: user.clone(), csrf, issued_at: Instant::now() });
        Ok(Reply::Data(reply))
    }

    /// `GET /access/permissions`: everything, everywhere, less what was taken away.
    pub(crate) fn permissions(&self) -> Reply {
        let held: BTreeMap<&str, u8> =
            PRIVILEGES.iter().filter(|name| !self.denied.contains(**name)).map(|name| (*name, 1)).collect();
        Reply::Data(json!({ "/": held, "/vms": held, "/storage": held, "/nodes": held, "/pool": held }))
    }

    /// Refuses when a privilege was taken away.
    pub(crate) fn require(&self, path: &str, privilege: &str) -> Result<(), ApiError> {
        if self.denied.contains(privilege) {
            return Err(ApiError::forbidden(path, privilege));
        }
        Ok(())
    }

    /// Evaluates a method's permission rule as the extract has it; an unknown form is not checked.
    pub(crate) fn check(&self, rule: &Value, values: &BTreeMap<String, String>) -> Result<(), ApiError> {
        let Some((head, rest)) = rule.as_array().and_then(|parts| parts.split_first()) else { return Ok(()) };
        match head.as_str() {
            Some("and") => rest.iter().try_for_each(|part| self.check(part, values)),
            Some("or") => {
                let mut last = Ok(());
                for part in rest {
                    last = self.check(part, values);
                    if last.is_ok() {
                        return Ok(());
                    }
                }
                last
            }
            Some("perm") => {
                let path = fill(rest.first().and_then(Value::as_str).unwrap_or("/"), values);
                let wanted: Vec<&str> = rest
                    .get(1)
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                    .collect();
                let any = rest.iter().any(|part| part.as_str() == Some("any"));
                let missing: Vec<&str> =
                    wanted.iter().copied().filter(|name| self.denied.contains(*name)).collect();
                let refused = if any {
                    missing.len() == wanted.len() && !wanted.is_empty()
                } else {
                    !missing.is_empty()
                };
                if refused {
                    return Err(ApiError::forbidden(&path, &missing.join("|")));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn ticket_cookie(headers: &HeaderMap) -> Option<String> {
    headers
        .get_all("cookie")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| *name == "PVEAuthCookie")
        .map(|(_, value)| percent_decode(value, false))
}

fn fill(path: &str, values: &BTreeMap<String, String>) -> String {
    let mut filled = path.to_owned();
    for (key, value) in values {
        filled = filled.replace(&format!("{{{key}}}"), value);
    }
    filled
}
