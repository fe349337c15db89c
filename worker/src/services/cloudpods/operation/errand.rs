//! One call on Proxmox that becomes a task, made to happen once: recorded
//! before it leaves, watched by its name, found again when the name was lost,
//! and never sent while an earlier request may still take effect.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::super::plan::{pause_before, soon_again};
use super::{OpError, Work};
use crate::adapters::{
    db::ledger::{self, StepRecord},
    proxmox::{
        Backup, Class, GuestAt, GuestKind, Outcome, Power, PveClient, PveError, TaskEnd, Upid, classify_text,
    },
};

/// How often a call is sent within one attempt.
const SENDS_MAX: u32 = 6;
const LOOK: Duration = Duration::from_secs(1);
/// Clocks of our database and of the nodes may differ by this.
const SKEW_S: i64 = 60;

/// A call, as data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Call {
    /// Changes the guest's power.
    Power(Power),
    /// Takes a snapshot with this name and note.
    Snapshot { name: String, note: String },
    /// Makes a backup with this note.
    Backup { mode: &'static str, storage: String, note: String },
    /// Lets a disk grow to this size.
    Grow { disk: &'static str, gib: u32 },
    /// Takes the guest away.
    Destroy,
}

impl Call {
    /// The type of its task.
    fn task(&self, kind: GuestKind) -> String {
        match self {
            Self::Power(power) => kind.task(power.verb()),
            Self::Snapshot { .. } => kind.task("snapshot"),
            Self::Backup { .. } => "vzdump".to_owned(),
            Self::Grow { .. } => "resize".to_owned(),
            Self::Destroy => kind.task("destroy"),
        }
    }

    /// How long its task may take before the job comes back for it later.
    fn deadline(&self) -> Duration {
        Duration::from_secs(match self {
            Self::Power(_) => 240,
            Self::Snapshot { .. } | Self::Grow { .. } | Self::Destroy => 15 * 60,
            Self::Backup { .. } => 6 * 3600,
        })
    }

    async fn send(&self, client: &PveClient, at: &GuestAt) -> Outcome<Upid> {
        match self {
            Self::Power(power) => client.power(at, *power).await,
            Self::Snapshot { name, note } => client.take_snapshot(at, name, note).await,
            Self::Backup { mode, storage, note } => {
                client.back_up(&at.node, Backup { vmid: at.vmid, mode, storage, note }).await
            }
            // An absolute size: growing twice is growing once.
            Self::Grow { disk, gib } => client.grow_disk(at, disk, *gib).await,
            Self::Destroy => client.destroy_guest(at).await,
        }
    }

    /// Whether what it is for can be seen to be there. (A reboot leaves nothing to see.)
    async fn is_done(&self, client: &PveClient, at: &GuestAt) -> Result<bool, PveError> {
        Ok(match self {
            Self::Power(Power::Start | Power::Resume) => client.guest_status(at).await?.works(),
            Self::Power(Power::Stop | Power::Shutdown { .. }) => {
                client.guest_status(at).await?.status == "stopped"
            }
            Self::Power(Power::Suspend) => {
                let status = client.guest_status(at).await?;
                if at.kind == GuestKind::Vm { status.is_paused() } else { status.status != "running" }
            }
            Self::Power(Power::Reboot { .. }) => false,
            Self::Snapshot { name, note } => {
                let snapshots = client.snapshots(at).await?;
                snapshots.iter().any(|s| s.name == *name && holds(s.description.as_deref(), note))
            }
            Self::Backup { storage, note, .. } => {
                let backups = client.backups(&at.node, storage, at.vmid).await?;
                backups.iter().any(|volume| holds(volume.notes.as_deref(), note))
            }
            Self::Grow { gib, .. } => {
                let disk = client.guest_config(at).await?.and_then(|config| config.root_disk());
                disk.is_some_and(|(_, has)| has >= *gib)
            }
            Self::Destroy => client.guest_config(at).await?.is_none(),
        })
    }

    /// A refusal that says that somebody was faster: what it is for is there, or will be seen not to be.
    fn already(&self, class: Class) -> bool {
        matches!(
            (self, class),
            (Self::Power(Power::Start | Power::Resume), Class::Running)
                | (Self::Power(Power::Stop | Power::Shutdown { .. }), Class::NotRunning)
                | (Self::Grow { .. }, Class::NoOpResize)
                | (Self::Destroy, Class::NotFound)
        )
    }
}

fn holds(text: Option<&str>, note: &str) -> bool {
    text.is_some_and(|text| text.trim() == note.trim())
}

impl Work<'_> {
    /// Makes a call happen; returns when its effect is there.
    pub(super) async fn errand(
        &self,
        client: &PveClient,
        at: &GuestAt,
        step: &'static str,
        call: &Call,
    ) -> Result<(), OpError> {
        let deadline = Instant::now() + call.deadline();
        let mut sends = 0;
        let mut last_refusal: Option<OpError> = None;
        let mut given_up: Option<Instant> = None;
        loop {
            let record = self.step(step).await?;
            let sent = record.as_ref().filter(|record| record.state == "sent");
            if record.as_ref().is_some_and(|record| record.state == "done") {
                return Ok(());
            }
            let upid =
                sent.and_then(|record| record.upid.as_deref()).and_then(|text| text.parse::<Upid>().ok());
            if let (Some(upid), None) = (&upid, given_up) {
                match client.wait_task(upid, deadline, self.service.settle).await? {
                    TaskEnd::Ok => return self.note(step, "done", None).await,
                    TaskEnd::Warnings(text) => {
                        tracing::warn!(vmid = at.vmid, %text, task = %upid, "the task ended with warnings");
                        return self.note(step, "done", None).await;
                    }
                    TaskEnd::Running => {
                        let what = format!("task {} still runs", upid.kind);
                        return Err(OpError::NotYet { vmid: at.vmid, what });
                    }
                    // Its node died or forgot it: what became of it must be seen.
                    TaskEnd::Lost(text) => {
                        tracing::warn!(vmid = at.vmid, %text, task = %upid, "the task is lost");
                        given_up = Some(Instant::now());
                    }
                    TaskEnd::Failed { text, log } => {
                        let class = classify_text(&text);
                        self.note(step, "failed", None).await?;
                        if call.is_done(client, at).await? {
                            continue;
                        }
                        let vmid = at.vmid;
                        let failure = OpError::TaskFailed { task: upid.kind.clone(), vmid, text, log, class };
                        if !(soon_again(class) || call.already(class)) {
                            return Err(failure);
                        }
                        last_refusal = Some(failure);
                    }
                }
                continue;
            }
            if call.is_done(client, at).await? {
                return self.note(step, "done", None).await;
            }
            if let Some(record) = sent
                && self.may_still_happen(client, at, call, step, record, given_up).await?
            {
                if Instant::now() > deadline {
                    let what = "it is not clear what became of a request".to_owned();
                    return Err(OpError::NotYet { vmid: at.vmid, what });
                }
                continue;
            }
            if sends >= SENDS_MAX {
                let what = "Proxmox did not take the request".to_owned();
                return Err(last_refusal.unwrap_or(OpError::NotYet { vmid: at.vmid, what }));
            }
            if sends > 0 {
                sleep(pause_before(sends, fastrand::f64())).await;
            }
            sends += 1;
            given_up = None;
            last_refusal = self.send(client, at, step, call).await?;
        }
    }

    /// After a request of unknown outcome: whether its task was found (then it is
    /// on record), or may still appear. Waits a moment in the second case.
    async fn may_still_happen(
        &self,
        client: &PveClient,
        at: &GuestAt,
        call: &Call,
        step: &'static str,
        record: &StepRecord,
        given_up: Option<Instant>,
    ) -> Result<bool, OpError> {
        let age = match given_up {
            Some(since) => since.elapsed(),
            None => {
                let since = record.started_at.timestamp() - SKEW_S;
                let tasks = client.find_tasks(&at.node, at.vmid, &call.task(at.kind), since).await?;
                let task = tasks.into_iter().find(|task| !record.is_earlier(task.upid.as_str()));
                if let Some(task) = task {
                    self.note(step, "sent", Some(task.upid.as_str())).await?;
                    return Ok(true);
                }
                Duration::from_secs_f64(record.age_s.max(0.0))
            }
        };
        if age >= self.service.settle {
            return Ok(false);
        }
        sleep(LOOK.min(self.service.settle - age)).await;
        Ok(true)
    }

    /// Sends the call: recorded before it leaves, its task before it is watched.
    /// Answers a refusal that may not last.
    async fn send(
        &self,
        client: &PveClient,
        at: &GuestAt,
        step: &'static str,
        call: &Call,
    ) -> Result<Option<OpError>, OpError> {
        let hash = format!("{at} {call:?}");
        ledger::record_sent(&self.service.db, &self.fence, self.generation(), step, &hash).await?;
        match call.send(client, at).await {
            Outcome::Done(upid) => {
                self.note(step, "sent", Some(upid.as_str())).await?;
                Ok(None)
            }
            Outcome::Unknown(error) => {
                tracing::warn!(vmid = at.vmid, %error, "looking what became of the request");
                Ok(None)
            }
            Outcome::NotDone(error) => {
                self.note(step, "failed", None).await?;
                if soon_again(error.class) || call.already(error.class) {
                    Ok(Some(error.into()))
                } else {
                    Err(error.into())
                }
            }
        }
    }
}
