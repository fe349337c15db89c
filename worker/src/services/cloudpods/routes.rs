//! CloudPods over HTTP: rows and jobs as mPanel's own routes would leave them, in
//! one transaction, the job through the outbox. Nothing is asked of Proxmox: the
//! worker decides where a pod goes.

use axum::{
    Json, Router,
    extract::{Path, Query, State, rejection::JsonRejection},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use mpanel_producer::outbox::Outbox;
use mpanel_protocol::payload::{PayloadError, cloudpods::CREATE_QUEUE, defaults_of};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    KIND,
    operation::{self, Operation},
    payload::{self, AddressWish, CreateSpec},
    quota::{self, Amount, Limits},
    storable,
};
use crate::{
    adapters::db::{
        self, Tx,
        api::{self as rows, NewJob},
        operations::{self, PodRecord},
        pods::{self, NewPod},
    },
    api::{ApiState, Caller, idempotency::Key, problem::Problem},
};

/// Most rows of one page.
const PAGE_MAX: i64 = 200;

/// The routes of this service.
pub fn routes() -> Router<ApiState> {
    Router::new()
        .route("/api/cloudpods", post(create).get(list))
        .route("/api/cloudpods/{id}", get(pod))
        .route("/api/cloudpods/{id}/actions", post(act))
        .route("/api/jobs/{id}", get(job))
}

type Body = Result<Json<Value>, JsonRejection>;

/// The body as an object; what it is instead otherwise.
fn object(body: Body) -> Result<Value, Problem> {
    let Json(body) = body.map_err(|rejection| Problem::Body(rejection.body_text()))?;
    if body.is_object() { Ok(storable(&body)) } else { Err(Problem::Body("the body must be a JSON object".to_owned())) }
}

/// The tenant that a request is for: the token's, or for an administrator the
/// one that the body names.
fn tenant_of(caller: &Caller, body: &Value) -> Result<Uuid, Problem> {
    let named = match body.get("tenantId") {
        None | Some(Value::Null) => None,
        Some(id) => {
            let id = id.as_str().and_then(|id| id.parse().ok());
            Some(id.ok_or_else(|| PayloadError::one("tenantId", "must be a UUID"))?)
        }
    };
    match (caller.tenant_id, named) {
        (Some(own), None) => Ok(own),
        (Some(own), Some(named)) if own == named => Ok(own),
        (Some(_), Some(_)) => Err(Problem::NotFound("tenant")),
        (None, Some(named)) => Ok(named),
        (None, None) => Err(PayloadError::one("tenantId", "is missing; an administrator's token needs it").into()),
    }
}

/// Answers a request once: what `work` did and its answer are one transaction.
async fn once<W>(state: &ApiState, key: Option<Key>, work: W) -> Result<Response, Problem>
where
    W: AsyncFnOnce(&mut Tx) -> Result<Value, Problem>,
{
    let mut tx = db::begin(&state.db).await?;
    if let Some(key) = &key
        && let Some(kept) = key.answered(&mut tx).await?
    {
        let status = u16::try_from(kept.status).ok().and_then(|status| StatusCode::from_u16(status).ok());
        let status = status.unwrap_or(StatusCode::ACCEPTED);
        return Ok((status, [("idempotent-replayed", "true")], Json(kept.answer)).into_response());
    }
    let answer = work(&mut tx).await?;
    if let Some(key) = &key {
        key.keep(&mut tx, StatusCode::ACCEPTED.as_u16(), &answer).await?;
    }
    db::commit(tx).await?;
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let mut body = object(body)?;
    let key = Key::of(&caller, &headers, "POST /api/cloudpods", &body)?;
    let tenant_id = tenant_of(&caller, &body)?;
    body["tenantId"] = json!(tenant_id);
    body["requestedBy"] = json!(caller.requested_by());
    let spec = payload::parse(&body)?;
    once(&state, key, async |tx| new_pod(&state, tx, &spec, &body).await).await
}

