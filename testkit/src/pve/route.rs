//! From a complete HTTP request to its answer: faults, login, validation, the right handler, task timing.
//!
//! The one place where the parts meet. Knows no sockets; state is only touched under its mutex.

use std::sync::{Arc, Weak};
use std::time::Duration;

use hyper::HeaderMap;

use super::auth::Identity;
use super::dispatch::{Call, dispatch, not_simulated};
use super::faults::{Fault, FaultAction};
use super::wire::{self, ApiError, Format, Method, RawParams, Reply};
use super::{Core, lock};

/// A request whose body has been read.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    /// The connection layer already knows that this has to be refused.
    pub(crate) refusal: Option<ApiError>,
}

/// What goes back over the connection.
#[derive(Debug)]
pub(crate) enum Answer {
    Reply {
        status: u16,
        reason: Option<String>,
        body: String,
    },
    /// The connection is closed without a word.
    Dropped,
}

/// What there is besides the answer of a handled request.
struct Handled {
    format: Format,
    outcome: Result<Reply, ApiError>,
}

/// Answers one request. Runs to its end even when the client has gone.
pub(crate) async fn answer(core: Arc<Core>, request: Request) -> Answer {
    let method = Method::parse(&request.method);
    let (format, path) = split_path(&request.path);
    let shown = format!("/{}", path.join("/"));
    let entry = lock(&core.log).open(&request, &shown);
    let verdict = lock(&core.faults).judge(method, &shown);
    sleep_ms(verdict.delay_ms).await;
    let strike = verdict.strike;
    if let Some(fault) = &strike
        && !matches!(
            fault.action,
            FaultAction::NodeDown
                | FaultAction::DelayAfter
                | FaultAction::DropAfter
                | FaultAction::StatusAfter
        )
    {
        sleep_ms(fault.ms.unwrap_or_default()).await;
    }
    let handled = match &strike {
        Some(fault) if fault.action == FaultAction::DropBefore => {
            lock(&core.log).close(entry, None, Some(fault), None);
            return Answer::Dropped;
        }
        Some(fault) if fault.action == FaultAction::Status => {
            Handled { format: format.unwrap_or(Format::Json), outcome: Err(simulated(fault)) }
        }
        _ => handle(&core, &request, method, format, &path, strike.as_ref(), entry).await,
    };
    if let Some(fault) = &strike
        && matches!(fault.action, FaultAction::DelayAfter | FaultAction::DropAfter | FaultAction::StatusAfter)
    {
        sleep_ms(fault.ms.unwrap_or_default()).await;
        if fault.action == FaultAction::DropAfter {
            lock(&core.log).close(entry, None, Some(fault), None);
            return Answer::Dropped;
        }
    }
    let outcome = match &strike {
        Some(fault) if fault.action == FaultAction::StatusAfter => Err(simulated(fault)),
        _ => handled.outcome,
    };
    let reason_text = outcome.as_ref().err().map(|error| error.reason());
    let (status, reason, body) = wire::encode(handled.format, outcome);
    lock(&core.log).close(entry, Some(status), strike.as_ref(), reason_text);
    Answer::Reply { status, reason, body }
}

fn simulated(fault: &Fault) -> ApiError {
    ApiError::new(fault.status.unwrap_or(500), fault.text.as_deref().unwrap_or("simulated failure"))
}

async fn sleep_ms(ms: u64) {
    if ms > 0 {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}

/// `/api2/{format}/a/b` becomes the format and the decoded rest.
fn split_path(path: &str) -> (Option<Format>, Vec<String>) {
    let mut parts =
        path.split('/').filter(|part| !part.is_empty()).map(|part| wire::percent_decode(part, false));
    let (api, format) = (parts.next(), parts.next());
    let format = match (api.as_deref(), format.as_deref()) {
        (Some("api2"), Some("json")) => Some(Format::Json),
        (Some("api2"), Some("extjs")) => Some(Format::ExtJs),
        _ => None,
    };
    (format, parts.collect())
}

async fn handle(
    core: &Arc<Core>,
    request: &Request,
    method: Option<Method>,
    format: Option<Format>,
    path: &[String],
    strike: Option<&Fault>,
    entry: u64,
) -> Handled {
    let unknown =
        || ApiError::new(501, format!("Method '{} /{}' not implemented", request.method, path.join("/")));
    let Some(format) = format else { return Handled { format: Format::Json, outcome: Err(unknown()) } };
    let outcome = match (&request.refusal, method) {
        (Some(error), _) => Err(error.clone()),
        (None, None) => Err(unknown()),
        (None, Some(method)) => match checked(core, request, method, path, unknown, entry).await {
            Ok(ready) => {
                let outcome = execute(core, ready, strike);
                // A refused password.
                if outcome.as_ref().is_err_and(|error| error.status == 401) {
                    sleep_ms(core.config.auth_delay_ms).await;
                }
                outcome
            }
            Err(error) => Err(error),
        },
    };
    Handled { format, outcome }
}

struct Ready<'a> {
    call: Call<'a>,
    identity: Identity,
}

