//! Changing a pod's cores, memory and disk: what is added is reserved before, what
//! is taken away is given back after, and a guest that was stopped for it is started
//! again whatever happens. The disk comes last, since it cannot shrink again.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::super::{
    instance::Instance,
    quota::{self, Amount, Limits},
    sites::Survey,
};
use super::{OpError, Work, action::PATIENCE_S, end::Open, errand::Call, find::Seen, request::Size};
use crate::adapters::{
    db::{
        self,
        changes::{self, PodSize},
        ledger, nodes, quota as db_quota,
    },
    proxmox::{Class, GuestAt, GuestConfig, GuestKind, Outcome, Power, PveClient},
};

const MIB: i64 = 1 << 20;
/// How often a change that meets another is made again.
const CONFLICTS_MAX: u32 = 6;
/// Keys that a change of size touches.
const KEYS: [&str; 2] = ["cores", "memory"];

impl Work<'_> {
    pub(super) async fn scale(
        &self,
        to: Size,
        disk_gb: Option<i32>,
        backup_first: bool,
        reason: Option<&str>,
    ) -> Result<Value, OpError> {
        let (client, at, config) = self.guest().await?;
        let from = self.size_before();
        let disk_gb = disk_gb.unwrap_or(from.disk_gb);
        let has = config.root_disk().and_then(|(_, gib)| i32::try_from(gib).ok()).unwrap_or(from.disk_gb);
        if disk_gb < from.disk_gb || (disk_gb != from.disk_gb && disk_gb < has) {
            return Err(OpError::DiskShrink { wanted: disk_gb, has: has.max(from.disk_gb) });
        }
        let to = PodSize { cores: to.cores, memory_mb: to.memory_mb, disk_gb };
        self.reserve(from, to).await?;
        let status = client.guest_status(&at).await?;
        let used_mb = status.usage.mem.unwrap_or_default() / MIB;
        let shrinks = to.memory_mb < from.memory_mb;
        if shrinks && status.status == "running" && used_mb * 6 / 5 > i64::from(to.memory_mb) {
            return Err(OpError::BelowUse { wanted: to.memory_mb, used_mb });
        }
        if backup_first {
            let name = format!("pre-scale-{}", self.begun.began_ms);
            self.take_snapshot(&client, &at, "pre-scale", &name).await?;
        }
        self.resize(&client, &at, to, status.status == "running").await?;
        if to.disk_gb > from.disk_gb {
            let (disk, _) = config.root_disk().ok_or_else(|| self.without_disk())?;
            let gib = u32::try_from(to.disk_gb).unwrap_or_default();
            self.errand(&client, &at, "grow", &Call::Grow { disk, gib }).await?;
        }
        self.commit_scaled(from, to, reason).await
    }

    fn size_before(&self) -> PodSize {
        let begun = &self.begun;
        // The disk's size is written only together with the job's end.
        PodSize { cores: begun.prior_cores, memory_mb: begun.prior_memory_mb, disk_gb: self.pod.disk_gb }
    }

    fn without_disk(&self) -> OpError {
        let what = "its configuration shows no disk of a known size".to_owned();
        OpError::NotYet { vmid: u32::try_from(self.pod.vmid).unwrap_or_default(), what }
    }

    /// Quota and room on the node for what is added.
    async fn reserve(&self, from: PodSize, to: PodSize) -> Result<(), OpError> {
        if self.step("reserve").await?.is_some_and(|record| record.state == "done") {
            return Ok(());
        }
        let Open { mut tx, limits, .. } = self.open().await?;
        let more = |to: i32, from: i32| (to - from).max(0);
        let more_cores = more(to.cores, from.cores);
        let more_memory = more(to.memory_mb, from.memory_mb);
        let more_disk = more(to.disk_gb, from.disk_gb);
        let used: Amount = db_quota::usage(&mut tx, self.pod.tenant_id, None).await?.into();
        let wanted = Amount {
            pods: 0,
            cores: more_cores.into(),
            memory_mb: more_memory.into(),
            disk_gb: more_disk.into(),
        };
        let grows = |code: &str| match code {
            "MAX_CPU_EXCEEDED" => more_cores > 0,
            "MAX_MEMORY_EXCEEDED" => more_memory > 0,
            "MAX_DISK_EXCEEDED" => more_disk > 0,
            _ => false,
        };
        let mut exceeded = quota::check(Limits::from(limits), used, wanted);
        exceeded.retain(|exceeded| grows(exceeded.code));
        if !exceeded.is_empty() {
            return Err(OpError::Quota(exceeded));
        }
        if let Some(instance) = &self.instance
            && (more_cores > 0 || more_memory > 0 || more_disk > 0)
        {
            let row = &instance.row;
            if let Some(node) = nodes::lock(&mut tx, row.node_id).await? {
                let region = &self.service.defaults.default_region;
                let room = self.service.sites.candidate(&node, &Survey::default(), region);
                let fits =
                    |used: f64, more: i32, capacity: f64| more == 0 || used + f64::from(more) <= capacity;
                if !fits(room.used.cores, more_cores, room.capacity.cores)
                    || !fits(room.used.memory_mb, more_memory, room.capacity.memory_mb)
                    || !fits(room.used.disk_gb, more_disk, room.capacity.disk_gb)
                {
                    let what = format!(
                        "{more_cores} more cores, {more_memory} MiB more memory and {more_disk} GiB more disk"
                    );
                    return Err(OpError::NoRoom { node: node.name, what });
                }
                let most = PodSize {
                    cores: to.cores.max(from.cores),
                    memory_mb: to.memory_mb.max(from.memory_mb),
                    disk_gb: to.disk_gb,
                };
                changes::set_reservation(&mut tx, row.pod_id, row.generation, most).await?;
                nodes::project(&mut tx, row.node_id).await?;
            }
        }
        db::commit(tx).await?;
        self.note("reserve", "done", None).await
    }

    /// Gives the guest its size. A container takes it while it runs, a machine
    /// at its next start: it is ended and started for it.
    async fn resize(
        &self,
        client: &PveClient,
        at: &GuestAt,
        to: PodSize,
        running: bool,
    ) -> Result<(), OpError> {
        let before = self.step("configure").await?;
        if before.as_ref().is_some_and(|record| record.state == "done") {
            return Ok(());
        }
        let mut was_running = running;
        match before.and_then(|record| record.result).and_then(|result| result.get("running")?.as_bool()) {
            Some(known) => was_running = known,
            None => {
                let result = json!({ "running": running });
                let (fence, generation) = (&self.fence, self.generation());
                ledger::record_step(
                    &self.service.db,
                    fence,
                    generation,
                    "configure",
                    "planned",
                    None,
                    Some(&result),
                )
                .await?;
            }
        }
        let restart = at.kind == GuestKind::Vm && was_running;
        if !is_size(&self.config(client, at).await?, to) {
            if restart {
                let end = Call::Power(Power::Shutdown { patience_s: PATIENCE_S });
                self.errand(client, at, "shutdown", &end).await?;
            }
            set_size(client, at, to).await?;
        }
        if restart {
            self.errand(client, at, "start", &Call::Power(Power::Start)).await?;
        }
        let waiting = client.guest_pending(at).await?;
        if waiting.iter().any(|row| row.pending.is_some() && KEYS.contains(&row.key.as_str())) {
            let what = "its new size waits for its next start".to_owned();
            return Err(OpError::NotYet { vmid: at.vmid, what });
        }
        self.note("configure", "done", None).await
    }

    async fn config(&self, client: &PveClient, at: &GuestAt) -> Result<GuestConfig, OpError> {
        let config = client.guest_config(at).await?;
        config.ok_or(OpError::NoGuest { vmid: self.pod.vmid, pod: self.pod.id })
    }

    async fn commit_scaled(
        &self,
        from: PodSize,
        to: PodSize,
        reason: Option<&str>,
    ) -> Result<Value, OpError> {
        let pod = &self.pod;
        let mut result = json!({ "success": true, "newCores": to.cores, "newMemoryMb": to.memory_mb });
        let words = |size: PodSize| json!({ "cores": size.cores, "memoryMb": size.memory_mb, "diskGb": size.disk_gb });
        let data = json!({ "from": words(from), "to": words(to), "vmid": pod.vmid, "reason": reason });
        let mut message = format!(
            "CloudPod {} has {} cores and {} MiB of memory now",
            pod.hostname, to.cores, to.memory_mb
        );
        if to.disk_gb != from.disk_gb {
            result["newDiskGb"] = json!(to.disk_gb);
            message = format!("{message}, and {} GiB of disk", to.disk_gb);
        }
        let mut open = self.open().await?;
        if let Some(instance) = &self.instance {
            let row = &instance.row;
            nodes::lock(&mut open.tx, row.node_id).await?;
            give_room(&mut open.tx, instance, to).await?;
            changes::set_spec_size(&mut open.tx, row.pod_id, row.generation, to).await?;
        }
        changes::set_size(&mut open.tx, pod.id, to).await?;
        let by = db_quota::Change {
            cores: to.cores - from.cores,
            memory_mb: to.memory_mb - from.memory_mb,
            disk_gb: to.disk_gb - from.disk_gb,
            ..db_quota::Change::default()
        };
        db_quota::change_used(&mut open.tx, pod.tenant_id, by).await?;
        self.close(open, "SCALE", &message, data, &result).await?;
        Ok(result)
    }
}

