//! The step that makes the guest: adopt it or create it, whatever an earlier
//! attempt left behind. The decisions are in [`super::plan`]; here they are
//! carried out and recorded.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{
    CreateService,
    error::CreateError,
    instance::Instance,
    plan::{Guest, Move, Step, Task, next_create, pause_before, read_guest, soon_again},
};
use crate::adapters::{
    db::{
        ledger::{self, Fence, StepRecord},
        pods,
    },
    proxmox::{Class, FoundTask, GuestKind, Outcome, PveClient, PveError, TaskEnd, Upid, classify_text},
};

/// Proxmox extracts templates and allocates disks in this time, or the job is
/// parked for its next attempt; the task goes on meanwhile.
const CREATE_DEADLINE: Duration = Duration::from_secs(30 * 60);
/// How often the request is sent within one attempt.
const SENDS_MAX: u32 = 6;
/// How long between two looks while something may still be on its way.
const LOOK: Duration = Duration::from_secs(1);
/// Clocks of our database and of the nodes may differ by this.
const SKEW_S: i64 = 60;

/// What is known about the creation on entering a round.
struct Known {
    record: Option<StepRecord>,
    upid: Option<Upid>,
    /// When its task was seen to be over without anybody knowing how.
    lost_at: Option<Instant>,
}

impl Known {
    /// Age of a request that may have taken effect.
    fn sent_ago(&self) -> Option<Duration> {
        if let Some(lost_at) = self.lost_at {
            return Some(lost_at.elapsed());
        }
        let record = self.record.as_ref().filter(|record| record.state == "sent")?;
        Some(Duration::from_secs_f64(record.age_s.max(0.0)))
    }
}

impl CreateService {
    /// Makes sure that the guest exists and is ours, and answers the node that it is on.
    pub(super) async fn ensure_created(
        &self,
        fence: &Fence,
        instance: &Instance,
        client: &PveClient,
    ) -> Result<String, CreateError> {
        let deadline = Instant::now() + CREATE_DEADLINE;
        let (mut sends, mut lost_at) = (0, None);
        loop {
            let mut known = self.known(fence, instance, lost_at).await?;
            if let (Some(upid), None) = (&known.upid, known.lost_at) {
                match client.wait_task(upid, deadline, self.settle).await {
                    Ok(TaskEnd::Ok) => {
                        self.created(fence, instance, None).await?;
                        return Ok(instance.spec.node_name.clone());
                    }
                    Ok(TaskEnd::Warnings(text)) => {
                        tracing::warn!(vmid = instance.vmid, %text, "the creation ended with warnings");
                        self.created(fence, instance, Some(&text)).await?;
                        return Ok(instance.spec.node_name.clone());
                    }
                    Ok(TaskEnd::Failed { text, log }) => {
                        self.not_done(fence, instance, &text).await?;
                        if soon_again(classify_text(&text)) && sends < SENDS_MAX {
                            sleep(pause_before(sends, fastrand::f64())).await;
                            continue;
                        }
                        return Err(CreateError::TaskFailed {
                            task: creation_task(instance),
                            vmid: instance.vmid,
                            text,
                            log,
                        });
                    }
                    Ok(TaskEnd::Lost(text)) => {
                        tracing::warn!(vmid = instance.vmid, %text, "the creation's task is lost");
                        lost_at = Some(Instant::now());
                        known.lost_at = lost_at;
                    }
                    Ok(TaskEnd::Running) => return Err(not_yet(instance, "it is still being created")),
                    Err(error) => return Err(self.node_trouble(instance, client, &known, error).await),
                }
            }
            let (guest, node) = match self.look(client, instance).await {
                Ok(seen) => seen,
                Err(error) => return Err(self.node_trouble(instance, client, &known, error).await),
            };
            let (mut task, found) = self.task_of(client, instance, &known).await?;
            if found.is_none() && guest == (Guest::Ours { in_creation: false }) {
                // Whatever runs is not about this guest: it is whole.
                task = Task::Ended;
            }
            match next_create(&guest, task, known.sent_ago(), self.settle) {
                // Somebody's clone of the same template; perhaps ours.
                Move::Watch if found.is_none() => {
                    if Instant::now() > deadline {
                        return Err(not_yet(
                            instance,
                            "its template is being cloned, and nobody knows by whom",
                        ));
                    }
                    sleep(LOOK).await;
                }
                Move::Watch => {
                    let upid = found.as_ref().map(Upid::as_str);
                    self.note_create(fence, instance, "sent", upid).await?;
                    lost_at = None;
                }
                Move::Adopt => {
                    self.created(fence, instance, None).await?;
                    return Ok(node);
                }
                Move::Taken(by) => {
                    self.not_done(fence, instance, &format!("taken by {by}")).await?;
                    return Err(CreateError::VmidTaken { vmid: instance.vmid, by });
                }
                Move::Quarantine => {
                    let why = "its creation stopped half way, and Proxmox keeps it locked (lock: create); \
                               `pct unlock` and `pct destroy` on the node remove it"
                        .to_owned();
                    return Err(CreateError::GivenUp { vmid: instance.vmid, why, may_exist: true });
                }
                Move::Wait => {
                    if Instant::now() > deadline {
                        return Err(not_yet(instance, "it is not clear what became of its creation"));
                    }
                    sleep(LOOK).await;
                }
                Move::Send if sends >= SENDS_MAX => {
                    return Err(not_yet(instance, "Proxmox did not take the request"));
                }
                Move::Send => {
                    if sends > 0 {
                        sleep(pause_before(sends, fastrand::f64())).await;
                    }
                    self.send_create(fence, instance, client, known.sent_ago().is_some(), sends).await?;
                    sends += 1;
                    lost_at = None;
                }
            }
        }
    }

