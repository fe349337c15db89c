//! Time as the Redis server has it: the local monotonic clock plus an offset
//! measured against the server, so that machines whose clocks differ agree.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use mpanel_protocol::time::{Clock, TimestampMs, millis};
use redis::aio::ConnectionLike;

/// Above this difference the operator is told.
const SKEW_WARN_MS: i64 = 1000;

/// How often the server is asked in one measurement.
const SAMPLES: u32 = 3;

/// A [`Clock`] that follows a Redis server. Before the first measurement it is
/// the system's clock; between measurements it never goes back.
#[derive(Debug)]
pub struct ServerClock {
    started: Instant,
    started_ms: i64,
    offset_ms: AtomicI64,
}

impl Default for ServerClock {
    fn default() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self { started: Instant::now(), started_ms: millis(since_epoch), offset_ms: AtomicI64::new(0) }
    }
}

impl ServerClock {
    fn local_ms(&self) -> i64 {
        self.started_ms.saturating_add(millis(self.started.elapsed()))
    }

    /// Measures the offset a few times and takes the quickest answer, which is the
    /// most exact: it is taken to be half a round trip old.
    ///
    /// # Errors
    /// Those of the TIME command; the offset stays as it was.
    pub async fn measure(&self, conn: &mut impl ConnectionLike) -> redis::RedisResult<()> {
        let mut best = (Duration::MAX, 0);
        for _ in 0..SAMPLES {
            let before = Instant::now();
            let (seconds, micros): (i64, i64) = redis::cmd("TIME").query_async(conn).await?;
            let took = before.elapsed();
            let server_ms = seconds.saturating_mul(1000).saturating_add(micros / 1000);
            let server_ms = server_ms.saturating_add(millis(took / 2));
            best = best.min((took, server_ms.saturating_sub(self.local_ms())));
        }
        let (_, offset) = best;
        let old = self.offset_ms.swap(offset, Ordering::Relaxed);
        if offset.abs() > SKEW_WARN_MS && (old - offset).abs() > SKEW_WARN_MS {
            tracing::warn!(
                offset_ms = offset,
                "this machine's clock differs from the Redis server's; using the server's"
            );
        }
        Ok(())
    }
}

impl Clock for ServerClock {
    fn now(&self) -> TimestampMs {
        TimestampMs(self.local_ms().saturating_add(self.offset_ms.load(Ordering::Relaxed)))
    }
}