/// Login, lookup, privileges, relay and schema, in the order a host does them.
async fn checked<'a>(
    core: &'a Arc<Core>,
    request: &Request,
    method: Method,
    path: &[String],
    unknown: impl Fn() -> ApiError,
    entry: u64,
) -> Result<Ready<'a>, ApiError> {
    let found = core.schema.find(method, path);
    let world = found.as_ref().is_some_and(|found| found.spec.world && found.template == "/access/ticket");
    let identity = if world {
        Identity { name: String::new(), by_token: false }
    } else {
        match core.auth.identify(&request.headers, method) {
            Ok(identity) => identity,
            Err(error) => {
                sleep_ms(core.config.auth_delay_ms).await;
                return Err(error);
            }
        }
    };
    lock(&core.log).identify(entry, &identity.name);
    let found = found.ok_or_else(unknown)?;
    if identity.by_token && !found.spec.allow_token {
        return Err(ApiError::new(403, "Permission check failed (API tokens are not allowed here)"));
    }
    let raw = raw_params(request, method)?;
    if let Some(rule) = &found.spec.check {
        let mut values = found.captures.clone();
        for (key, value) in &raw {
            if let wire::RawValue::One(text) = value {
                values.entry(key.clone()).or_insert_with(|| text.clone());
            }
        }
        core.auth.check(rule, &values)?;
    }
    if let Some(node) = found.captures.get("node") {
        let cluster = lock(&core.state);
        if !cluster.node(node)?.online {
            return Err(ApiError::new(595, "No route to host"));
        }
    }
    let params = found.spec.validate(&found.captures, raw)?;
    let call = Call { method, template: found.template, params, user: "", schema: &core.schema };
    Ok(Ready { call, identity })
}

fn raw_params(request: &Request, method: Method) -> Result<RawParams, ApiError> {
    let mut raw = RawParams::new();
    wire::parse_form(&request.query, &mut raw);
    if matches!(method, Method::Post | Method::Put) && !request.body.is_empty() {
        let text = String::from_utf8_lossy(&request.body);
        let kind =
            request.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
        if kind.starts_with("application/json") {
            wire::parse_json(&text, &mut raw)?;
        } else {
            wire::parse_form(&text, &mut raw);
        }
    }
    raw.remove("_dc");
    Ok(raw)
}

/// Runs the handler under the state's mutex and sends its tasks on their way.
fn execute(core: &Arc<Core>, ready: Ready<'_>, strike: Option<&Fault>) -> Result<Reply, ApiError> {
    let Ready { call, identity } = ready;
    let call = Call { user: &identity.name, ..call };
    if call.template.starts_with("/access/") {
        return match (call.method, call.template) {
            (Method::Post, "/access/ticket") => core.auth.login(&call.params),
            (Method::Get, "/access/permissions") => Ok(core.auth.permissions()),
            _ => Err(not_simulated(&call)),
        };
    }
    if call.method == Method::Post && matches!(call.template, "/nodes/{node}/lxc" | "/nodes/{node}/qemu") {
        core.auth.require(&format!("/vms/{}", call.vmid()), "VM.Allocate")?;
    }
    let mut cluster = lock(&core.state);
    match strike {
        Some(fault) if fault.action == FaultAction::TaskError => {
            let text = fault.text.clone().unwrap_or_else(|| "simulated task failure".to_owned());
            cluster.tasks.next_forced_exit = Some(text);
        }
        Some(fault) if fault.action == FaultAction::NodeDown => cluster.tasks.next_doomed = true,
        _ => {}
    }
    let outcome = match call.method {
        Method::Get => dispatch(&mut cluster, &call),
        _ => cluster.require_quorum().and_then(|()| dispatch(&mut cluster, &call)),
    };
    cluster.tasks.next_forced_exit = None;
    cluster.tasks.next_doomed = false;
    if let Some(fault) = strike
        && fault.action == FaultAction::NodeDown
    {
        let first = || cluster.nodes.first().map(|node| node.name.clone()).unwrap_or_default();
        let node = call.params.get("node").map_or_else(first, str::to_owned);
        let after_ms = fault.ms.unwrap_or(core.config.task_ms * 3 / 4);
        if after_ms == 0 {
            cluster.node_down(&node);
        } else {
            let core = Arc::downgrade(core);
            tokio::spawn(async move {
                sleep_ms(after_ms).await;
                if let Some(core) = core.upgrade() {
                    lock(&core.state).node_down(&node);
                }
            });
        }
    }
    for upid in cluster.tasks.take_started() {
        tokio::spawn(run_task(Arc::downgrade(core), upid, core.config.task_ms));
    }
    outcome
}

/// Gives a task its time; the steps find out themselves whether the task still lives.
async fn run_task(core: Weak<Core>, upid: String, task_ms: u64) {
    let half_ms = task_ms / 2;
    sleep_ms(half_ms).await;
    let Some(alive) = core.upgrade() else { return };
    let goes_on = lock(&alive.state).task_midway(&upid);
    drop(alive);
    if !goes_on {
        return;
    }
    sleep_ms(task_ms - half_ms).await;
    if let Some(core) = core.upgrade() {
        lock(&core.state).task_finish(&upid);
    }
}
