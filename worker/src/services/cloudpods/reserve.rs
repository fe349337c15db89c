//! The first step: capacity, VMID, address and rows, in one transaction.
//!
//! Proxmox is asked before the transaction, never inside it. Lock order: the
//! job's fence, the tenant's quota, the node, the VMID, the address.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    CreateService, KIND,
    choose::{Ask, Choice, choose},
    defaults::Defaults,
    error::CreateError,
    instance::{Instance, InstanceSpec, Net, Net6},
    payload::{AddressWish, CreateSpec},
    placement::{self, Candidate, Refusal, Size},
    plan::Step,
    quota::{self, Amount, Limits},
    sites::Survey,
};
use crate::adapters::db::{
    self, DbError, Tx, jobs, ledger,
    ledger::{Fence, JobRecord},
    nodes, operations,
    pods::{self, InstanceRow, NewPod},
    pools::{self, Taken},
};

/// How often a transaction that met another is run again.
const CONFLICT_TRIES: u32 = 5;

/// What was found out about nodes before the transaction.
struct Nodes<'a> {
    survey: &'a Survey,
    candidates: &'a [Candidate],
    /// Those that could take the pod, best first.
    ranked: &'a [i32],
}

/// A reservation to be made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) spec: &'a CreateSpec,
    /// The VMID that had to be given up; then the pod moves to another.
    pub(super) moved_from: Option<i32>,
}

impl CreateService {
    /// Reserves everything that the pod needs, or answers why not.
    pub(super) async fn reserve(&self, fence: &Fence, wanted: Wanted<'_>) -> Result<Instance, CreateError> {
        let spec = wanted.spec;
        let defaults = self.defaults_of(spec).await?;
        let region = spec.region.clone().unwrap_or_else(|| self.defaults.default_region.clone());
        let ask = Ask {
            region: region.clone(),
            size: size(spec),
            tenant_id: Some(spec.tenant_id),
            template: defaults.template.clone(),
            storage: self.defaults.storage.clone(),
        };
        let Choice { survey, candidates, outcome } =
            choose(&self.db, &self.sites, &self.defaults, &ask).await?;
        if let (Some(vmid), None) = (spec.vmid, wanted.moved_from)
            && let Some(by) = self.sites.holder(&survey, vmid).await?
        {
            return Err(CreateError::VmidTaken { vmid, by });
        }
        let decision = outcome.map_err(|refusal| CreateError::refused(&region, refusal))?;
        let ranked: Vec<i32> = decision.ranked.iter().map(|node| node.id).collect();
        let nodes = Nodes { survey: &survey, candidates: &candidates, ranked: &ranked };

        let mut tries = 0;
        loop {
            match self.reserve_once(fence, wanted, &region, &defaults, &nodes).await {
                Err(CreateError::Db(error)) if error.is_conflict() && tries < CONFLICT_TRIES => tries += 1,
                // A route or a Node worker inserted a row with that VMID meanwhile.
                Err(CreateError::Db(error)) if is_vmid_clash(&error) && tries < CONFLICT_TRIES => tries += 1,
                result => return result,
            }
        }
    }

