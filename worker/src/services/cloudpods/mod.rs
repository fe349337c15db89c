//! CloudPods: from a job in one of the `cloudpods-*` queues to a guest that is
//! as it should be, and the rows that say so.
//!
//! | file | subject |
//! |---|---|
//! | `json`, `payload`, `quota`, `placement`, `plan`, `instance` | decisions, pure |
//! | `defaults`, `reserve`, `create`, `configure`, `run`, `compensate` | carrying them out, step by step |
//! | `names`, `dns` | names of pods at the name server: decided, and kept up to date |
//! | `intake` | rows that say `queued`: jobs that nobody has enqueued, or that are to run again |
//! | `away` | how long a Proxmox that does not answer is waited for |
//! | `choose` | on which node a pod goes: gathers what `placement` decides on |
//! | `sweeps` | the schedule of the health sweep |
//! | `sites` | which Proxmox answers for which node |
//! | `operation` | what is done to pods that exist |
//! | `metrics` | what running pods use, and how they are by it |
//! | `reconcile` | where books and Proxmox differ: found, told, mended where that is safe |
//! | `handler` | the glue to the engine |
//! | `routes` | the same over HTTP: rows and jobs, nothing on Proxmox |
//!
//! Every step may be interrupted by a crash and is entered again by the same
//! functions: what was done is looked for on Proxmox and in the books before
//! anything is sent. An attempt that has been overtaken by a newer one is
//! stopped by its fence at its next write.

mod away;
mod choose;
mod compensate;
mod configure;
mod create;
mod defaults;
pub mod dns;
mod error;
mod handler;
pub mod instance;
pub mod intake;
mod json;
pub mod metrics;
pub mod names;
pub mod operation;
pub mod payload;
pub mod placement;
pub mod plan;
pub mod quota;
pub mod reconcile;
mod reserve;
pub mod routes;
mod run;
mod sites;
pub mod sweeps;

use std::{fmt, sync::Arc, time::Duration};

use mpanel_protocol::payload::cloudpods::CREATE_QUEUE;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use self::{away::Away, instance::Instance, reserve::Wanted};
pub use self::{
    choose::{Ask, Choice, choose},
    error::{CreateError, Verdict},
    handler::CreateHandler,
    json::Payload,
    plan::Step,
    sites::Sites,
};
use crate::{
    adapters::{
        db::{
            self, DbError, changes, jobs,
            jobs::Adopted,
            ledger::{self, Fence},
            pods::{self, Retired},
        },
        proxmox::GuestKind,
    },
    config::CloudpodsConfig,
};

/// The job's `type` in `cloud_pod_jobs`.
const KIND: &str = "CREATE";
/// The effect that happens once a job.
const EFFECT: &str = "create";
/// How often one job moves to another VMID.
const MOVES_MAX: u32 = 3;

/// A job as this service knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRef {
    /// The queue.
    pub queue: String,
    /// Its id.
    pub job_id: String,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// Tells this attempt from every other of the job.
    pub attempt_id: String,
}

impl JobRef {
    fn start(&self) -> ledger::Start<'_> {
        ledger::Start {
            queue: &self.queue,
            job_id: &self.job_id,
            attempt: self.attempt,
            attempt_id: &self.attempt_id,
        }
    }
}

/// Whether [`CreateService::create`] ran before [`CreateService::fail`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// It did, in this attempt: which may have been overtaken since.
    Ran,
    /// It did not: the job is failed from outside, or cannot be read.
    NeverRan,
}

/// What the job returns; mPanel's fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateResult {
    /// Always true.
    pub success: bool,
    /// The guest's id.
    pub vmid: u32,
    /// Its address.
    pub ip: String,
    /// The row of `cloud_pods`.
    pub cloud_pod_id: Uuid,
    /// The VMID that was asked for, when it had to be given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_from_vmid: Option<u32>,
}

/// Hears which step begins.
pub type Progress = Arc<dyn Fn(Step) + Send + Sync>;

/// Creates pods.
#[derive(Clone)]
pub struct CreateService {
    db: PgPool,
    sites: Sites,
    defaults: CloudpodsConfig,
    /// How long a request of unknown outcome may still take effect.
    settle: Duration,
}

impl fmt::Debug for CreateService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateService").field("defaults", &self.defaults).finish_non_exhaustive()
    }
}

impl CreateService {
    /// A service on this database and these Proxmox APIs.
    #[must_use]
    pub fn new(db: PgPool, sites: Sites, defaults: CloudpodsConfig, settle: Duration) -> Self {
        Self { db, sites, defaults, settle }
    }

    /// Runs one attempt.
    ///
    /// # Errors
    /// [`CreateError`]; its verdict says whether to try again. The reservation
    /// and whatever was made are kept until [`CreateService::fail`].
    ///
    /// # Cancel safety
    /// May be dropped at any point: the next attempt finds what was done.
    pub async fn create(
        &self,
        job: &JobRef,
        payload: &Value,
        progress: &Progress,
    ) -> Result<CreateResult, CreateError> {
        let fence = ledger::take_fence(&self.db, job.start()).await?;
        let result = Box::pin(self.attempt(&fence, job, payload, progress)).await;
        // What an overtaken attempt found is the work of the newer one, and no
        // reason to fail the job.
        if let Err(error) = &result
            && error.verdict() == Verdict::Never
            && !ledger::is_current(&self.db, &fence).await?
        {
            return Err(fence.lost().into());
        }
        result
    }