async fn new_pod(state: &ApiState, tx: &mut Tx, spec: &CreateSpec, body: &Value) -> Result<Value, Problem> {
    let tenant_id = spec.tenant_id;
    if !db::quota::tenant_exists(tx, tenant_id).await? {
        return Err(Problem::NotFound("tenant"));
    }
    let limits = Limits::from(db::quota::lock_limits(tx, tenant_id).await?);
    let used: Amount = db::quota::usage(tx, tenant_id, None).await?.into();
    let wanted = Amount {
        pods: 1,
        cores: spec.cores.into(),
        memory_mb: spec.memory_mb.into(),
        disk_gb: spec.disk_gb.into(),
    };
    let exceeded = quota::check(limits, used, wanted);
    if !exceeded.is_empty() {
        return Err(Problem::Quota(exceeded.iter().map(ToString::to_string).collect()));
    }
    let region = spec.region.as_deref().unwrap_or(&state.cloudpods.default_region);
    let cluster = rows::cluster_of_region(tx, region, &state.cloudpods.default_region).await?;
    let cluster = cluster.ok_or_else(|| PayloadError::one("region", "has no node"))?;
    let vmid = vmid_for(tx, spec, cluster).await?;

    let (pod_id, job_row) = (Uuid::new_v4(), Uuid::new_v4());
    let ip = match spec.address {
        AddressWish::Static { ip, .. } => Some(ip.to_string()),
        AddressWish::Auto => None,
    };
    let int = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
    let defaults = &state.cloudpods;
    let pod = NewPod {
        id: pod_id,
        tenant_id,
        vmid,
        hostname: &spec.hostname,
        ip: ip.as_deref(),
        region,
        pool: defaults.pool.as_deref().unwrap_or_default(),
        cores: int(spec.cores),
        memory_mb: int(spec.memory_mb),
        swap_mb: int(spec.swap_mb),
        disk_gb: int(spec.disk_gb),
        storage: &defaults.storage,
        bridge: &defaults.bridge,
        plan: spec.plan_id.as_ref().map(|plan| json!({ "planId": plan })),
        blueprint_id: None,
    };
    pods::upsert(tx, &pod).await?;
    let job = Job { row: job_row, tenant_id, pod_id, kind: KIND, queue: CREATE_QUEUE };
    job.enqueue(tx, body).await?;
    Ok(json!({ "jobId": job_row, "podId": pod_id, "status": "queued" }))
}

/// The VMID that the row holds until the worker comes: the one asked for, or a
/// free one, which the worker keeps unless Proxmox has a guest there.
async fn vmid_for(tx: &mut Tx, spec: &CreateSpec, cluster: i32) -> Result<i32, Problem> {
    let Some(vmid) = spec.vmid.and_then(|vmid| i32::try_from(vmid).ok()) else {
        let free = pods::free_vmid(tx, cluster, &[]).await?;
        return free.ok_or_else(|| Problem::Conflict("no VMID is free in the region's cluster".to_owned()));
    };
    match pods::by_vmid(tx, vmid).await? {
        Some(_) => Err(Problem::Conflict(format!("VMID {vmid} is taken"))),
        None => Ok(vmid),
    }
}

/// A job with its row.
struct Job {
    row: Uuid,
    tenant_id: Uuid,
    pod_id: Uuid,
    kind: &'static str,
    queue: &'static str,
}

impl Job {
    async fn enqueue(&self, tx: &mut Tx, payload: &Value) -> Result<(), Problem> {
        let Some((name, options)) = defaults_of(self.queue) else { return Err(Problem::NotFound("queue")) };
        let bull_job_id = format!("{name}-{}", self.row);
        let job = NewJob {
            id: self.row,
            tenant_id: self.tenant_id,
            pod_id: self.pod_id,
            kind: self.kind,
            payload,
            bull_job_id: &bull_job_id,
        };
        rows::insert_job(tx, &job).await?;
        let options = mpanel_producer::EnqueueOptions::from(options).job_id(&bull_job_id);
        Outbox::new().enqueue(tx, self.queue, name, payload, options).await?;
        Ok(())
    }
}