    async fn reserve_once(
        &self,
        fence: &Fence,
        wanted: Wanted<'_>,
        region: &str,
        defaults: &Defaults,
        nodes: &Nodes<'_>,
    ) -> Result<Instance, CreateError> {
        let spec = wanted.spec;
        let mut tx = db::begin(&self.db).await?;
        let record = ledger::hold_fence(&mut tx, fence).await?;
        let limits = quota::Limits::from(db::quota::lock_limits(&mut tx, spec.tenant_id).await?);
        let pod_id = match wanted.moved_from {
            Some(_) => record.pod_id,
            None => self.owned_pod(&mut tx, fence, &record, spec).await?,
        }
        .unwrap_or_else(Uuid::new_v4);

        let used = db::quota::usage(&mut tx, spec.tenant_id, Some(pod_id)).await?;
        let exceeded = quota::check(limits, used.into(), wanted_amount(spec));
        if !exceeded.is_empty() {
            return Err(CreateError::Quota(exceeded));
        }

        let node = self.take_node(&mut tx, region, spec, nodes).await?;
        db::nodes::keep_base(&mut tx, node.id).await?;
        let generation = pods::last_generation(&mut tx, pod_id).await? + 1;
        let vmid = take_vmid(&mut tx, wanted, nodes.survey, node.cluster_id, pod_id, generation).await?;
        let card = self.take_address(&mut tx, spec, node.cluster_id, pod_id, generation).await?;
        let net6 = take_v6(&mut tx, &card, node.cluster_id, pod_id, generation).await?;

        let instance_spec = InstanceSpec {
            node_name: node.node_name.clone(),
            region: region.to_owned(),
            hostname: spec.hostname.clone(),
            cores: spec.cores,
            memory_mb: spec.memory_mb,
            swap_mb: spec.swap_mb,
            disk_gb: spec.disk_gb,
            template: defaults.template.clone(),
            storage: self.defaults.storage.clone(),
            bridge: card.bridge.unwrap_or_else(|| self.defaults.bridge.clone()),
            vlan: card.vlan,
            pool: self.defaults.pool.clone(),
            net: card.net,
            net6,
            moved_from: wanted.moved_from,
            kind: defaults.kind,
        };
        let row = InstanceRow {
            pod_id,
            generation,
            tenant_id: spec.tenant_id,
            cluster_id: node.cluster_id,
            node_id: node.id,
            vmid,
            phase: "reserved".to_owned(),
            spec: serde_json::to_value(&instance_spec).unwrap_or(Value::Null),
            api_url: Some(node.api_url.clone()),
        };
        self.write(&mut tx, fence, spec, &row, &instance_spec, defaults.blueprint_id).await?;
        db::commit(tx).await?;
        ledger::record_step(&self.db, fence, generation, Step::Reserve.as_str(), "done", None, None).await?;
        let vmid = u32::try_from(vmid).unwrap_or_default();
        Ok(Instance { row, spec: instance_spec, vmid })
    }

    async fn write(
        &self,
        tx: &mut Tx,
        fence: &Fence,
        spec: &CreateSpec,
        row: &InstanceRow,
        instance: &InstanceSpec,
        blueprint_id: Option<Uuid>,
    ) -> Result<(), CreateError> {
        let ip = match &instance.net {
            Net::Static { ip, .. } => Some(ip.as_str()),
            Net::Dhcp => None,
        };
        let pod = NewPod {
            id: row.pod_id,
            tenant_id: spec.tenant_id,
            vmid: row.vmid,
            hostname: &spec.hostname,
            ip,
            region: &instance.region,
            pool: instance.pool.as_deref().unwrap_or_default(),
            cores: int(spec.cores),
            memory_mb: int(spec.memory_mb),
            swap_mb: int(spec.swap_mb),
            disk_gb: int(spec.disk_gb),
            storage: &instance.storage,
            bridge: &instance.bridge,
            plan: spec.plan_id.as_ref().map(|plan| json!({ "planId": plan })),
            blueprint_id,
        };
        pods::upsert(tx, &pod).await?;
        pods::insert_instance(tx, fence, row, (pod.cores, pod.memory_mb, pod.disk_gb)).await?;
        nodes::project(tx, row.node_id).await?;
        jobs::link_pod(tx, fence, KIND, row.pod_id).await?;
        ledger::note_pod(tx, fence, row.pod_id).await?;
        Ok(())
    }