    async fn known(
        &self,
        fence: &Fence,
        instance: &Instance,
        lost_at: Option<Instant>,
    ) -> Result<Known, CreateError> {
        let record = ledger::step(&self.db, fence, instance.row.generation, Step::Create.as_str()).await?;
        let upid = record
            .as_ref()
            .filter(|record| record.state == "sent")
            .and_then(|record| record.upid.as_deref())
            .and_then(|text| text.parse().ok());
        Ok(Known { record, upid, lost_at })
    }

    /// Our creation task on the VMID, when its name is not on record.
    async fn task_of(
        &self,
        client: &PveClient,
        instance: &Instance,
        known: &Known,
    ) -> Result<(Task, Option<Upid>), CreateError> {
        if known.upid.is_some() {
            return Ok((Task::Ended, None));
        }
        let Some(record) = known.record.as_ref().filter(|record| record.state == "sent") else {
            return Ok((Task::None, None));
        };
        let since = record.started_at.timestamp() - SKEW_S;
        let tasks = self.creation_tasks(client, instance, since).await?;
        if instance.spec.kind == GuestKind::Vm {
            // Such a task names the template, not the clone: one that runs may be ours.
            let runs = tasks.iter().any(|task| !task.ended);
            return Ok((if runs { Task::Running } else { Task::None }, None));
        }
        let mut tasks = tasks.into_iter().filter(|task| !record.is_earlier(task.upid.as_str()));
        Ok(match tasks.next() {
            None => (Task::None, None),
            // An ended task is watched too: its exit status tells what happened.
            Some(task) => (Task::Running, Some(task.upid)),
        })
    }

    /// Sends the request: recorded before it leaves, its task before it is watched.
    async fn send_create(
        &self,
        fence: &Fence,
        instance: &Instance,
        client: &PveClient,
        may_have_been_sent: bool,
        sends: u32,
    ) -> Result<(), CreateError> {
        let generation = instance.row.generation;
        let step = Step::Create.as_str();
        ledger::record_sent(&self.db, fence, generation, step, &instance.spec_hash()).await?;
        pods::set_phase(&self.db, fence, instance.row.pod_id, generation, "creating").await?;
        match self.request(fence, instance, client).await? {
            Outcome::Done(upid) => self.note_create(fence, instance, "sent", Some(upid.as_str())).await,
            // If an earlier request may have arrived, this may be its guest.
            Outcome::NotDone(error) if error.class == Class::Exists && may_have_been_sent => Ok(()),
            Outcome::NotDone(error) => {
                self.not_done(fence, instance, &error.text).await?;
                let look_again = error.class == Class::Exists || soon_again(error.class);
                if look_again && sends + 1 < SENDS_MAX { Ok(()) } else { Err(error.into()) }
            }
            Outcome::Unknown(error) => {
                tracing::warn!(vmid = instance.vmid, %error, "looking what became of the creation");
                Ok(())
            }
        }
    }

    /// The request itself.
    async fn request(
        &self,
        fence: &Fence,
        instance: &Instance,
        client: &PveClient,
    ) -> Result<Outcome<Upid>, CreateError> {
        let (queue, job_id) = (&fence.queue, &fence.job_id);
        Ok(match instance.spec.kind {
            GuestKind::Lxc => {
                let container = instance.container(queue, job_id);
                client.create_container(&instance.spec.node_name, &container).await
            }
            GuestKind::Vm => {
                let (template, node) = template_of(client, instance).await?;
                client.clone_machine(&node, &instance.clone_of(template, queue, job_id)).await
            }
        })
    }