async fn act(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let body = object(body)?;
    let pod_id: Uuid = id.parse().map_err(|_| Problem::NotFound("pod"))?;
    let route = format!("POST /api/cloudpods/{pod_id}/actions");
    let key = Key::of(&caller, &headers, &route, &body)?;
    let operation = operation_of(&body)?;
    once(&state, key, async |tx| {
        let pod = operations::lock_pod(tx, pod_id).await?.filter(|pod| caller.may_see(pod.tenant_id));
        let pod = pod.filter(|pod| !pod.deleted).ok_or(Problem::NotFound("pod"))?;
        let payload = payload_for(operation, &pod, &caller, &body);
        operation::check(operation, &payload)?;
        if pod.status != "active" && operation != Operation::Destroy || pod.status == "deleting" {
            let text = format!("the pod is {}; this needs an active one", pod.status);
            return Err(Problem::Conflict(text));
        }
        let row = Uuid::new_v4();
        let (kind, queue) = (operation.row_kind(), operation.queue());
        let job = Job { row, tenant_id: pod.tenant_id, pod_id, kind, queue };
        job.enqueue(tx, &payload).await?;
        Ok(json!({ "jobId": row, "podId": pod_id, "status": "queued" }))
    })
    .await
}

/// What an action's word means.
fn operation_of(body: &Value) -> Result<Operation, Problem> {
    Ok(match body.get("action").and_then(Value::as_str) {
        Some("start" | "stop" | "reboot" | "suspend" | "resume") => Operation::Action,
        Some("backup") => Operation::Backup,
        Some("scale") => Operation::Scale,
        Some("destroy") => Operation::Destroy,
        _ => {
            let words = "must be one of start, stop, reboot, suspend, resume, backup, scale, destroy";
            return Err(PayloadError::one("action", words).into());
        }
    })
}

/// The job's payload: the body's own fields, and what the row knows better.
fn payload_for(operation: Operation, pod: &PodRecord, caller: &Caller, body: &Value) -> Value {
    let mut payload = json!({
        "tenantId": pod.tenant_id, "vmid": pod.vmid, "cloudPodId": pod.id, "requestedBy": caller.requested_by(),
    });
    let mut take = |fields: &[&str]| {
        for field in fields {
            if let Some(value) = body.get(*field) {
                payload[*field] = value.clone();
            }
        }
    };
    take(&["reason"]);
    match operation {
        Operation::Action => take(&["action"]),
        Operation::Backup => {
            take(&["mode", "snapshotName"]);
            payload["triggeredBy"] = json!("manual");
            if payload.get("mode").is_none() {
                payload["mode"] = json!("snapshot");
            }
        }
        Operation::Scale => {
            take(&["newCores", "newMemoryMb", "newDiskGb", "backupFirst"]);
            payload["currentCores"] = json!(pod.cores);
            payload["currentMemoryMb"] = json!(pod.memory_mb);
            // Who names only one of them keeps the other.
            for (field, now) in [("newCores", pod.cores), ("newMemoryMb", pod.memory_mb)] {
                if payload.get(field).is_none() {
                    payload[field] = json!(now);
                }
            }
        }
        Operation::Destroy | Operation::Health => {}
    }
    payload
}

async fn pod(State(state): State<ApiState>, caller: Caller, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    let id = id.parse().map_err(|_| Problem::NotFound("pod"))?;
    let found = rows::pod(&state.db, id).await?.filter(|(tenant, _)| caller.may_see(*tenant));
    found.map(|(_, pod)| Json(pod)).ok_or(Problem::NotFound("pod"))
}

async fn job(State(state): State<ApiState>, caller: Caller, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    let id = id.parse().map_err(|_| Problem::NotFound("job"))?;
    let found = rows::job(&state.db, id).await?.filter(|(tenant, _)| caller.may_see(*tenant));
    found.map(|(_, job)| Json(job)).ok_or(Problem::NotFound("job"))
}

/// A page of pods.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    cursor: Option<Uuid>,
    limit: Option<i64>,
    tenant_id: Option<Uuid>,
}

async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    page: Result<Query<Page>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(page) = page.map_err(|rejection| Problem::Body(rejection.body_text()))?;
    let tenant = match (caller.tenant_id, page.tenant_id) {
        (Some(own), Some(named)) if own != named => return Err(Problem::NotFound("tenant")),
        (own, named) => own.or(named),
    };
    let limit = page.limit.unwrap_or(50).clamp(1, PAGE_MAX);
    let pods = rows::pods(&state.db, tenant, page.cursor, limit).await?;
    let full = i64::try_from(pods.len()).is_ok_and(|count| count == limit);
    let next = pods.last().filter(|_| full).and_then(|pod| pod.get("id")).cloned();
    Ok(Json(json!({ "pods": pods, "nextCursor": next })))
}
