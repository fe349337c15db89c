//! Flows: jobs of several queues stored in one atomic step, and children that
//! let go of their parents.

use redis::aio::ConnectionLike;

use super::add::{Added, NewJob, argument, decode, fit_in_call};
use crate::{
    ids::JobId,
    keys::QueueKeys,
    outcome::{JobOpError, check},
    peer::Peer,
    script::{ADD_JOBS, FORGET_PARENT, SETTLE_FLOW, ScriptError},
    time::TimestampMs,
    wire,
};

/// A job of a flow.
#[derive(Debug, Clone, PartialEq)]
pub struct FlowPart {
    /// Its queue.
    pub keys: QueueKeys,
    /// The job, with an id.
    pub job: NewJob,
}

/// Stores the jobs in order (parents before their children) in one transaction.
/// In a Cluster all queues must share a slot.
///
/// # Errors
/// [`ScriptError`]; refusals of single jobs are in the result.
///
/// # Cancel safety
/// Not cancel safe: a dropped call may have stored the jobs.
pub async fn add_flow(
    conn: &mut impl ConnectionLike,
    peer: Peer,
    now: TimestampMs,
    parts: &[FlowPart],
) -> Result<Vec<Added>, ScriptError> {
    // 6.x counts children that were done before only when the whole flow is there.
    let settle = peer == Peer::V6;
    let mut pipe = redis::pipe();
    pipe.atomic();
    let mut sizes = Vec::new();
    let mut rest = parts;
    while let Some(first) = rest.first() {
        // Neighbours of one queue travel in one call.
        let n = fit_in_call(rest.iter().take_while(|p| p.keys == first.keys).map(|p| &p.job));
        let (run, later) = rest.split_at(n);
        let argument = argument(peer, now, run.iter().map(|p| &p.job), settle, None)?;
        ADD_JOBS.append(&mut pipe, sizes.is_empty(), first.keys.meta(), &argument);
        sizes.push(n);
        rest = later;
    }
    if settle {
        let mut parents: Vec<&str> = Vec::new();
        for part in parts {
            let Some(parent) = part.job.parent.as_ref().filter(|p| !parents.contains(&p.key.as_str())) else {
                continue;
            };
            let argument = wire::pack(&(now.0, peer, [&parent.key]))?;
            SETTLE_FLOW.append(&mut pipe, parents.is_empty(), part.keys.meta(), &argument);
            parents.push(&parent.key);
        }
    }
    let replies: Vec<redis::Value> = pipe
        .query_async(conn)
        .await
        .map_err(|source| ScriptError::Redis { script: ADD_JOBS.name, source })?;
    let mut added = Vec::with_capacity(parts.len());
    for (reply, size) in replies.into_iter().zip(sizes) {
        let bytes: Vec<u8> = redis::from_redis_value(reply)
            .map_err(|e| ScriptError::Reply { script: ADD_JOBS.name, detail: e.to_string() })?;
        added.extend(decode(&bytes, size)?);
    }
    Ok(added)
}

/// Lets a parent no longer wait for the job `id`; `false` when it did not.
///
/// # Errors
/// [`JobOpError`]: the job or its parent is missing, or the call failed.
pub async fn forget_parent(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
    id: &JobId,
) -> Result<bool, JobOpError> {
    let argument = wire::pack(&(peer, id))?;
    Ok(check(id, FORGET_PARENT.call(conn, keys.meta(), &argument).await?)? == 0)
}