/// The instance reserves this size. The node must be locked.
async fn give_room(tx: &mut db::Tx, instance: &Instance, size: PodSize) -> Result<(), db::DbError> {
    let row = &instance.row;
    changes::set_reservation(tx, row.pod_id, row.generation, size).await?;
    if row.api_url.is_some() { nodes::project(tx, row.node_id).await } else { Ok(()) }
}

/// Cores and memory; a disk is grown by a task of its own.
fn is_size(config: &GuestConfig, size: PodSize) -> bool {
    config.cores == Some(size.cores.into()) && config.memory == Some(size.memory_mb.into())
}

/// Writes a size, by the digest of what was read; until it is seen to be there.
async fn set_size(client: &PveClient, at: &GuestAt, size: PodSize) -> Result<(), OpError> {
    let (cores, memory) = (size.cores.to_string(), size.memory_mb.to_string());
    for _ in 0..CONFLICTS_MAX {
        let config = client.guest_config(at).await?.unwrap_or_default();
        if is_size(&config, size) {
            return Ok(());
        }
        let form = [("cores", cores.as_str()), ("memory", memory.as_str())];
        match client.set_guest_config(at, config.digest.as_deref(), &form).await {
            Outcome::Done(()) | Outcome::Unknown(_) => {}
            Outcome::NotDone(error) if matches!(error.class, Class::DigestMismatch | Class::LockTimeout) => {}
            Outcome::NotDone(error) => return Err(error.into()),
        }
        sleep(Duration::from_millis(100)).await;
    }
    let config = client.guest_config(at).await?.unwrap_or_default();
    if is_size(&config, size) {
        return Ok(());
    }
    Err(OpError::NotYet { vmid: at.vmid, what: "its configuration does not take the new size".to_owned() })
}

