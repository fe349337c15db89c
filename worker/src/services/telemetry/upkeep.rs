//! Keeping telemetry's tables bounded: now and then, in batches, by one worker.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use tokio::time::Instant;

use crate::adapters::db::{
    DbError,
    telemetry_upkeep::{self, Aging},
};

/// Between two times.
const EVERY: Duration = Duration::from_secs(300);
/// Batches of one table in one go; what is left has time until the next.
const BATCHES: u32 = 40;
const DAY: Duration = Duration::from_secs(86_400);
/// Booked ticks: only those of the last minutes can come again.
const TICKS: Duration = DAY;
/// Samples of queues: the panel asks for an hour.
const QUEUES: Duration = Duration::from_secs(2 * 86_400);
/// Hours of status rows.
const HOURS: Duration = Duration::from_secs(400 * 86_400);

/// Does what is due, until the deadline. Answers how many rows went.
pub(super) async fn run(
    db: &PgPool,
    now: DateTime<Utc>,
    keep: Duration,
    query_window: Duration,
    deadline: Instant,
) -> Result<u64, DbError> {
    if !telemetry_upkeep::take(db, now, EVERY).await? {
        return Ok(0);
    }
    let mut gone = 0;
    for _ in 0..BATCHES {
        if Instant::now() >= deadline {
            return Ok(gone);
        }
        match telemetry_upkeep::status_to_hours(db, now - keep).await? {
            0 => break,
            rows => gone += rows,
        }
    }
    for (what, age) in [
        (Aging::SlowQueries, keep),
        (Aging::QueryDeltas, query_window),
        (Aging::Ticks, TICKS),
        (Aging::QueueSamples, QUEUES),
        (Aging::Samples, DAY),
        (Aging::Services, keep),
        (Aging::Hours, HOURS),
    ] {
        for _ in 0..BATCHES {
            if Instant::now() >= deadline {
                return Ok(gone);
            }
            match telemetry_upkeep::delete(db, what, now - age).await? {
                0 => break,
                rows => gone += rows,
            }
        }
    }
    Ok(gone)
}