    /// Creation tasks of ours since a time; for a machine all clones of its template.
    pub(super) async fn creation_tasks(
        &self,
        client: &PveClient,
        instance: &Instance,
        since_s: i64,
    ) -> Result<Vec<FoundTask>, PveError> {
        let kind = creation_task(instance);
        if instance.spec.kind == GuestKind::Lxc {
            return client.find_tasks(&instance.spec.node_name, instance.vmid, kind, since_s).await;
        }
        match template_of(client, instance).await {
            Ok((template, node)) => client.find_tasks(&node, template, kind, since_s).await,
            Err(CreateError::Pve(error)) => Err(error),
            // Without a template nothing is being cloned from it.
            Err(_) => Ok(Vec::new()),
        }
    }

    /// What is at the VMID, on the planned node or, moved, elsewhere.
    pub(super) async fn look(
        &self,
        client: &PveClient,
        instance: &Instance,
    ) -> Result<(Guest, String), PveError> {
        let node = &instance.spec.node_name;
        let tag = instance.tag();
        if let Some(config) = client.guest_config(&instance.at(node)).await? {
            return Ok((read_guest(&config, &tag, node), node.clone()));
        }
        let guests = client.guests().await?;
        for guest in guests.iter().filter(|guest| guest.vmid == Some(i64::from(instance.vmid))) {
            if guest.kind != instance.spec.kind.segment() {
                let name = guest.name.as_deref().unwrap_or("without a name");
                let who = format!("guest `{name}` ({}) on {}", guest.kind, guest.node);
                return Ok((Guest::Foreign(who), guest.node.clone()));
            }
            // The list lags: what it still shows may be gone.
            if let Some(config) = client.guest_config(&instance.at(&guest.node)).await? {
                return Ok((read_guest(&config, &tag, &guest.node), guest.node.clone()));
            }
        }
        Ok((Guest::Absent, node.clone()))
    }

    /// The node does not answer for its guests. If its cluster says that it is
    /// down, the pod moves; else nobody knows, and the next attempt looks again.
    async fn node_trouble(
        &self,
        instance: &Instance,
        client: &PveClient,
        known: &Known,
        error: PveError,
    ) -> CreateError {
        if !matches!(error.class, Class::NodeUnreachable | Class::Ambiguous) {
            return error.into();
        }
        let down = client.nodes().await.is_ok_and(|nodes| {
            nodes.iter().any(|row| {
                row.node == instance.spec.node_name
                    && row.status.as_deref().is_some_and(|status| status != "online")
            })
        });
        if !down {
            return error.into();
        }
        let why = format!("node {} went down while it was being created", instance.spec.node_name);
        let may_exist = known.sent_ago().is_some() || known.upid.is_some();
        CreateError::GivenUp { vmid: instance.vmid, why, may_exist }
    }

    async fn created(
        &self,
        fence: &Fence,
        instance: &Instance,
        note: Option<&str>,
    ) -> Result<(), CreateError> {
        let result = note.map(|text| serde_json::json!({ "warnings": text }));
        let (generation, step) = (instance.row.generation, Step::Create.as_str());
        ledger::record_step(&self.db, fence, generation, step, "done", None, result.as_ref()).await?;
        Ok(())
    }

    async fn not_done(&self, fence: &Fence, instance: &Instance, text: &str) -> Result<(), CreateError> {
        let result = serde_json::json!({ "error": text });
        let (generation, step) = (instance.row.generation, Step::Create.as_str());
        ledger::record_step(&self.db, fence, generation, step, "failed", None, Some(&result)).await?;
        Ok(())
    }

    async fn note_create(
        &self,
        fence: &Fence,
        instance: &Instance,
        state: &str,
        upid: Option<&str>,
    ) -> Result<(), CreateError> {
        let (generation, step) = (instance.row.generation, Step::Create.as_str());
        ledger::record_step(&self.db, fence, generation, step, state, upid, None).await?;
        Ok(())
    }
}

fn creation_task(instance: &Instance) -> &'static str {
    match instance.spec.kind {
        GuestKind::Lxc => "vzcreate",
        GuestKind::Vm => "qmclone",
    }
}

/// The template that a machine is cloned from, and the node that it is on.
async fn template_of(client: &PveClient, instance: &Instance) -> Result<(u32, String), CreateError> {
    let missing = || CreateError::VmTemplateMissing(instance.spec.template.clone());
    let template: u32 = instance.spec.template.parse().map_err(|_| missing())?;
    let guests = client.guests().await?;
    let row = guests.into_iter().find(|row| row.vmid == Some(i64::from(template)) && row.kind == "qemu");
    row.map(|row| (template, row.node)).ok_or_else(missing)
}

pub(super) fn not_yet(instance: &Instance, what: &str) -> CreateError {
    CreateError::NotYet { vmid: instance.vmid, what: what.to_owned() }
}
