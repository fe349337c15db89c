//! [`Schedules`]: job schedulers of a queue, and the repeatables of 5.x.

use mpanel_connect::{Conn, local_zone};
use mpanel_protocol::{
    calls::schedule::{self, Page, ScheduleOpError, Template},
    keys::QueueKeys,
    options::JobOptions,
    peer::Peer,
    schedule::{
        Repeat, Repeatable, ScheduleError, Scheduler, SchedulerId, Zone, legacy_removal_keys, plan_legacy,
        plan_upsert,
    },
    script::ScriptError,
};
use serde::Serialize;
use serde_json::{Map, Value};

pub use mpanel_protocol::calls::schedule::Scheduled;

use crate::{
    enqueued::Enqueued,
    error::EnqueueError,
    options::EnqueueOptions,
    producer::{Backend, Producer, permitted},
    rules::parent_of,
};

/// What the jobs of a scheduler carry.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JobTemplate {
    name: Option<String>,
    data: Value,
    options: Map<String, Value>,
}

impl JobTemplate {
    /// Jobs of this name, without payload or options.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..Self::default() }
    }

    /// With this payload.
    ///
    /// # Errors
    /// [`EnqueueError::Payload`] when it is no JSON.
    pub fn data<D: Serialize>(mut self, data: D) -> Result<Self, EnqueueError> {
        self.data = serde_json::to_value(data).map_err(|e| EnqueueError::Payload(e.to_string()))?;
        Ok(self)
    }

    /// With these options. Delay, id and creation time are given by the schedule.
    ///
    /// # Errors
    /// [`EnqueueError::Option`] for what no job of a schedule can have: a parent, a
    /// time of its own, uniqueness, sealed fields.
    pub fn options(self, options: EnqueueOptions) -> Result<Self, EnqueueError> {
        plain(&options)?;
        let mut stored = match serde_json::to_value(&options.inner) {
            Ok(Value::Object(stored)) => stored,
            _ => Map::new(),
        };
        if options.inner.attempts == 0 {
            stored.remove("attempts");
        }
        Ok(self.options_json(stored))
    }

    /// With these options, under the names that are stored.
    #[must_use]
    pub fn options_json(mut self, options: Map<String, Value>) -> Self {
        self.options = options;
        self
    }
}

/// Refuses what is worked out for each job when it is enqueued: jobs of a schedule
/// are made by workers, which cannot.
fn plain(options: &EnqueueOptions) -> Result<(), EnqueueError> {
    let EnqueueOptions { run_at, unique, sealed, parent, .. } = options;
    for (given, option) in [
        (run_at.is_some(), "enqueue_at"),
        (unique.is_some(), "unique"),
        (!sealed.is_empty(), "seal"),
        (parent.is_some(), "parent"),
    ] {
        if given {
            return Err(EnqueueError::option(option, "it does not go with a schedule"));
        }
    }
    Ok(())
}

/// The schedules of one queue. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Schedules {
    producer: Producer,
    keys: QueueKeys,
    zone: Zone,
}

impl Producer {
    /// The schedules of a queue.
    ///
    /// # Errors
    /// [`EnqueueError::Name`].
    pub fn schedules(&self, queue: &str) -> Result<Schedules, EnqueueError> {
        let keys = self.keys(&self.rules.queue(queue)?);
        Ok(Schedules { producer: self.clone(), keys, zone: local_zone() })
    }
}

impl Schedules {
    /// In which zone cron patterns are read that name none; default: the machine's.
    #[must_use]
    pub fn time_zone(mut self, zone: Zone) -> Self {
        self.zone = zone;
        self
    }