    /// The pod that this job made before, if it did: by our book or by mPanel's.
    /// Fails when the VMID belongs to any other row.
    async fn owned_pod(
        &self,
        tx: &mut Tx,
        fence: &Fence,
        record: &JobRecord,
        spec: &CreateSpec,
    ) -> Result<Option<Uuid>, CreateError> {
        let owned = match record.pod_id {
            Some(pod_id) => Some(pod_id),
            None => pods::of_job_row(tx, fence, KIND).await?,
        };
        let Some(vmid) = spec.vmid else {
            // Our own API has made the row, with a VMID for the time being.
            return match owned {
                Some(pod_id) if record.pod_id.is_none() => self.waiting_pod(tx, pod_id, spec).await,
                owned => Ok(owned),
            };
        };
        let Some(holder) = pods::by_vmid(tx, int(vmid)).await? else { return Ok(record.pod_id) };
        let ours = owned == Some(holder.id)
            && holder.tenant_id == spec.tenant_id
            && !holder.deleted
            && matches!(holder.status.as_str(), "provisioning" | "failed");
        if ours {
            return Ok(Some(holder.id));
        }
        let (id, hostname, status) = (holder.id, holder.hostname, holder.status);
        let by = if holder.deleted {
            format!(
                "the deleted pod {id} ({hostname}), whose row still holds it; remove that row or take another"
            )
        } else {
            format!("pod {id} ({hostname}, {status})")
        };
        Err(CreateError::VmidTaken { vmid, by })
    }

    /// The pod that our API made a row for, if it still waits to be made.
    async fn waiting_pod(
        &self,
        tx: &mut Tx,
        pod_id: Uuid,
        spec: &CreateSpec,
    ) -> Result<Option<Uuid>, CreateError> {
        let pod = operations::lock_pod(tx, pod_id).await?.filter(|pod| pod.tenant_id == spec.tenant_id);
        match pod {
            Some(pod) if pod.deleted => Err(CreateError::Deleted(pod_id)),
            Some(pod) if matches!(pod.status.as_str(), "provisioning" | "failed") => Ok(Some(pod_id)),
            _ => Ok(None),
        }
    }

    /// Locks the candidates in order and takes the first that still fits.
    async fn take_node(
        &self,
        tx: &mut Tx,
        region: &str,
        spec: &CreateSpec,
        choice: &Nodes<'_>,
    ) -> Result<nodes::NodeRecord, CreateError> {
        let weights = self.defaults.placement.weights();
        let mut passed = Vec::new();
        for id in choice.ranked {
            let Some(node) = nodes::lock(tx, *id).await? else { continue };
            let now = self.sites.candidate(&node, choice.survey, &self.defaults.default_region);
            // Other rows of the same machine count too; nothing is ever reserved on them.
            let twins = choice.candidates.iter().filter(|row| row.machine == now.machine && row.id != *id);
            let rows: Vec<Candidate> = std::iter::once(now.clone()).chain(twins.cloned()).collect();
            match placement::decide(&rows, region, size(spec), &weights) {
                Ok(_) => return Ok(node),
                Err(Refusal::NoNode { passed: reasons }) => passed.extend(reasons),
                Err(Refusal::UnknownRegion { .. }) => {}
            }
        }
        Err(CreateError::NoCapacity { region: region.to_owned(), passed })
    }

    async fn take_address(
        &self,
        tx: &mut Tx,
        spec: &CreateSpec,
        cluster_id: i32,
        pod_id: Uuid,
        generation: i32,
    ) -> Result<Card, CreateError> {
        let on_default = |net| Card { net, bridge: None, vlan: None };
        let (taken, wish) = match spec.address {
            AddressWish::Auto => (pools::take_any(tx, cluster_id, pod_id, generation).await?, None),
            AddressWish::Static { ip, prefix } => {
                let text = ip.to_string();
                let taken = pools::take_this(tx, cluster_id, &text, pod_id, generation).await?;
                (taken, Some((text, prefix)))
            }
        };
        match (taken, wish) {
            (Taken::Address(address), _) => {
                let net = Net::Static {
                    ip: address.ip,
                    prefix: u8::try_from(address.prefix).unwrap_or(24),
                    gateway: address.gateway,
                };
                Ok(Card { net, bridge: address.bridge, vlan: address.vlan })
            }
            (Taken::NoPool, None) => Ok(on_default(Net::Dhcp)),
            // Outside every pool nobody told us the network: /24 unless the
            // payload says, and no gateway, since a guessed one may be another host.
            (Taken::NoPool, Some((ip, prefix))) => {
                Ok(on_default(Net::Static { ip, prefix: prefix.unwrap_or(24), gateway: None }))
            }
            (Taken::Exhausted, _) => Err(CreateError::NoFreeAddress(cluster_id)),
            (Taken::Used(by), wish) => {
                Err(CreateError::AddressTaken { ip: wish.map(|(ip, _)| ip).unwrap_or_default(), by })
            }
        }
    }
}

