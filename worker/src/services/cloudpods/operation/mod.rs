//! Operations on pods that exist: destroy, backup, health, scale, power.
//!
//! | file | subject |
//! |---|---|
//! | `request` | what a payload asks for; pure |
//! | `begin` | the job meets its pod: checks, lease, job row |
//! | `find` | where the pod's guest is, and whether it is the pod's |
//! | `errand` | one call on Proxmox, made to happen once |
//! | `destroy`, `backup`, `scale`, `action`, `health` | what each does |
//! | `end` | the rows that say so: success, or failure after undoing |
//!
//! One frame carries them all: an attempt takes the job's fence, checks the pod,
//! takes the pod's lease (another job waits by delay meanwhile), works in steps
//! that may each be entered again, and commits everything in one transaction.

mod action;
mod backup;
mod begin;
mod destroy;
mod end;
mod errand;
mod error;
mod find;
mod handler;
mod health;
mod request;
mod scale;

use std::{fmt, time::Duration};

use mpanel_protocol::payload::PayloadError;
use serde_json::Value;
use sqlx::PgPool;
use tokio::time::sleep;

use self::request::{Request, Target, Wish};
pub use self::{error::OpError, handler::OperationHandler, request::Operation};
use super::{JobRef, Sites, Verdict, away::Away, instance::Instance};
use crate::{
    adapters::db::{
        ledger::{self, Fence, StepRecord},
        operations::{self, Begun, PodRecord},
    },
    config::CloudpodsConfig,
};

/// The effect that happens once a job.
const EFFECT: &str = "done";
/// How often the pod's lease is renewed; a few times in its life.
const RENEWAL: Duration = Duration::from_secs(20);
/// How long a job waits for a lock on its guest that somebody else holds.
const LOCK_BUDGET_S: f64 = 6.0 * 3600.0;

/// Works on pods that exist.
#[derive(Clone)]
pub struct OperationService {
    db: PgPool,
    sites: Sites,
    defaults: CloudpodsConfig,
    /// How long a request of unknown outcome may still take effect.
    settle: Duration,
}

impl fmt::Debug for OperationService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OperationService").field("defaults", &self.defaults).finish_non_exhaustive()
    }
}

/// A job at work on its pod.
struct Work<'a> {
    service: &'a OperationService,
    operation: Operation,
    fence: Fence,
    pod: PodRecord,
    /// Where its guest is, if we made it.
    instance: Option<Instance>,
    /// Whether we ever made a guest for it.
    in_our_books: bool,
    begun: Begun,
    requested_by: Option<String>,
}

/// Whether a payload makes sense, before it becomes a job.
///
/// # Errors
/// [`PayloadError`] with every problem.
pub fn check(operation: Operation, payload: &Value) -> Result<(), PayloadError> {
    request::read(operation, payload).map(drop)
}

impl OperationService {
    /// A service on this database and these Proxmox APIs.
    #[must_use]
    pub fn new(db: PgPool, sites: Sites, defaults: CloudpodsConfig, settle: Duration) -> Self {
        Self { db, sites, defaults, settle }
    }

    /// Runs one attempt; answers what the job returns.
    ///
    /// # Errors
    /// [`OpError`]; its verdict says whether to try again. What was done stays
    /// on record until [`OperationService::fail`].
    ///
    /// # Cancel safety
    /// May be dropped at any point: the next attempt finds what was done.
    pub async fn run(&self, operation: Operation, job: &JobRef, payload: &Value) -> Result<Value, OpError> {
        let fence = ledger::take_fence(&self.db, job.start()).await?;
        let result = Box::pin(self.attempt(operation, &fence, job, payload)).await;
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
        operation: Operation,
        fence: &Fence,
        job: &JobRef,
        payload: &Value,
    ) -> Result<Value, OpError> {
        if let Some(result) = ledger::effect(&self.db, fence, EFFECT).await? {
            return Ok(result);
        }
        let (target, wish, requested_by) = match request::read(operation, payload)? {
            Request::Sweep => {
                self.begin_health(fence, job).await?;
                return self.sweep(fence).await;
            }
            Request::Pod { target, wish: Wish::Health(trigger), .. } => {
                self.begin_health(fence, job).await?;
                return Box::pin(self.health(fence, target, trigger)).await;
            }
            Request::Pod { target, wish, requested_by } => (target, wish, requested_by),
        };
        let Some(mut work) = self.begin(operation, fence, job, payload, target).await? else {
            // Only a destruction finds its work done by somebody else.
            return self.gone_already(fence, target).await;
        };
        work.requested_by = requested_by;
        tokio::select! {
            // cancel-safe: every step may be entered again.
            result = Box::pin(work.carry_out(&wish)) => result,
            lost = work.keep_lease() => Err(lost),
        }
    }
}

impl Work<'_> {
    /// Enters the work again while Proxmox does not answer.
    async fn carry_out(&self, wish: &Wish) -> Result<Value, OpError> {
        let mut away = Away::default();
        loop {
            let result = match wish {
                Wish::Destroy { reason } => Box::pin(self.destroy(reason.as_deref())).await,
                Wish::Backup(wish) => Box::pin(self.backup(wish)).await,
                Wish::Scale { to, disk_gb, backup_first, reason } => {
                    Box::pin(self.scale(*to, *disk_gb, *backup_first, reason.as_deref())).await
                }
                Wish::Action(action) => Box::pin(self.act(*action)).await,
                // Has no lease, and never comes here.
                Wish::Health(_) => return Ok(Value::Null),
            };
            match result {
                Err(OpError::Pve(cause)) if away.waited_for(&cause).await => {}
                Err(OpError::Pve(cause))
                    if cause.class == crate::adapters::proxmox::Class::Locked
                        && self.begun.age_s < LOCK_BUDGET_S =>
                {
                    return Err(OpError::Locked(cause));
                }
                result => return result,
            }
        }
    }

    /// Ends only when the lease is lost. A database that is away is no loss: the
    /// lease outlives several renewals, and no step begins without the database.
    async fn keep_lease(&self) -> OpError {
        loop {
            sleep(RENEWAL).await;
            match operations::renew_lease(&self.service.db, &self.fence, self.pod.id).await {
                Ok(true) => {}
                Ok(false) => return OpError::Busy("another job".to_owned()),
                Err(error) => tracing::warn!(%error, pod = %self.pod.id, "the pod's lease was not renewed"),
            }
        }
    }

    /// The generation that steps are recorded under; 0 for a guest that we did not make.
    fn generation(&self) -> i32 {
        self.instance.as_ref().map_or(0, |instance| instance.row.generation)
    }

    async fn step(&self, step: &str) -> Result<Option<StepRecord>, OpError> {
        Ok(ledger::step(&self.service.db, &self.fence, self.generation(), step).await?)
    }

    async fn note(&self, step: &str, state: &str, upid: Option<&str>) -> Result<(), OpError> {
        let generation = self.generation();
        ledger::record_step(&self.service.db, &self.fence, generation, step, state, upid, None).await?;
        Ok(())
    }

    /// What marks snapshots and backups as this job's.
    fn mark(&self) -> String {
        format!("mpanel:{}/{}", self.fence.queue, self.fence.job_id)
    }
}