    /// Stores a job scheduler, or changes the one of this id, and puts its next job
    /// in the queue. Workers, Node's or ours, make the job after that when they take
    /// this one. `None`: the schedule has no run, by its limit or its pattern.
    ///
    /// ```no_run
    /// # async fn run(producer: mpanel_producer::Producer) -> Result<(), mpanel_producer::EnqueueError> {
    /// use std::time::Duration;
    /// use mpanel_producer::{JobTemplate, Repeat};
    /// use serde_json::json;
    ///
    /// let schedules = producer.schedules("health")?;
    /// let sweep = JobTemplate::new("sweep").data(json!({"all": true}))?;
    /// schedules.upsert("sweep", Repeat::every(Duration::from_secs(300)), sweep).await?;
    ///
    /// let report = Repeat::cron("0 9 * * 1-5").time_zone("Europe/Berlin");
    /// schedules.upsert("report", report, JobTemplate::new("report")).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`EnqueueError`]; the same call can be made again.
    ///
    /// # Cancel safety
    /// A dropped call may have stored the scheduler.
    pub async fn upsert(
        &self,
        id: &str,
        repeat: Repeat,
        template: JobTemplate,
    ) -> Result<Option<Scheduled>, EnqueueError> {
        let id = SchedulerId::new(id)?;
        let JobTemplate { name, data, options } = template;
        self.producer.rules.short("scheduler id", id.as_str())?;
        self.producer.rules.short("job name", name.as_deref().unwrap_or_default())?;
        let checked: JobOptions = serde_json::from_value(Value::Object(options.clone()))
            .map_err(|e| EnqueueError::Option { option: "template.opts", why: e.to_string() })?;
        self.unlike(&checked)?;
        let checked = JobOptions { job_id: None, deduplication: None, ..checked };
        self.producer.rules.validate(&checked)?;
        let data = if data.is_null() { "{}".to_owned() } else { data.to_string() };
        self.check_size(data.len())?;
        let (now, peer) = (self.producer.rules.clock.now(), self.producer.peer);
        let Some(first) = plan_upsert(&id, &repeat, &options, now, self.zone, peer)? else {
            return Ok(None);
        };
        let template =
            Template { name: name.as_deref().unwrap_or(id.as_str()), data: &data, options: &options };
        self.on_redis(async |conn| {
            let upserted =
                schedule::upsert_scheduler(conn, &self.keys, peer, now, &id, template, &first).await;
            match upserted {
                Ok(scheduled) => Ok(Ok(scheduled)),
                Err(ScheduleOpError::Script(error)) => Err(error),
                Err(ScheduleOpError::Refused { refusal, .. }) => Ok(Err(EnqueueError::Rejected(refusal))),
                Err(ScheduleOpError::Schedule(error)) => Ok(Err(error.into())),
            }
        })
        .await?
        .map(Some)
    }

    /// Takes a job scheduler away, with its job that waits for its time; `false`
    /// when there is none. A job in line or running still runs, as the last.
    ///
    /// # Errors
    /// [`EnqueueError`]; the same call can be made again.
    pub async fn remove(&self, id: &str) -> Result<bool, EnqueueError> {
        let id = SchedulerId::new(id)?;
        self.on_redis(async |conn| schedule::remove_scheduler(conn, &self.keys, &id).await).await
    }

    /// One job scheduler; `None` when there is none of this id.
    ///
    /// # Errors
    /// [`EnqueueError`].
    pub async fn get(&self, id: &str) -> Result<Option<Scheduler>, EnqueueError> {
        let id = SchedulerId::new(id)?;
        self.reading(async |conn| schedule::scheduler(conn, &self.keys, &id).await).await
    }

    /// The job schedulers of the queue, a page of them; repeatables are among them.
    ///
    /// # Errors
    /// [`EnqueueError`].
    pub async fn list(&self, page: Page) -> Result<Vec<Scheduler>, EnqueueError> {
        self.reading(async |conn| schedule::schedulers(conn, &self.keys, page).await).await
    }

    /// How many job schedulers and repeatables the queue has.
    ///
    /// # Errors
    /// [`EnqueueError`].
    pub async fn count(&self) -> Result<u64, EnqueueError> {
        self.reading(async |conn| schedule::schedulers_count(conn, &self.keys).await).await
    }