/// The network card as far as its IPv4 address decides it.
struct Card {
    net: Net,
    /// `None`: the configured one.
    bridge: Option<String>,
    vlan: Option<i32>,
}

/// An IPv6 address beside, where the cluster has a pool on the same bridge and VLAN.
async fn take_v6(
    tx: &mut Tx,
    card: &Card,
    cluster_id: i32,
    pod_id: Uuid,
    generation: i32,
) -> Result<Option<Net6>, CreateError> {
    let segment = (card.bridge.as_deref(), card.vlan);
    match pools::take_v6(tx, cluster_id, segment, pod_id, generation).await? {
        Taken::Address(address) => Ok(Some(Net6 {
            ip: address.ip,
            prefix: u8::try_from(address.prefix).unwrap_or(64),
            gateway: address.gateway,
        })),
        Taken::NoPool => Ok(None),
        Taken::Exhausted | Taken::Used(_) => Err(CreateError::NoFreeAddress(cluster_id)),
    }
}

/// The payload's VMID is binding; without one, or after one had to be given up,
/// the lowest free of the cluster's range.
async fn take_vmid(
    tx: &mut Tx,
    wanted: Wanted<'_>,
    survey: &Survey,
    cluster_id: i32,
    pod_id: Uuid,
    generation: i32,
) -> Result<i32, CreateError> {
    let vmid = match (wanted.spec.vmid, wanted.moved_from) {
        (Some(vmid), None) => int(vmid),
        (None, None) if let Some(vmid) = kept_vmid(tx, survey, pod_id).await? => vmid,
        _ => pods::free_vmid(tx, cluster_id, &survey.vmids())
            .await?
            .ok_or(CreateError::NoFreeVmid(cluster_id))?,
    };
    pods::take_vmid(tx, cluster_id, vmid, pod_id, generation)
        .await?
        .map_err(|by| CreateError::VmidTaken { vmid: u32::try_from(vmid).unwrap_or_default(), by })?;
    Ok(vmid)
}

/// The VMID that the pod's row has for the time being, unless a guest is there.
async fn kept_vmid(tx: &mut Tx, survey: &Survey, pod_id: Uuid) -> Result<Option<i32>, CreateError> {
    let row = operations::lock_pod(tx, pod_id).await?;
    Ok(row.map(|row| row.vmid).filter(|vmid| !survey.vmids().contains(vmid)))
}

fn is_vmid_clash(error: &DbError) -> bool {
    error.sqlstate().as_deref() == Some("23505")
        && error.constraint().is_some_and(|constraint| constraint.contains("vmid"))
}

fn size(spec: &CreateSpec) -> Size {
    Size { cores: spec.cores.into(), memory_mb: spec.memory_mb.into(), disk_gb: spec.disk_gb.into() }
}

fn wanted_amount(spec: &CreateSpec) -> Amount {
    Amount {
        pods: 1,
        cores: spec.cores.into(),
        memory_mb: spec.memory_mb.into(),
        disk_gb: spec.disk_gb.into(),
    }
}

/// Checked ranges are below two thousand million.
fn int(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

impl From<Option<db::quota::LimitRow>> for Limits {
    fn from(row: Option<db::quota::LimitRow>) -> Self {
        row.map_or(quota::WITHOUT_ROW, |row| Self {
            pods: row.max_cloud_pods.into(),
            cores: row.max_cpu_cores.into(),
            memory_mb: row.max_ram_mb.into(),
            disk_gb: row.max_disk_gb.into(),
        })
    }
}

impl From<db::quota::UsageRow> for Amount {
    fn from(row: db::quota::UsageRow) -> Self {
        Self { pods: row.pods, cores: row.cores, memory_mb: row.memory_mb, disk_gb: row.disk_gb }
    }
}