impl Work<'_> {
    /// Undoes a change of size: the guest has its old size and runs, if it ran.
    /// What cannot be seen to be undone stays reserved.
    pub(super) async fn put_back(&self) -> Result<(), OpError> {
        let mut from = self.size_before();
        if let Some(record) = self.step("configure").await? {
            let (Some(client), Seen::Ours(at, _)) = self.find().await? else { return Ok(()) };
            set_size(&client, &at, from).await?;
            // What has grown stays, and stays in the books.
            let disk = client.guest_config(&at).await?.and_then(|config| config.root_disk());
            from.disk_gb =
                disk.and_then(|(_, gib)| i32::try_from(gib).ok()).unwrap_or(from.disk_gb).max(from.disk_gb);
            let ran = record.result.and_then(|result| result.get("running")?.as_bool()) == Some(true);
            if ran && !client.guest_status(&at).await?.works() {
                self.errand(&client, &at, "undo-start", &Call::Power(Power::Start)).await?;
            }
        }
        if let Some(instance) = &self.instance {
            let mut tx = db::begin(&self.service.db).await?;
            ledger::hold_fence(&mut tx, &self.fence).await?;
            nodes::lock(&mut tx, instance.row.node_id).await?;
            give_room(&mut tx, instance, from).await?;
            if from.disk_gb > self.pod.disk_gb {
                let row = &instance.row;
                changes::set_spec_size(&mut tx, row.pod_id, row.generation, from).await?;
                changes::set_size(&mut tx, self.pod.id, from).await?;
                let grown = from.disk_gb - self.pod.disk_gb;
                let by = db_quota::Change { disk_gb: grown, ..db_quota::Change::default() };
                db_quota::change_used(&mut tx, self.pod.tenant_id, by).await?;
            }
            db::commit(tx).await?;
        }
        Ok(())
    }
}
