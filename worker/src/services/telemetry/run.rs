//! One tick from its job to its rows, and what is said of it on the way.

use std::{sync::PoisonError, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};

use super::{
    Collected, Done, Inner, TelemetryError, TelemetryService,
    clock::{self, Collector, Tick},
    health::{self, Frame},
    pg, pods, queues, redis,
    sample::{Check, Reading},
    state,
    store::{self, Written},
    upkeep,
};
use crate::adapters::db::telemetry::is_booked;

impl TelemetryService {
    /// Collects a tick and writes it, unless that was done or it is too late.
    ///
    /// # Errors
    /// [`TelemetryError`] when it could not be written; run it again. What could
    /// not be collected is no error here: it is written.
    ///
    /// # Cancel safety
    /// May be dropped at any point: a tick is written whole or not at all.
    pub async fn tick(&self, tick: Tick) -> Result<Done, TelemetryError> {
        let done = Box::pin(self.attempt(tick)).await;
        match &done {
            Err(error) => self.say(tick.collector, "writing", Some(&error.to_string())),
            Ok(Done::Written(_)) => self.say(tick.collector, "writing", None),
            Ok(Done::Late | Done::NotHere) => {}
        }
        done
    }

    async fn attempt(&self, tick: Tick) -> Result<Done, TelemetryError> {
        let Inner { db, config, .. } = &*self.inner;
        let at = store::at(&tick);
        let now_ms = self.inner.clock.now().0;
        let late = tick.is_late(now_ms, config.interval);
        match is_booked(db, tick.collector.as_str(), at).await {
            Ok(true) => return Ok(Done::Written(Written::Already)),
            Ok(false) if late => {
                let late_s = now_ms.saturating_sub(tick.due_ms) / 1000;
                let why = format!("{late_s} s late: the next one is due");
                store::skip(db, &tick, &why).await?;
                return Ok(Done::Late);
            }
            Ok(false) => {}
            // Nobody will want it any more, whether it is booked or not.
            Err(error) if late => {
                self.say(tick.collector, "writing", Some(&TelemetryError::from(error).to_string()));
                return Ok(Done::Late);
            }
            Err(error) => return Err(error.into()),
        }
        if !self.collectors().contains(&tick.collector) {
            return Ok(Done::NotHere);
        }
        let begun = Instant::now();
        let deadline = begun + clock::budget(config.interval);
        sleep(clock::start_offset(tick.collector, config.interval)).await;
        let collecting = Box::pin(self.collect(tick, now_ms, deadline));
        let mut collected = match timeout_at(deadline, collecting).await {
            Ok(collected) => collected,
            Err(_) => Collected {
                problem: Some("it did not end before the next tick was due".to_owned()),
                ..Collected::default()
            },
        };
        self.say(tick.collector, "problem", collected.problem.as_deref());
        self.say(tick.collector, "remark", collected.remark.as_deref());
        let fine = collected.problem.is_none();
        let word = tick.collector.as_str();
        collected.samples.add("telemetry_collector_up", word, if fine { 1.0 } else { 0.0 });
        let reading = match &collected.problem {
            None => Reading::up(None),
            // What it could collect is there.
            Some(why) if !collected.checks.is_empty() => Reading::degraded(None, why.clone()),
            Some(why) => Reading::down(why.clone()),
        };
        collected.checks.push(Check { quiet: true, ..Check::of(format!("telemetry-{word}"), reading) });
        let written = store::write(db, &tick, &collected, begun.elapsed(), self.rules()).await?;
        let kept = upkeep::run(db, at, config.keep, config.query_window, deadline).await;
        match kept {
            Ok(0) => {}
            Ok(rows) => tracing::debug!(rows, "old rows of telemetry are gone"),
            // The tick is written; the next one tries again.
            Err(error) => tracing::warn!(%error, "telemetry's old rows are not deleted"),
        }
        Ok(Done::Written(written))
    }

    /// Writes that Redis is away, since there are no ticks then; once an interval,
    /// by however many workers.
    ///
    /// # Errors
    /// [`TelemetryError`] when it could not be written.
    ///
    /// # Cancel safety
    /// May be dropped at any point.
    pub async fn redis_is_away(&self, now_ms: i64, why: &str) -> Result<Written, TelemetryError> {
        let Inner { db, config, .. } = &*self.inner;
        let interval_ms = i64::try_from(config.interval.as_millis()).unwrap_or(i64::MAX).max(1);
        let tick = Tick { collector: Collector::Redis, due_ms: now_ms - now_ms.rem_euclid(interval_ms) };
        // Connecting was tried for seconds: it is no single failure.
        let readings = vec![Reading::down(format!("Redis is away: {why}")); state::FAILURES as usize];
        let check = Check { readings, ..Check::of(redis::SERVICE, Reading::up(None)) };
        let collected = Collected { checks: vec![check], ..Collected::default() };
        store::write(db, &tick, &collected, Duration::ZERO, self.rules()).await
    }

    fn rules(&self) -> store::Rules {
        let config = &self.inner.config;
        store::Rules { row_every: config.row_every, query_window: config.query_window }
    }

    async fn collect(&self, tick: Tick, now_ms: i64, deadline: Instant) -> Collected {
        let Inner { db, config, prober, redis, .. } = &*self.inner;
        match tick.collector {
            Collector::Health => {
                let certificate_days = config.certificate_days;
                let frame =
                    Frame { interval: config.interval, deadline, now_s: now_ms / 1000, certificate_days };
                health::collect(prober, &config.targets, frame).await
            }
            Collector::Pg => {
                pg::collect(db, &self.inner.postgres, &self.inner.texts, config, tick.due_ms).await
            }
            Collector::Redis => redis::collect(db, redis).await,
            Collector::Queues => {
                let wanted = (config.queues.as_slice(), config.queue_age);
                queues::collect(db, redis, &self.inner.prefix, &self.inner.found_queues, wanted, now_ms).await
            }
            Collector::Pods => match &self.inner.clusters {
                Some(clusters) => pods::collect(db, clusters).await,
                None => Collected::default(),
            },
        }
    }

    /// Says something when it is new, and when it is over.
    fn say(&self, collector: Collector, kind: &'static str, text: Option<&str>) {
        let mut said = self.inner.said.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match text {
            Some(text) => said.insert((collector, kind), text.to_owned()),
            None => said.remove(&(collector, kind)),
        };
        drop(said);
        match (text, kind) {
            (Some(text), _) if before.as_deref() == Some(text) => {}
            (Some(text), "problem") => tracing::warn!(%collector, "cannot collect: {text}"),
            // Its words change with every try.
            (Some(_), "writing") if before.is_some() => {}
            (Some(text), "writing") => tracing::warn!(%collector, "{text}"),
            (None, "writing") if before.is_some() => tracing::info!(%collector, "ticks are written again"),
            (Some(text), _) => tracing::info!(%collector, "{text}"),
            (None, "problem") if before.is_some() => tracing::info!(%collector, "collects again"),
            (None, _) => {}
        }
    }
}