    /// What 5.x's `add` with `repeat` does: a repeatable under a key made of name,
    /// job id, end date, zone and rhythm, so that a changed rhythm adds a second one.
    /// Its first run is at the next slot. `None`: it has no run.
    ///
    /// # Errors
    /// [`EnqueueError`]; always under 6.x, which has no repeatables.
    pub async fn add_repeatable<D: Serialize + ?Sized>(
        &self,
        name: &str,
        data: &D,
        options: EnqueueOptions,
        repeat: &Repeat,
    ) -> Result<Option<Enqueued>, EnqueueError> {
        let peer = self.producer.peer;
        if peer == Peer::V6 {
            return Err(EnqueueError::option("repeat", "BullMQ 6.x has no repeatables; use a job scheduler"));
        }
        plain(&options)?;
        self.producer.rules.short("job name", name)?;
        // The id given is part of the key and no job's.
        self.unlike(&options.inner)?;
        self.producer.rules.validate(&JobOptions { job_id: None, ..options.inner.clone() })?;
        let data = serde_json::to_string(data).map_err(|e| EnqueueError::Payload(e.to_string()))?;
        self.check_size(data.len())?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates; positive")]
        if let Some(limit) = options.inner.size_limit.filter(|n| *n > 0.0).map(|n| n as usize)
            && data.len() > limit
        {
            return Err(EnqueueError::TooLarge { bytes: data.len(), limit });
        }
        parent_of(&options.inner)?;
        let now = self.producer.rules.clock.now();
        let Some(run) = plan_legacy(name, &data, &options.inner, repeat, now, self.zone)? else {
            return Ok(None);
        };
        let added = self
            .on_redis(async |conn| schedule::add_repeatable(conn, &self.keys, peer, now, &run).await)
            .await?;
        Enqueued::from_added(added).map(Some).map_err(EnqueueError::Rejected)
    }

    /// The repeatables of the queue, a page of them; job schedulers are among them.
    ///
    /// # Errors
    /// [`EnqueueError`].
    pub async fn repeatables(&self, page: Page) -> Result<Vec<Repeatable>, EnqueueError> {
        self.reading(async |conn| schedule::repeatables(conn, &self.keys, page).await).await
    }

    /// Takes a repeatable away that was made with exactly these options; `false`
    /// when there is none.
    ///
    /// # Errors
    /// [`EnqueueError`].
    pub async fn remove_repeatable(
        &self,
        name: &str,
        repeat: &Repeat,
        job_id: Option<&str>,
    ) -> Result<bool, EnqueueError> {
        let (key, old_key, old_ids) = legacy_removal_keys(name, repeat, job_id)?;
        let keys = &self.keys;
        self.on_redis(async |conn| schedule::remove_repeatable(conn, keys, &key, &old_key, &old_ids).await)
            .await
    }

    /// Takes a repeatable away by the key under which it is listed.
    ///
    /// # Errors
    /// [`EnqueueError`].
    pub async fn remove_repeatable_by_key(&self, key: &str) -> Result<bool, EnqueueError> {
        self.on_redis(async |conn| schedule::remove_repeatable_by_key(conn, &self.keys, key).await).await
    }

    /// Each run has an id of its own: deduplication can only lose runs.
    fn unlike(&self, options: &JobOptions) -> Result<(), EnqueueError> {
        if options.deduplication.is_some() && !self.producer.rules.as_node {
            return Err(ScheduleError::Deduplicated.into());
        }
        Ok(())
    }

    fn check_size(&self, bytes: usize) -> Result<(), EnqueueError> {
        let limit = self.producer.rules.size_limit;
        if bytes > limit { Err(EnqueueError::TooLarge { bytes, limit }) } else { Ok(()) }
    }

    async fn on_redis<T>(
        &self,
        call: impl AsyncFnOnce(&mut Conn) -> Result<T, ScriptError>,
    ) -> Result<T, EnqueueError> {
        let Backend::Redis(redis) = &self.producer.backend else {
            return Err(EnqueueError::Refused("a recording producer keeps no schedules".to_owned()));
        };
        let mut shared = redis.shared_for(self.keys.meta()).await?;
        if let Err(error) = permitted(&self.producer.permitted, &mut shared.conn, &self.keys).await {
            if let Some(source) = error.redis() {
                redis.report(&shared, source).await;
            }
            return Err(EnqueueError::before_sending(&error));
        }
        match call(&mut shared.conn).await {
            Ok(value) => Ok(value),
            Err(error) => {
                if let ScriptError::Redis { source, .. } = &error {
                    redis.report(&shared, source).await;
                }
                Err(EnqueueError::from_script(&error))
            }
        }
    }

    async fn reading<T>(
        &self,
        call: impl AsyncFnOnce(&mut Conn) -> redis::RedisResult<T>,
    ) -> Result<T, EnqueueError> {
        self.on_redis(async |conn| {
            call(conn).await.map_err(|source| ScriptError::Redis { script: "read schedulers", source })
        })
        .await
        .map_err(|error| match error {
            // Nothing was to be stored.
            EnqueueError::Unknown(why) => EnqueueError::Refused(why),
            other => other,
        })
    }
}
