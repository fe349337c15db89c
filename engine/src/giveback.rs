//! Jobs that a fetch started for nobody: its answer was lost with the connection.
//! They go back in line at once, instead of waiting for their locks to expire and
//! counting as stalled.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use mpanel_connect::{Conn, ConnectError, Redis};
use mpanel_protocol::{
    calls::finish::{FINISHES_PER_CALL, Finish, Transition, finish_jobs},
    ids::{JobId, LockToken},
    script::ScriptError,
};
use redis::RedisError;

use crate::worker::Shared;

/// Pause before another look after one that failed, doubling.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A call given up here may still reach the server; so there is a second look.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// Locks read at once.
const LOCKS_PER_READ: usize = 1000;

#[derive(Debug, thiserror::Error)]
enum GiveBackError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Redis(#[from] RedisError),
    #[error(transparent)]
    Script(#[from] ScriptError),
}

/// Gives back the active jobs locked with `token`, which no attempt of ours has.
/// Ends when their locks have expired: from then on the stalled check has them.
pub(crate) async fn give_back(shared: Arc<Shared>, token: LockToken) {
    let until = Instant::now() + shared.lock;
    let mut pause = PAUSE_MIN;
    let mut looks = 0;
    while looks < 2 && Instant::now() < until {
        match look(&shared, &token).await {
            Ok(ids) => {
                if !ids.is_empty() {
                    let queue = shared.keys.queue();
                    tracing::info!(%queue, jobs = ?ids, "the answer that started these jobs was lost; they are back in line");
                }
                looks += 1;
                pause = SECOND_LOOK;
            }
            Err(error) => {
                tracing::debug!(%error, "jobs of a lost answer cannot be looked for yet");
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
        if looks < 2 {
            tokio::time::sleep(pause).await;
        }
    }
}

async fn look(shared: &Shared, token: &LockToken) -> Result<Vec<JobId>, GiveBackError> {
    let redis: &Redis = &shared.engine.redis;
    let mut handle = redis.shared_for(shared.keys.meta()).await?;
    let outcome = look_with(shared, token, &mut handle.conn).await;
    let broken = match &outcome {
        Err(GiveBackError::Redis(error)) => Some(error),
        Err(GiveBackError::Script(error)) => error.redis(),
        Ok(_) | Err(GiveBackError::Connect(_)) => None,
    };
    if let Some(error) = broken {
        redis.report(&handle, error).await;
    }
    outcome
}

async fn look_with(shared: &Shared, token: &LockToken, conn: &mut Conn) -> Result<Vec<JobId>, GiveBackError> {
    let keys = &shared.keys;
    let active: Vec<String> =
        redis::cmd("LRANGE").arg(keys.active()).arg(0).arg(-1).query_async(conn).await?;
    let mut ours = Vec::new();
    for ids in active.chunks(LOCKS_PER_READ) {
        let mut read = redis::cmd("MGET");
        for id in ids {
            read.arg(keys.lock(&JobId::stored(id.clone())));
        }
        let locks: Vec<Option<String>> = read.query_async(conn).await?;
        let held = ids.iter().zip(locks).filter(|(_, lock)| lock.as_deref() == Some(token.as_str()));
        ours.extend(held.map(|(id, _)| JobId::stored(id.clone())));
    }
    // `active` is read newest first; the first in line goes back last, to be first again.
    for ids in ours.chunks(FINISHES_PER_CALL) {
        let back: Vec<Finish> = ids
            .iter()
            .map(|id| Finish { id: id.clone(), token: token.clone(), transition: Transition::Release })
            .collect();
        let engine = &shared.engine;
        finish_jobs(conn, keys, engine.peer, engine.now(), &back, None, None).await?;
    }
    Ok(ours)
}