    async fn attempt(
        &self,
        fence: &Fence,
        job: &JobRef,
        payload: &Value,
        progress: &Progress,
    ) -> Result<CreateResult, CreateError> {
        if let Some(result) = ledger::effect(&self.db, fence, EFFECT).await?
            && let Ok(result) = serde_json::from_value(result)
        {
            return Ok(result);
        }
        progress(Step::Reserve);
        let spec = payload::parse(payload)?;
        self.adopt_job_row(fence, job, payload, spec.tenant_id).await?;
        let mut away = Away::default();
        let mut instance = match pods::live_instance(&self.db, fence).await? {
            Some(row) => readable(row)?,
            None => {
                // A guest that an earlier attempt had to give up keeps its VMID.
                let moved_from = pods::quarantined_vmid(&self.db, fence).await?;
                self.reserve_patiently(fence, Wanted { spec: &spec, moved_from }, &mut away).await?
            }
        };
        let mut moves = 0;
        loop {
            match Box::pin(self.make(fence, &instance, progress)).await {
                Ok(ip) => {
                    progress(Step::Commit);
                    return self.commit(fence, &instance, &ip, spec.requested_by.as_deref()).await;
                }
                Err(CreateError::GivenUp { why, may_exist, .. }) if moves < MOVES_MAX => {
                    moves += 1;
                    let how = if may_exist { Retired::Quarantined } else { Retired::NeverMade };
                    tracing::error!(job = %job.job_id, vmid = instance.vmid, %why, "VMID given up; the pod moves");
                    self.give_up(fence, &instance, &why, how).await?;
                    // A VMID that never had a guest is still the payload's.
                    let moved_from = may_exist.then_some(instance.row.vmid);
                    instance =
                        self.reserve_patiently(fence, Wanted { spec: &spec, moved_from }, &mut away).await?;
                }
                // Every step may be entered again; what was done is found.
                Err(error) if away.waited(&error).await => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn reserve_patiently(
        &self,
        fence: &Fence,
        wanted: Wanted<'_>,
        away: &mut Away,
    ) -> Result<Instance, CreateError> {
        loop {
            match Box::pin(self.reserve(fence, wanted)).await {
                Err(error) if away.waited(&error).await => {}
                result => return result,
            }
        }
    }

    /// The steps on Proxmox; answers the guest's address.
    async fn make(
        &self,
        fence: &Fence,
        instance: &Instance,
        progress: &Progress,
    ) -> Result<String, CreateError> {
        let Some(api_url) = &instance.row.api_url else {
            return Err(CreateError::NodeGone(instance.vmid));
        };
        let base = self
            .sites
            .base(api_url)
            .map_err(|problem| CreateError::NodeUrl { node: instance.spec.node_name.clone(), problem })?;
        let client = self.sites.at(&base);
        progress(Step::Create);
        let node = Box::pin(self.ensure_created(fence, instance, &client)).await?;
        progress(Step::Settle);
        self.settle(fence, instance, &client).await?;
        if instance.spec.kind == GuestKind::Vm {
            progress(Step::Configure);
            Box::pin(self.configure(fence, instance, &client, &node)).await?;
        }
        progress(Step::Start);
        Box::pin(self.start(fence, instance, &client, &node)).await?;
        progress(Step::Verify);
        self.address(fence, instance, &client, &node).await
    }

    /// mPanel's job row says `running`; an operator's cancellation is honoured.
    async fn adopt_job_row(
        &self,
        fence: &Fence,
        job: &JobRef,
        payload: &Value,
        tenant_id: Uuid,
    ) -> Result<(), CreateError> {
        let mut tx = db::begin(&self.db).await?;
        let record = ledger::hold_fence(&mut tx, fence).await?;
        if !db::quota::tenant_exists(&mut tx, tenant_id).await? {
            return Err(CreateError::UnknownTenant(tenant_id));
        }
        let payload = storable(payload);
        let adopted =
            jobs::adopt(&mut tx, fence, record.own_row_id, KIND, tenant_id, &payload, job.attempt).await?;
        if adopted == Adopted::Cancelled && record.outcome.is_none() {
            return Err(CreateError::Cancelled);
        }
        ledger::clear_outcome(&mut tx, fence).await?;
        Ok(db::commit(tx).await?)
    }
}

/// The queues of this service.
pub fn queues() -> impl Iterator<Item = &'static str> {
    std::iter::once(CREATE_QUEUE).chain(operation::Operation::ALL.map(operation::Operation::queue))
}

/// Brings rows up to date that mPanel's routes wrote late: they enqueue first.
/// Run it every few seconds.
///
/// # Errors
/// [`DbError`]; harmless, the next run does it.
pub async fn reconcile_late_rows(db: &PgPool) -> Result<u64, DbError> {
    let mut mended = jobs::reconcile_late_rows(db, CREATE_QUEUE, KIND).await?;
    for operation in operation::Operation::ALL {
        mended += jobs::reconcile_late_rows(db, operation.queue(), operation.row_kind()).await?;
    }
    Ok(mended + changes::repair_deleted(db).await?)
}

fn readable(row: pods::InstanceRow) -> Result<Instance, CreateError> {
    let vmid = u32::try_from(row.vmid).unwrap_or_default();
    Instance::of(row).map_err(|error| CreateError::NotYet {
        vmid,
        what: format!(
            "its record in fleet_pods cannot be read ({error}); was it written by a newer version?"
        ),
    })
}

/// The payload as Postgres takes it: jsonb refuses NUL.
fn storable(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(text.replace('\0', "\u{fffd}")),
        Value::Array(items) => Value::Array(items.iter().map(storable).collect()),
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.replace('\0', "\u{fffd}"), storable(value))).collect()
        }
        other => other.clone(),
    }
}
