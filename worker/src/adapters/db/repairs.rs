//! What the reconciler writes when a difference is safe to mend. Every
//! statement looks again before it changes anything: the books may have moved
//! on since the decision.

use std::time::Duration;

use uuid::Uuid;

use super::{Attempted, DbError, Tx, pods::InstanceRow};

/// Marks an active pod's guest as lost; false when a job is at it, or it is so already.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn mark_lost(tx: &mut Tx, pod_id: Uuid, generation: i32) -> Result<bool, DbError> {
    let marked = sqlx::query(
        "UPDATE fleet_pods f SET lost_at = now()
         WHERE pod_id = $1 AND generation = $2 AND phase = 'active' AND lost_at IS NULL
           AND NOT EXISTS (SELECT 1 FROM fleet_pod_leases l
                           WHERE l.pod_id = f.pod_id AND l.expires_at > now())",
    )
    .bind(pod_id)
    .bind(generation)
    .execute(&mut **tx)
    .await
    .attempting("mark the pod as lost")?;
    Ok(marked.rows_affected() > 0)
}

/// A lost pod's guest is there again; false when it was not lost.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn unmark_lost(tx: &mut Tx, pod_id: Uuid) -> Result<bool, DbError> {
    let marked =
        sqlx::query("UPDATE fleet_pods SET lost_at = NULL WHERE pod_id = $1 AND lost_at IS NOT NULL")
            .bind(pod_id)
            .execute(&mut **tx)
            .await
            .attempting("note that the pod is back")?;
    Ok(marked.rows_affected() > 0)
}

/// An active record of a pod that mPanel has deleted and no job works on, with
/// everything locked that its release touches but the node.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn left_over(tx: &mut Tx, pod_id: Uuid, generation: i32) -> Result<Option<InstanceRow>, DbError> {
    // The order in which jobs lock: the pod's row before anything of ours.
    sqlx::query("SELECT 1 FROM cloud_pods WHERE id = $1 FOR UPDATE")
        .bind(pod_id)
        .execute(&mut **tx)
        .await
        .attempting("lock the pod's row")?;
    sqlx::query_as(
        "SELECT p.pod_id, p.generation, p.tenant_id, p.cluster_id, p.node_id, p.vmid, p.phase, p.spec, n.api_url
         FROM fleet_pods p LEFT JOIN cloud_pod_nodes n ON n.id = p.node_id
         WHERE p.pod_id = $1 AND p.generation = $2 AND p.phase = 'active'
           AND NOT EXISTS (SELECT 1 FROM cloud_pods c
                           WHERE c.id = p.pod_id AND c.deleted_at IS NULL AND lower(c.status) <> 'deleted')
           AND NOT EXISTS (SELECT 1 FROM fleet_pod_leases l
                           WHERE l.pod_id = p.pod_id AND l.expires_at > now())",
    )
    .bind(pod_id)
    .bind(generation)
    .fetch_optional(&mut **tx)
    .await
    .attempting("read what the deleted pod still holds")
}

