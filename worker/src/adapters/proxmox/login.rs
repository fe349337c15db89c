//! How we show who we are: an API token with each request, or a ticket that a
//! password buys. A ticket lives two hours; ours are renewed after one.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use reqwest::{
    Method, RequestBuilder,
    header::{AUTHORIZATION, COOKIE, HeaderValue},
};
use secrecy::ExposeSecret;
use serde::Deserialize;
use tokio::time::Instant;

use super::client::SetupError;
use crate::config::Login;

const TICKET_LIFE: Duration = Duration::from_secs(3600);

/// What `POST /access/ticket` answers.
#[derive(Deserialize)]
pub(super) struct TicketRow {
    ticket: String,
    #[serde(rename = "CSRFPreventionToken")]
    csrf: String,
}

#[derive(Clone)]
struct Ticket {
    cookie: HeaderValue,
    csrf: HeaderValue,
    bought: Instant,
}

/// Our credentials, ready for use.
pub(super) struct Credentials {
    login: Login,
    token: Option<HeaderValue>,
    tickets: Mutex<HashMap<String, Ticket>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user()).finish_non_exhaustive()
    }
}

impl Credentials {
    pub(super) fn new(login: Login) -> Result<Self, SetupError> {
        let token = match &login {
            Login::Token { id, secret } => Some(header(
                &format!("PVEAPIToken={id}={}", secret.expose_secret()),
                "the API token holds characters that HTTP refuses",
            )?),
            Login::Password { .. } => None,
        };
        Ok(Self { login, token, tickets: Mutex::default() })
    }

    /// The user that our tasks are listed under.
    pub(super) fn user(&self) -> &str {
        match &self.login {
            Login::Token { id, .. } => id,
            Login::Password { user, .. } => user,
        }
    }

    /// Adds what the request needs; false when a ticket must be bought first.
    pub(super) fn sign(&self, api: &str, method: &Method, request: RequestBuilder) -> Option<RequestBuilder> {
        if let Some(token) = &self.token {
            return Some(request.header(AUTHORIZATION, token.clone()));
        }
        let tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        let ticket = tickets.get(api).filter(|ticket| ticket.bought.elapsed() < TICKET_LIFE)?;
        let request = request.header(COOKIE, ticket.cookie.clone());
        if *method == Method::GET {
            return Some(request);
        }
        Some(request.header("CSRFPreventionToken", ticket.csrf.clone()))
    }

    /// The form that buys a ticket; `None` with a token.
    pub(super) fn form(&self) -> Option<[(&'static str, String); 2]> {
        match &self.login {
            Login::Token { .. } => None,
            Login::Password { user, password } => {
                Some([("username", user.clone()), ("password", password.expose_secret().to_owned())])
            }
        }
    }

    /// Keeps a ticket; `Err` when it cannot be one.
    pub(super) fn keep(&self, api: &str, row: &TicketRow) -> Result<(), SetupError> {
        let odd = "the ticket holds characters that HTTP refuses";
        let ticket = Ticket {
            cookie: header(&format!("PVEAuthCookie={}", row.ticket), odd)?,
            csrf: header(&row.csrf, odd)?,
            bought: Instant::now(),
        };
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner).insert(api.to_owned(), ticket);
        Ok(())
    }

    /// Forgets a ticket that was refused; false when there was none.
    pub(super) fn forget(&self, api: &str) -> bool {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner).remove(api).is_some()
    }
}

fn header(text: &str, problem: &str) -> Result<HeaderValue, SetupError> {
    let mut value = HeaderValue::from_str(text).map_err(|_| SetupError::Client(problem.to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}
