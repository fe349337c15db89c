//! A checked request, and which module answers it.
//!
//! The only list of simulated paths. Runs under the state's mutex.

use super::schema::Schema;
use super::state::{Cluster, GuestKind};
use super::wire::{ApiError, Method, Params, Reply};
use super::work::Work;
use super::{cluster, content, firewall, guest, lxc, qemu, tasks};

/// A request that passed all checks.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) template: &'a str,
    pub(crate) params: Params,
    pub(crate) user: &'a str,
    pub(crate) schema: &'a Schema,
}

impl Call<'_> {
    pub(crate) fn node(&self) -> &str {
        self.params.text("node")
    }

    pub(crate) fn vmid(&self) -> u32 {
        self.params.number("vmid").and_then(|vmid| u32::try_from(vmid).ok()).unwrap_or_default()
    }

    /// Starts a task on this request's guest and takes the guest's lock where the work needs one.
    pub(crate) fn start_task(&self, cluster: &mut Cluster, kind: &str, work: Work) -> Reply {
        if let Some(lock) = work.lock()
            && let Some(guest) = cluster.guests.get_mut(&self.vmid())
        {
            guest.lock = Some(lock);
        }
        let id = match &work {
            Work::Provision(plan) if kind.ends_with("create") || kind.ends_with("restore") => plan.vmid,
            _ => self.vmid(),
        };
        self.start_task_named(cluster, kind, &id.to_string(), work)
    }

    pub(crate) fn start_task_named(&self, cluster: &mut Cluster, kind: &str, id: &str, work: Work) -> Reply {
        let upid = cluster.tasks.start(self.node(), kind, id, self.user, work);
        Reply::Data(serde_json::Value::String(upid))
    }
}

pub(crate) fn not_simulated(call: &Call<'_>) -> ApiError {
    ApiError::new(501, format!("Method '{} {}' is not simulated", call.method, call.template))
}

/// Hands a call to the module that owns its path.
pub(crate) fn dispatch(cluster: &mut Cluster, call: &Call<'_>) -> Result<Reply, ApiError> {
    let outcome = if let Some(tail) = call.template.strip_prefix("/nodes/{node}/lxc/{vmid}") {
        lxc::handle(cluster, call, tail).or_else(|| guest::handle(cluster, call, GuestKind::Lxc, tail))
    } else if let Some(tail) = call.template.strip_prefix("/nodes/{node}/qemu/{vmid}") {
        qemu::handle(cluster, call, tail).or_else(|| guest::handle(cluster, call, GuestKind::Qemu, tail))
    } else if let Some(tail) = call.template.strip_prefix("/nodes/{node}/storage") {
        content::handle(cluster, call, tail)
    } else if let Some(tail) = call.template.strip_prefix("/cluster/firewall") {
        firewall::handle(&mut cluster.firewall, call, tail)
    } else {
        let (node, upid) = (call.node(), call.params.text("upid"));
        match (call.method, call.template) {
            (Method::Get, "/nodes/{node}/lxc") => Some(Ok(guest::list(cluster, node, GuestKind::Lxc))),
            (Method::Post, "/nodes/{node}/lxc") => Some(lxc::create(cluster, call)),
            (Method::Get, "/nodes/{node}/qemu") => Some(Ok(guest::list(cluster, node, GuestKind::Qemu))),
            (Method::Post, "/nodes/{node}/qemu") => Some(qemu::create(cluster, call)),
            (Method::Post, "/nodes/{node}/vzdump") => Some(super::backup::start(cluster, call)),
            (Method::Get, "/cluster/tasks") => Some(Ok(tasks::recent(cluster))),
            (Method::Get, "/nodes/{node}/tasks") => Some(Ok(tasks::list(cluster, node, &call.params))),
            (Method::Get, "/nodes/{node}/tasks/{upid}") => Some(
                tasks::status(cluster, node, upid)
                    .map(|_| Reply::Data(serde_json::json!([{ "name": "log" }, { "name": "status" }]))),
            ),
            (Method::Get, "/nodes/{node}/tasks/{upid}/status") => Some(tasks::status(cluster, node, upid)),
            (Method::Get, "/nodes/{node}/tasks/{upid}/log") => {
                Some(tasks::log(cluster, node, upid, &call.params))
            }
            (Method::Delete, "/nodes/{node}/tasks/{upid}") => {
                let (node, upid) = (node.to_owned(), upid.to_owned());
                Some(tasks::stop(cluster, &node, &upid))
            }
            _ => cluster::handle(cluster, call),
        }
    };
    outcome.unwrap_or_else(|| Err(not_simulated(call)))
}