/// What a creation holds that never sent anything and has been silent for this
/// long. Its fence is moved on, so that no attempt of it can send anything after
/// the release; a later attempt finds nothing reserved and begins anew.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn idle_hold(
    tx: &mut Tx,
    pod_id: Uuid,
    generation: i32,
    idle: Duration,
) -> Result<Option<InstanceRow>, DbError> {
    let moved = sqlx::query(
        "UPDATE fleet_job_fence f SET fence = f.fence + 1
         FROM fleet_pods p
         WHERE p.pod_id = $1 AND p.generation = $2 AND f.queue = p.queue AND f.job_id = p.job_id",
    )
    .bind(pod_id)
    .bind(generation)
    .execute(&mut **tx)
    .await
    .attempting("move the job's fence on")?;
    if moved.rows_affected() == 0 {
        return Ok(None);
    }
    // After the fence: what an attempt has recorded until now is seen, and it records no more.
    sqlx::query_as(
        "SELECT p.pod_id, p.generation, p.tenant_id, p.cluster_id, p.node_id, p.vmid, p.phase, p.spec, n.api_url
         FROM fleet_pods p
         JOIN fleet_reservations r ON r.pod_id = p.pod_id AND r.generation = p.generation
         LEFT JOIN cloud_pod_nodes n ON n.id = p.node_id
         WHERE p.pod_id = $1 AND p.generation = $2 AND p.phase = 'reserved' AND r.state = 'held'
           AND GREATEST(p.updated_at, r.updated_at) < now() - make_interval(secs => $3)
           AND NOT EXISTS (SELECT 1 FROM fleet_job_steps s
                           WHERE s.queue = p.queue AND s.job_id = p.job_id AND s.generation = p.generation
                             AND s.step <> 'reserve')",
    )
    .bind(pod_id)
    .bind(generation)
    .bind(idle.as_secs_f64())
    .fetch_optional(&mut **tx)
    .await
    .attempting("read what the silent job holds")
}

/// Removes a lease that has been over for so long.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn drop_lease(tx: &mut Tx, pod_id: Uuid, over: Duration) -> Result<bool, DbError> {
    let dropped = sqlx::query(
        "DELETE FROM fleet_pod_leases
         WHERE pod_id = $1 AND expires_at < now() - make_interval(secs => $2)",
    )
    .bind(pod_id)
    .bind(over.as_secs_f64())
    .execute(&mut **tx)
    .await
    .attempting("remove a lease that is over")?;
    Ok(dropped.rows_affected() > 0)
}

/// Sets a tenant's counters. The tenant's quota must be locked.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn set_used(tx: &mut Tx, tenant_id: Uuid, used: [i32; 4]) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE cloud_pod_quotas
         SET used_cloud_pods = $2, used_cpu_cores = $3, used_ram_mb = $4, used_disk_gb = $5,
             updated_at = timezone('utc', now())
         WHERE tenant_id = $1",
    )
    .bind(tenant_id)
    .bind(used[0])
    .bind(used[1])
    .bind(used[2])
    .bind(used[3])
    .execute(&mut **tx)
    .await
    .attempting("set the tenant's counters right")
    .map(|_| ())
}

/// Lets a VMID rest whose orphan is about to be removed, so that no creation of
/// ours takes it while a late request may still arrive. False when the VMID or
/// the pod is in use after all.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn rest_vmid(tx: &mut Tx, cluster_id: i32, vmid: i32, pod_id: Uuid) -> Result<bool, DbError> {
    let rests = sqlx::query(
        "INSERT INTO fleet_vmids AS v (cluster_id, vmid, state, pod_id, cooldown_until)
         SELECT $1, $2, 'cooldown', $3, now() + interval '1 day'
         WHERE NOT EXISTS (SELECT 1 FROM cloud_pods c
                           WHERE c.id = $3 AND c.deleted_at IS NULL AND lower(c.status) <> 'deleted')
           AND NOT EXISTS (SELECT 1 FROM fleet_pod_leases l WHERE l.pod_id = $3 AND l.expires_at > now())
           AND NOT EXISTS (SELECT 1 FROM fleet_pods p
                           WHERE p.cluster_id = $1 AND p.vmid = $2 AND p.phase <> 'released'
                             AND (p.pod_id <> $3 OR p.phase <> 'active'))
         ON CONFLICT (cluster_id, vmid) DO UPDATE
         SET state = 'cooldown', cooldown_until = EXCLUDED.cooldown_until, updated_at = now()
         WHERE v.state IN ('cooldown', 'foreign') OR v.pod_id = $3",
    )
    .bind(cluster_id)
    .bind(vmid)
    .bind(pod_id)
    .execute(&mut **tx)
    .await
    .attempting("let the orphan's VMID rest")?;
    Ok(rests.rows_affected() > 0)
}
