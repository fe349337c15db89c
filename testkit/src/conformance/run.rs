//! One scenario through our crates: producer for adds, protocol calls for
//! fetches and finishes, the engine's decision after a failure, the admin handle
//! for the rest. Clock and random number are the scenario's.

mod schedules;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use mpanel_connect::Redis;
use mpanel_engine::{
    admin::{AdminError, QueueAdmin},
    handler::FinalCause,
    outcome::{Again, AttemptFailure, OutcomePolicy, after_failure, after_success, final_cause},
};
use mpanel_producer::{BulkJob, EnqueueError, EnqueueOptions, FlowJob, FlowNode, Producer, QueueProducer};
use mpanel_protocol::{
    backoff::BackoffKind,
    calls::{
        fetch::{FetchSpec, Fetched, RateLimit, fetch_jobs},
        finish::{Finish, FinishNote, Transition, finish_jobs},
        locks::{Sweep, extend_locks, rescue_stalled},
        manage::{self, FinalState, Removal, Reprocess, Update},
        sweep::{Cleanable, Obliterated},
    },
    ids::{JobId, LockToken, Prefix, QueueName},
    job::FetchedJob,
    keys::QueueKeys,
    options::JobOptions,
    outcome::{JobOpError, Refusal},
    peer::Peer,
    script::ScriptError,
    state::JobState,
    time::{Clock, TimestampMs},
};
use serde_json::{Map, Value, json};

use super::{
    PREFIX,
    dump::{self, mask},
    js, rules,
    scenario::{EPOCH_MS, Scenario},
};
use crate::TestkitError;

/// Locks of a scenario live as long as Node's do.
const LOCK: Duration = Duration::from_secs(30);
const STALLED_INTERVAL: Duration = Duration::from_secs(30);
const RANDOM: f64 = 0.5;
/// What stands for a random id in a dump.
const RANDOM_ID: &str = "<uuid>";

/// What our crates did with a scenario.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What each step gave.
    pub results: Vec<Value>,
    /// What was in Redis afterwards.
    pub keys: Map<String, Value>,
    /// The keys of jobs with random ids, which share one name among `keys`.
    pub namesakes: Vec<(String, Value)>,
    /// From which steps on there may be nothing to compare, and why; see [`super::rules`].
    pub partings: Vec<(usize, &'static str)>,
}

#[derive(Debug)]
struct VirtualClock(AtomicI64);

impl Clock for VirtualClock {
    fn now(&self) -> TimestampMs {
        TimestampMs(self.0.load(Ordering::Relaxed))
    }
}

/// Why a step failed, with BullMQ's code where it has one.
struct StepError {
    text: String,
    code: Option<i64>,
}

impl StepError {
    fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), code: None }
    }
}

impl From<Refusal> for StepError {
    fn from(refusal: Refusal) -> Self {
        Self { text: refusal.to_string(), code: Some(refusal.code()) }
    }
}

impl From<JobOpError> for StepError {
    fn from(error: JobOpError) -> Self {
        match error {
            JobOpError::Refused { refusal, .. } => refusal.into(),
            JobOpError::Script(e) => e.into(),
        }
    }
}

impl From<AdminError> for StepError {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::Job(e) => e.into(),
            other => Self::new(other.to_string()),
        }
    }
}

impl From<EnqueueError> for StepError {
    fn from(error: EnqueueError) -> Self {
        match error {
            EnqueueError::Rejected(refusal) => refusal.into(),
            other => Self::new(other.to_string()),
        }
    }
}

macro_rules! plain_errors {
    ($($kind:ty),*) => {$(impl From<$kind> for StepError {
        fn from(error: $kind) -> Self {
            Self::new(error.to_string())
        }
    })*};
}
plain_errors!(ScriptError, redis::RedisError, serde_json::Error, TestkitError, mpanel_connect::ConnectError);

type StepResult = Result<Value, StepError>;

struct Runner<'a> {
    /// Jobs may go by retention, or in favour of others.
    may_remove: bool,
    redis: &'a Redis,
    peer: Peer,
    clock: Arc<VirtualClock>,
    producer: Producer,
    queues: HashMap<String, QueueProducer>,
    held: HashMap<(String, String), FetchedJob>,
    scenario: &'a Scenario,
    policy: OutcomePolicy,
}

/// Runs a scenario on an emptied prefix and dumps what it left.
///
/// # Errors
/// When Redis fails; failures of steps are results.
pub async fn run(redis: &Redis, scenario: &Scenario, peer: Peer) -> Result<Outcome, TestkitError> {
    dump::wipe(redis).await?;
    let clock = Arc::new(VirtualClock(AtomicI64::new(scenario.clock.unwrap_or(EPOCH_MS))));
    let failed = |e: String| TestkitError::failed("open the producer", e);
    let prefix = Prefix::new(PREFIX).map_err(|e| failed(e.to_string()))?;
    let producer = Producer::builder(redis.clone()).prefix(prefix).peer(peer).clock(clock.clone()).as_node();
    let skip = scenario.queue_options.get("skipMetasUpdate").is_some_and(|skip| skip == true);
    let producer = if skip { producer.skip_metas_update() } else { producer };
    let producer = producer.connect().await.map_err(|e| failed(e.to_string()))?;
    let keep = |name: &str| {
        let options = scenario.worker_options.get(name).map(|v| json!({ "removeOnComplete": v }))?;
        serde_json::from_value::<JobOptions>(options).ok()?.remove_on_complete
    };
    let policy = OutcomePolicy {
        remove_on_complete: keep("removeOnComplete"),
        remove_on_fail: keep("removeOnFail"),
        backoff_strategy: None,
        starts_allowed: scenario
            .worker_options
            .get("maxStartedAttempts")
            .and_then(Value::as_u64)
            .and_then(|starts| u32::try_from(starts).ok().filter(|starts| *starts > 0)),
        peer,
    };
    let text = json!([scenario.steps, scenario.queue_options, scenario.worker_options]).to_string();
    let mut runner = Runner {
        may_remove: text.contains("removeOn") || text.contains("\"replace\""),
        redis,
        peer,
        clock,
        producer,
        queues: HashMap::new(),
        held: HashMap::new(),
        scenario,
        policy,
    };
    let mut results = Vec::new();
    let mut partings = Vec::new();
    let has_colon_id = scenario.steps.iter().any(|step| names_colon_id(&Value::Object(step.clone())));
    for (at, step) in scenario.steps.iter().enumerate() {
        let op = step.get("op").and_then(Value::as_str).unwrap_or_default();
        if op == "drain" && runner.drains_around_iterations(step).await? {
            partings.push((at, rules::DRAINED_ITERATION));
        }
        let removes = match op {
            "remove" | "drain" | "clean" | "obliterate" => true,
            "complete" | "fail" | "process" | "add" | "addBulk" => runner.may_remove,
            _ => false,
        };
        if removes && has_colon_id && runner.has_colon_family().await? {
            partings.push((at, rules::COLON_FAMILY));
        }
        let result = runner.step(op, step).await;
        if let Err(StepError { text, .. }) = &result {
            partings.extend(rules::refused_on_purpose(op, text).map(|why| (at, why)));
        }
        results.push(match result {
            Ok(result) => json!({ "op": op, "result": result }),
            Err(StepError { text, code: Some(code) }) => {
                json!({ "op": op, "error": mask(&text), "code": code })
            }
            Err(StepError { text, code: None }) => json!({ "op": op, "error": mask(&text) }),
        });
    }
    let mut entries = dump::entries(redis).await?;
    let keys = entries.iter().cloned().collect();
    entries.retain(|(key, _)| key.contains(RANDOM_ID));
    Ok(Outcome { results, keys, namesakes: entries, partings })
}

/// Whether a job's id holds a colon.
fn names_colon_id(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(name, value)| {
            (name == "jobId" && value.as_str().is_some_and(|id| id.contains(':'))) || names_colon_id(value)
        }),
        Value::Array(items) => items.iter().any(names_colon_id),
        _ => false,
    }
}

fn text<'s>(step: &'s Map<String, Value>, name: &str) -> Option<&'s str> {
    step.get(name).and_then(Value::as_str)
}

fn number(step: &Map<String, Value>, name: &str) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "scenario numbers are small")]
    fraction(step, name).map(|n| n as i64)
}

fn fraction(step: &Map<String, Value>, name: &str) -> Option<f64> {
    step.get(name).filter(|value| !value.is_null()).and_then(js::number)
}

/// A number that a script of Node's needs: it fails without one.
fn needed(step: &Map<String, Value>, name: &str) -> Result<f64, StepError> {
    fraction(step, name).ok_or_else(|| StepError::new(format!("`{name}` is no number")))
}

/// A number that a command of Redis takes as an integer.
fn whole(step: &Map<String, Value>, name: &str) -> Result<(), StepError> {
    match step.get(name) {
        None => Ok(()),
        Some(_) if fraction(step, name).is_some_and(|n| n.fract() == 0.0) => Ok(()),
        Some(other) => Err(StepError::new(format!("`{name}` is no integer: {other}"))),
    }
}

/// The name of a job: Redis takes text and numbers.
fn job_name(name: Option<&Value>) -> Result<String, StepError> {
    match name {
        Some(name @ (Value::String(_) | Value::Number(_))) => Ok(js::argument(name)),
        _ => Err(StepError::new("a name must be text")),
    }
}

fn span(step: &Map<String, Value>, name: &str, default_ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(number(step, name).unwrap_or(default_ms)).unwrap_or(0))
}

fn view(job: &FetchedJob) -> Value {
    let data: Value =
        if job.data.is_empty() { json!({}) } else { js::parse(&job.data).unwrap_or(Value::Null) };
    let mut view = json!({ "id": mask(job.id.as_str()), "name": job.name, "data": data,
        "attemptsMade": job.attempts_made, "attemptsStarted": job.attempts_started });
    if let Some(reason) = &job.deferred_failure {
        view["deferredFailure"] = json!(mask(reason));
    }
    view
}

impl Runner<'_> {
    async fn conn(&self) -> Result<mpanel_connect::Conn, StepError> {
        Ok(self.redis.shared().await?.conn)
    }

    fn keys(&self, queue: &str) -> Result<QueueKeys, StepError> {
        let name = QueueName::new(queue).map_err(|e| StepError::new(e.to_string()))?;
        let prefix = Prefix::new(PREFIX).map_err(|e| StepError::new(e.to_string()))?;
        Ok(QueueKeys::new(&prefix, &name))
    }

    /// What Node's `new Queue` is: the handle, and the queue's `meta`.
    async fn open(&mut self, queue: &str) -> Result<(QueueProducer, QueueAdmin), StepError> {
        if !self.queues.contains_key(queue) {
            let handle = self.producer.queue(queue)?;
            let options = &self.scenario.queue_options;
            if !options.get("skipMetasUpdate").and_then(Value::as_bool).unwrap_or(false) {
                let most =
                    options.get("streams").map(|s| &s["events"]["maxLen"]).filter(|most| !most.is_null());
                if let Some(most) = most.map(js::argument) {
                    let key = self.keys(queue)?.meta().to_owned();
                    redis::cmd("HSET")
                        .arg(key)
                        .arg("opts.maxLenEvents")
                        .arg(most)
                        .query_async::<()>(&mut self.conn().await?)
                        .await?;
                }
                handle.introduce().await?;
            }
            self.queues.insert(queue.to_owned(), handle);
        }
        let name = QueueName::new(queue).map_err(|e| StepError::new(e.to_string()))?;
        let prefix = Prefix::new(PREFIX).map_err(|e| StepError::new(e.to_string()))?;
        let admin =
            QueueAdmin::new(self.redis.clone(), &prefix, &name, self.peer).with_clock(self.clock.clone());
        Ok((self.queues[queue].clone(), admin))
    }

    /// Whether a list that is drained holds the current iteration of a scheduler among
    /// other jobs.
    async fn drains_around_iterations(&self, step: &Map<String, Value>) -> Result<bool, TestkitError> {
        let Ok(keys) = self.keys(text(step, "queue").unwrap_or("q")) else { return Ok(false) };
        let failed = |e: String| TestkitError::failed("look at what is drained", e);
        let mut conn = self.redis.shared().await.map_err(|e| failed(e.to_string()))?.conn;
        let (wait, paused, repeat): (Vec<String>, Vec<String>, Vec<(String, String)>) = redis::pipe()
            .lrange(keys.wait(), 0, -1)
            .lrange(keys.paused(), 0, -1)
            .zrange_withscores(keys.repeat(), 0, -1)
            .query_async(&mut conn)
            .await
            .map_err(|e| failed(e.to_string()))?;
        let current: Vec<String> = repeat.iter().map(|(key, at)| format!("repeat:{key}:{at}")).collect();
        Ok([wait, paused].iter().any(|list| {
            let iterations = list.iter().filter(|id| current.contains(id)).count();
            iterations > 0 && iterations < list.len()
        }))
    }

    /// Whether there is a parent or a child whose id holds a colon.
    async fn has_colon_family(&self) -> Result<bool, TestkitError> {
        let keys = dump::dump(self.redis).await?;
        // `conf:q:a:b:c`, and what is longer.
        let holds_colon = |key: &str| key.matches(':').count() >= 4;
        Ok(keys.iter().any(|(key, entry)| {
            let Some((job, family)) = key.rsplit_once(':') else { return false };
            let members: Vec<&str> = match (family, &entry["value"]) {
                ("processed" | "failed", Value::Object(children)) => {
                    children.keys().map(String::as_str).collect()
                }
                ("dependencies", Value::Array(children)) => {
                    children.iter().filter_map(Value::as_str).collect()
                }
                ("unsuccessful", Value::Array(children)) => {
                    children.iter().filter_map(|c| c[0].as_str()).collect()
                }
                _ => return false,
            };
            holds_colon(job) || members.into_iter().any(holds_colon)
        }))
    }

    fn with_defaults(&self, given: Option<&Value>) -> Map<String, Value> {
        let mut merged = self
            .scenario
            .queue_options
            .get("defaultJobOptions")
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default();
        merged.extend(given.and_then(Value::as_object).cloned().unwrap_or_default());
        merged
    }

    fn options(&self, given: Option<&Value>) -> Result<EnqueueOptions, StepError> {
        let mut options = self.with_defaults(given);
        if given.is_none_or(|own| own.get("jobId").is_none()) {
            options.shift_remove("jobId");
        }
        if options.get("priority").is_some_and(|priority| priority.is_string() && priority != "") {
            return Err(StepError::new("a priority must be a number"));
        }
        if self.peer == Peer::V6 && options.contains_key("debounce") {
            return Err(StepError::new("6.x has no option `debounce`; it is `deduplication`"));
        }
        js::job_options(options).map(EnqueueOptions::from).map_err(StepError::new)
    }

    fn flow(&self, node: &Value) -> Result<FlowJob, StepError> {
        let text = |name: &str| node[name].as_str().unwrap_or_default();
        // Defaults of a Queue do not reach a FlowProducer.
        let options =
            js::job_options(node["opts"].as_object().cloned().unwrap_or_default()).map_err(StepError::new)?;
        let mut flow = FlowJob::new(job_name(node.get("name"))?, text("queueName")).options(options.into());
        if let Some(prefix) = node.get("prefix").and_then(Value::as_str).filter(|p| !p.is_empty()) {
            flow = flow.prefix(Prefix::new(prefix).map_err(|e| StepError::new(e.to_string()))?);
        }
        if let Some(data) = node.get("data") {
            flow = flow.data(js::normalised(data))?;
        }
        for child in node["children"].as_array().into_iter().flatten() {
            flow = flow.child(self.flow(child)?);
        }
        Ok(flow)
    }

    async fn fetch(&mut self, queue: &str, token: &str) -> Result<Fetched, StepError> {
        let keys = self.keys(queue)?;
        self.promote_ahead(&keys).await?;
        let token = LockToken::new(token);
        let fetched =
            fetch_jobs(&mut self.conn().await?, &keys, self.peer, self.clock.now(), &self.spec(&token))
                .await?;
        self.hold(queue, &fetched);
        self.continue_schedules(queue, &fetched).await?;
        Ok(fetched)
    }

    /// Node's scripts promote up to 1000 due jobs a call, ours fewer: the rest goes in
    /// calls that take nothing.
    async fn promote_ahead(&self, keys: &QueueKeys) -> Result<(), StepError> {
        const OURS: u64 = 128;
        let mut conn = self.conn().await?;
        let now = self.clock.now();
        let marker: Option<String> =
            redis::cmd("ZSCORE").arg(keys.marker()).arg("1").query_async(&mut conn).await?;
        let mut rearmed = false;
        for _ in 1..1000_u64.div_ceil(OURS) {
            let due: u64 = redis::cmd("ZCOUNT")
                .arg(keys.delayed())
                .arg(0)
                .arg((now.0 + 1) * 4096 - 1)
                .query_async(&mut conn)
                .await?;
            if due <= OURS {
                break;
            }
            let token = LockToken::new("none");
            let spec = FetchSpec { slots: 0, limiter: None, worker_name: None, ..self.spec(&token) };
            fetch_jobs(&mut conn, keys, self.peer, now, &spec).await?;
            rearmed = true;
        }
        if rearmed {
            // The call that the marker asked for was this one.
            let back = match &marker {
                Some(score) => redis::cmd("ZADD").arg(keys.marker()).arg(score).arg("1").to_owned(),
                None => redis::cmd("ZREM").arg(keys.marker()).arg("1").to_owned(),
            };
            back.query_async::<()>(&mut conn).await?;
        }
        Ok(())
    }

    /// Why a worker of 5.x fails a job without running it.
    fn unrunnable(&self, job: &FetchedJob) -> Option<String> {
        let too_often = self.policy.starts_allowed.is_some_and(|most| job.attempts_started > most);
        job.deferred_failure
            .clone()
            .or_else(|| too_often.then(|| "job started more than allowable limit".to_owned()))
    }

    /// What 5.x's worker does before it hands a job out: one with a deferred failure,
    /// or started too often, is failed at once, and the next one taken. In 6.x that is
    /// the caller's part.
    async fn fetch_sound(&mut self, queue: &str, token: &str) -> Result<Fetched, StepError> {
        loop {
            let fetched = self.fetch(queue, token).await?;
            let job = fetched.jobs.first().filter(|_| self.peer == Peer::V5);
            let Some((job, reason)) = job.and_then(|j| Some((j, self.unrunnable(j)?))) else {
                return Ok(fetched);
            };
            self.held.remove(&(queue.to_owned(), job.id.to_string()));
            let failure = AttemptFailure::unrecoverable(reason, FinalCause::Deferred);
            let transition = self.failure(job, &failure)?;
            self.finish(queue, job.id.clone(), token, transition, false).await?;
        }
    }

    fn spec<'t>(&'t self, token: &'t LockToken) -> FetchSpec<'t> {
        let worker = &self.scenario.worker_options;
        let limiter = worker.get("limiter").and_then(|l| {
            Some(RateLimit {
                max: u32::try_from(l["max"].as_u64()?).ok()?,
                window: Duration::from_millis(l["duration"].as_u64()?),
            })
        });
        FetchSpec {
            slots: 1,
            token,
            lock: LOCK,
            limiter,
            worker_name: worker.get("name").and_then(Value::as_str),
        }
    }

    fn hold(&mut self, queue: &str, fetched: &Fetched) {
        for job in &fetched.jobs {
            self.held.insert((queue.to_owned(), job.id.to_string()), job.clone());
        }
    }

    /// The job a step means: held from a fetch, else read from Redis.
    async fn job(&mut self, queue: &str, step: &Map<String, Value>) -> Result<FetchedJob, StepError> {
        let id = text(step, "id").ok_or_else(|| StepError::new("the step names no id"))?;
        if let Some(job) = self.held.get(&(queue.to_owned(), id.to_owned())) {
            return Ok(job.clone());
        }
        let (_, admin) = self.admin_only(queue)?;
        let detail = admin.job(&JobId::stored(id)).await?;
        detail.map(|d| d.job).ok_or_else(|| StepError::new(format!("no job {id}")))
    }

    fn admin_only(&self, queue: &str) -> Result<(QueueName, QueueAdmin), StepError> {
        let name = QueueName::new(queue).map_err(|e| StepError::new(e.to_string()))?;
        let prefix = Prefix::new(PREFIX).map_err(|e| StepError::new(e.to_string()))?;
        let admin =
            QueueAdmin::new(self.redis.clone(), &prefix, &name, self.peer).with_clock(self.clock.clone());
        Ok((name, admin))
    }

    async fn finish(
        &mut self,
        queue: &str,
        id: JobId,
        token: &str,
        transition: Transition,
        fetch_next: bool,
    ) -> Result<(FinishNote, Option<Fetched>), StepError> {
        let keys = self.keys(queue)?;
        let token = LockToken::new(token);
        let points = self.scenario.worker_options.get("metrics").and_then(|m| m["maxDataPoints"].as_u64());
        let finish = Finish { id, token: token.clone(), transition };
        let spec = fetch_next.then(|| self.spec(&token));
        let finished = finish_jobs(
            &mut self.conn().await?,
            &keys,
            self.peer,
            self.clock.now(),
            &[finish],
            spec.as_ref(),
            points.and_then(|p| u32::try_from(p).ok()),
        )
        .await?;
        let note = finished.results.into_iter().next().ok_or_else(|| StepError::new("no result"))??;
        if let Some(fetched) = &finished.fetched {
            self.hold(queue, fetched);
            self.continue_schedules(queue, fetched).await?;
        }
        Ok((note, finished.fetched))
    }

    fn failure_of(step: &Map<String, Value>) -> AttemptFailure {
        let given = step.get("error").filter(|error| !error.is_null());
        let reason = given.map_or_else(|| "boom".to_owned(), js::argument);
        let unrecoverable = step.get("unrecoverable").and_then(Value::as_bool).unwrap_or(false);
        AttemptFailure {
            stack: format!("Error: {reason}\n    at scenario"),
            reason,
            again: if unrecoverable { Again::Never(FinalCause::NeverRetry) } else { Again::Backoff },
        }
    }

    fn success(&self, job: &FetchedJob, step: &Map<String, Value>) -> Result<Transition, StepError> {
        let value = step.get("value").map_or_else(|| "null".to_owned(), js::stringify);
        Ok(after_success(&job.options()?, value, &self.policy))
    }

    fn failure(&self, job: &FetchedJob, failure: &AttemptFailure) -> Result<Transition, StepError> {
        let options = job.options()?;
        let kind = options.backoff.as_ref().map(|b| &b.kind);
        if let Some(BackoffKind::Custom(name)) = kind
            && final_cause(job, &options, failure, &self.policy).is_none()
        {
            // Node's method throws here, and its worker leaves the job to the stalled check.
            return Err(StepError::new(format!("Unknown backoff strategy {name}.")));
        }
        Ok(after_failure(job, &options, failure, &self.policy, RANDOM))
    }

    async fn step(&mut self, op: &str, step: &Map<String, Value>) -> StepResult {
        let queue = text(step, "queue").unwrap_or("q");
        let token = text(step, "token").unwrap_or("t1");
        let id = || text(step, "id").map(JobId::stored).ok_or_else(|| StepError::new("the step names no id"));
        let flag = |name: &str| step.get(name).and_then(Value::as_bool).unwrap_or(false);
        let empty = json!({});
        match op {
            "clock" => {
                let now = match number(step, "set") {
                    Some(at) => at,
                    None => self.clock.now().0 + number(step, "advance").unwrap_or(0),
                };
                self.clock.0.store(now, Ordering::Relaxed);
                Ok(json!(now))
            }
            "add" => {
                let (handle, _) = self.open(queue).await?;
                // The oracle's `data ?? {}`.
                let data = step.get("data").filter(|d| !d.is_null()).unwrap_or(&empty);
                let merged = self.with_defaults(step.get("opts"));
                if self.peer == Peer::V5 && merged.get("repeat").is_some_and(|r| !r.is_null()) {
                    let name = job_name(step.get("name"))?;
                    return self.add_repeatable(queue, &name, data, merged).await;
                }
                let options = self.options(step.get("opts"))?;
                let enqueued = handle.enqueue(&job_name(step.get("name"))?, &js::raw(data)?, options).await?;
                Ok(json!(mask(enqueued.id().as_str())))
            }
            "addBulk" => {
                let (handle, _) = self.open(queue).await?;
                let mut jobs = Vec::new();
                for job in step.get("jobs").and_then(Value::as_array).unwrap_or(&Vec::new()) {
                    let name = job_name(job.get("name"))?;
                    let data = js::raw(job.get("data").unwrap_or(&empty))?;
                    jobs.push(BulkJob::new(name, data).options(self.options(job.get("opts"))?));
                }
                let enqueued = handle.enqueue_bulk(jobs).await?;
                Ok(enqueued.iter().map(|e| json!(mask(e.id().as_str()))).collect())
            }
            "fetch" => Ok(fetched_view(&self.fetch_sound(queue, token).await?)),
            "complete" | "fail" => {
                let job = self.job(queue, step).await?;
                self.held.remove(&(queue.to_owned(), job.id.to_string()));
                let transition = if op == "complete" {
                    self.success(&job, step)?
                } else {
                    self.failure(&job, &Self::failure_of(step))?
                };
                // Node's immediate retry never fetches.
                let fetch_next = flag("fetchNext") && !matches!(transition, Transition::RetryNow { .. });
                let (_, next) = self.finish(queue, job.id, token, transition, fetch_next).await?;
                Ok(json!({ "next": next.and_then(|f| f.jobs.first().map(view)) }))
            }
            "process" => {
                let fetched = self.fetch_sound(queue, token).await?;
                let Some(job) = fetched.jobs.first() else { return Ok(fetched_view(&fetched)) };
                // The oracle asks for the job under the name that it shows.
                if mask(job.id.as_str()) != job.id.as_str() {
                    return Err(StepError::new("a job with a random id cannot be meant"));
                }
                self.held.remove(&(queue.to_owned(), job.id.to_string()));
                let transition = if let Some(reason) = &job.deferred_failure {
                    self.failure(job, &AttemptFailure::unrecoverable(reason.clone(), FinalCause::Deferred))?
                } else if step.contains_key("error") {
                    self.failure(job, &Self::failure_of(step))?
                } else {
                    self.success(job, step)?
                };
                self.finish(queue, job.id.clone(), token, transition, false).await?;
                Ok(view(job))
            }
            "moveToDelayed" => {
                #[expect(clippy::cast_precision_loss, reason = "epoch ms")]
                let now = self.clock.now().0 as f64;
                let delay_ms = (fraction(step, "at").unwrap_or(0.0) - now).max(0.0);
                self.finish(queue, id()?, token, Transition::Snooze { delay_ms }, false).await?;
                Ok(json!("ok"))
            }
            "moveLimited" => {
                self.finish(queue, id()?, token, Transition::Release, false).await?;
                self.held.remove(&(queue.to_owned(), id()?.to_string()));
                Ok(json!("ok"))
            }
            "moveToWaitingChildren" => {
                let child_key = step
                    .get("child")
                    .and_then(|c| Some(format!("{}:{}", c["queue"].as_str()?, c["id"].as_str()?)));
                let (note, _) =
                    self.finish(queue, id()?, token, Transition::AwaitChildren { child_key }, false).await?;
                Ok(json!(note == FinishNote::Done))
            }
            "retry" => {
                let (_, admin) = self.open(queue).await?;
                let options = step.get("options").cloned().unwrap_or_default();
                let how = Reprocess {
                    lifo: self.job(queue, step).await?.options()?.is_lifo(),
                    reset_attempts_made: options["resetAttemptsMade"].as_bool().unwrap_or(false),
                    reset_attempts_started: options["resetAttemptsStarted"].as_bool().unwrap_or(false),
                };
                admin.retry(&id()?, final_state(text(step, "state")), how).await?;
                Ok(json!("ok"))
            }
            "retryJobs" => {
                self.open(queue).await?;
                whole(step, "count")?;
                if step.get("timestamp").is_some_and(Value::is_null) {
                    return Err(StepError::new("`timestamp` is no number"));
                }
                let newest = number(step, "timestamp").unwrap_or_else(|| self.clock.now().0);
                let from = final_state(text(step, "state"));
                let keys = self.keys(queue)?;
                manage::reprocess_all(&mut self.conn().await?, &keys, self.peer, from, TimestampMs(newest))
                    .await?;
                Ok(json!("ok"))
            }
            "promote" => {
                self.open(queue).await?;
                manage::promote_job(&mut self.conn().await?, &self.keys(queue)?, self.peer, &id()?).await?;
                Ok(json!("ok"))
            }
            "promoteJobs" => {
                self.open(queue).await?;
                whole(step, "count")?;
                manage::promote_all(&mut self.conn().await?, &self.keys(queue)?, self.peer).await?;
                Ok(json!("ok"))
            }
            "changeDelay" => {
                self.open(queue).await?;
                let delay = needed(step, "delay")?;
                manage::change_delay(
                    &mut self.conn().await?,
                    &self.keys(queue)?,
                    self.clock.now(),
                    &id()?,
                    delay,
                )
                .await?;
                Ok(json!("ok"))
            }
            "changePriority" => {
                self.open(queue).await?;
                let priority = if step.contains_key("priority") { needed(step, "priority")? } else { 0.0 };
                let keys = self.keys(queue)?;
                manage::change_priority(
                    &mut self.conn().await?,
                    &keys,
                    self.peer,
                    &id()?,
                    priority,
                    flag("lifo"),
                )
                .await?;
                Ok(json!("ok"))
            }
            "updateData" | "updateProgress" | "log" => {
                self.open(queue).await?;
                let keep = self.job(queue, step).await?.options()?.keep_logs;
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
                let keep = keep.map(|k| k as u32);
                // What is undefined is stored as empty text.
                let json_text = |name: &str| step.get(name).map(js::stringify).unwrap_or_default();
                let (data, progress) = (json_text("data"), json_text("progress"));
                let row = step.get("row").map(js::argument).unwrap_or_default();
                let update = match op {
                    "updateData" => Update::Data(&data),
                    "updateProgress" => Update::Progress(&progress),
                    _ => Update::Log { line: &row, keep },
                };
                let lines =
                    manage::update_job(&mut self.conn().await?, &self.keys(queue)?, &id()?, update).await?;
                Ok(if op == "log" { json!(lines) } else { json!("ok") })
            }
            "remove" => {
                let (_, admin) = self.open(queue).await?;
                let alone = step.get("options").is_some_and(|o| o["removeChildren"] == false);
                let removal =
                    if alone { admin.remove_alone(&id()?).await? } else { admin.remove(&id()?).await? };
                Ok(json!(i64::from(removal == Removal::Removed)))
            }
            "flow" => {
                let flow = self.flow(step.get("flow").unwrap_or(&Value::Null))?;
                Ok(flow_ids(&self.producer.enqueue_flow(flow).await?))
            }
            "removeChildDependency" => {
                let (_, admin) = self.open(queue).await?;
                Ok(json!(admin.forget_parent(&id()?).await?))
            }
            "pause" => {
                let (_, admin) = self.open(queue).await?;
                admin.pause().await?;
                Ok(json!("ok"))
            }
            "resume" => {
                let (_, admin) = self.open(queue).await?;
                admin.resume().await?;
                Ok(json!("ok"))
            }
            "drain" => {
                let (_, admin) = self.open(queue).await?;
                admin.drain(flag("delayed")).await?;
                Ok(json!("ok"))
            }
            "clean" => {
                let (_, admin) = self.open(queue).await?;
                let limit = number(step, "limit").unwrap_or(0);
                whole(step, "limit").or_else(|e| if step["limit"].is_null() { Ok(()) } else { Err(e) })?;
                if !step.contains_key("grace")
                    && matches!(text(step, "type"), None | Some("completed" | "failed"))
                {
                    return Err(StepError::new("`grace` is no number"));
                }
                if limit < 0 {
                    return Ok(json!([]));
                }
                let limit = u32::try_from(limit).unwrap_or(0);
                let Some(state) = Cleanable::from_word(text(step, "type").unwrap_or("completed")) else {
                    // Node looks at a set of that name, finds nothing, and says so.
                    let events = self.keys(queue)?.events().to_owned();
                    redis::cmd("XADD")
                        .arg(events)
                        .arg(&["*", "event", "cleaned", "count", "0"])
                        .query_async::<()>(&mut self.conn().await?)
                        .await?;
                    return Ok(json!([]));
                };
                let mut ids: Vec<String> = admin
                    .clean(state, span(step, "grace", 0), limit)
                    .await?
                    .iter()
                    .map(|id| mask(id.as_str()))
                    .collect();
                ids.sort();
                Ok(json!(ids))
            }
            "obliterate" => {
                let (_, admin) = self.open(queue).await?;
                match admin.obliterate(flag("force")).await? {
                    Obliterated::Gone => Ok(json!("ok")),
                    other => Err(StepError::new(format!("{other:?}"))),
                }
            }
            "upsertScheduler" => self.upsert_scheduler(queue, step).await,
            "removeScheduler" => self.remove_scheduler(queue, id()?.as_str()).await,
            "rateLimit" => {
                let (_, admin) = self.open(queue).await?;
                whole(step, "ms").or_else(|e| if step["ms"].is_null() { Ok(()) } else { Err(e) })?;
                if fraction(step, "ms").is_some_and(|ms| ms <= 0.0) {
                    return Err(StepError::new("invalid expire time"));
                }
                admin.rate_limit(span(step, "ms", 0)).await?;
                Ok(json!("ok"))
            }
            "removeRateLimitKey" => {
                let (_, admin) = self.open(queue).await?;
                Ok(json!(i64::from(admin.end_rate_limit().await?)))
            }
            "globalConcurrency" => {
                let (_, admin) = self.open(queue).await?;
                match small(step, "n") {
                    Some(most) => admin.set_global_concurrency(most).await?,
                    None => self.note(queue, step, &[("concurrency", "n")]).await?,
                }
                Ok(json!("ok"))
            }
            "globalRateLimit" => {
                let (_, admin) = self.open(queue).await?;
                match (small(step, "max"), small(step, "duration")) {
                    (Some(most), Some(_)) => {
                        admin.set_global_rate_limit(most, span(step, "duration", 0)).await?;
                    }
                    _ => self.note(queue, step, &[("max", "max"), ("duration", "duration")]).await?,
                }
                Ok(json!("ok"))
            }
            "stalledSweep" => {
                let keys = self.keys(queue)?;
                let mut conn = self.conn().await?;
                redis::cmd("DEL").arg(keys.stalled_check()).query_async::<()>(&mut conn).await?;
                let worker = &self.scenario.worker_options;
                let allowed = worker.get("maxStalledCount").and_then(Value::as_u64).unwrap_or(1);
                let allowed = u32::try_from(allowed).unwrap_or(1);
                let sweep =
                    rescue_stalled(&mut conn, &keys, self.peer, self.clock.now(), STALLED_INTERVAL, allowed)
                        .await?;
                Ok(match sweep {
                    Sweep::Rescued(ids) => ids.iter().map(|id| json!(mask(id.as_str()))).collect(),
                    Sweep::NotOurTurn => json!([]),
                })
            }
            "dropLock" => self.delete(self.keys(queue)?.lock(&id()?)).await,
            "dropKey" => {
                let key = format!("{}{}", self.keys(queue)?.base(), text(step, "key").unwrap_or_default());
                self.delete(key).await
            }
            "removeDedupKey" => {
                self.open(queue).await?;
                self.delete(self.keys(queue)?.dedup(id()?.as_str())).await
            }
            "extendLock" => {
                self.job(queue, step).await?;
                let held = [(id()?, LockToken::new(token))];
                let keys = self.keys(queue)?;
                let owner: Option<String> =
                    redis::cmd("GET").arg(keys.lock(&id()?)).query_async(&mut self.conn().await?).await?;
                let odd = fraction(step, "duration").is_some_and(|ms| ms <= 0.0 || ms.fract() != 0.0);
                if odd && owner.as_deref() == Some(token) {
                    return Err(StepError::new("invalid expire time"));
                }
                let lost =
                    extend_locks(&mut self.conn().await?, &keys, span(step, "duration", 30_000), &held)
                        .await?;
                Ok(json!(i64::from(lost.is_empty())))
            }
            "state" => {
                let (_, admin) = self.open(queue).await?;
                // Node calls a job in `paused` waiting; ours says which list.
                Ok(json!(match admin.state(&id()?).await? {
                    Some(JobState::Paused) => "waiting",
                    state => state.map_or("unknown", JobState::as_str),
                }))
            }
            "counts" => {
                let (_, admin) = self.open(queue).await?;
                let all = serde_json::to_value(admin.counts().await?)?;
                let mut wanted: Vec<&str> = step
                    .get("types")
                    .and_then(Value::as_array)
                    .map(|types| types.iter().filter_map(Value::as_str).collect())
                    .unwrap_or_default();
                if wanted.is_empty() {
                    return Ok(all);
                }
                // Node's `wait` is its `waiting`; in 5.x it counts what is paused along.
                if self.peer == Peer::V5 && wanted.contains(&"waiting") {
                    wanted.push("paused");
                }
                let count = |t: &str| all[if t == "wait" { "waiting" } else { t }].clone();
                Ok(wanted.into_iter().map(|t| (t.to_owned(), count(t))).collect())
            }
            "rawcmd" => {
                let args: Vec<String> = step
                    .get("args")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                    .map(|a| a.as_str().map_or_else(|| js::stringify(a), ToOwned::to_owned))
                    .collect();
                let (name, rest) = args.split_first().ok_or_else(|| StepError::new("no command"))?;
                let reply: redis::Value =
                    redis::cmd(name).arg(rest).query_async(&mut self.conn().await?).await?;
                Ok(dump::reply_to_json(&reply))
            }
            "dump" => Ok(json!({ "dump": dump::dump(self.redis).await? })),
            other => Err(StepError::new(format!("operation {other} is not served yet"))),
        }
    }

    /// Numbers of a step into `meta`, as given: what Node does with those that are none
    /// of ours.
    async fn note(
        &self,
        queue: &str,
        step: &Map<String, Value>,
        fields: &[(&str, &str)],
    ) -> Result<(), StepError> {
        let values: Vec<(&str, String)> = fields
            .iter()
            .map(|(field, name)| (*field, step.get(*name).map(js::argument).unwrap_or_default()))
            .collect();
        let key = self.keys(queue)?.meta().to_owned();
        redis::pipe().hset_multiple(key, &values).query_async::<()>(&mut self.conn().await?).await?;
        Ok(())
    }

    async fn delete(&self, key: String) -> StepResult {
        let deleted: i64 = redis::cmd("DEL").arg(key).query_async(&mut self.conn().await?).await?;
        Ok(json!(deleted))
    }
}

fn small(step: &Map<String, Value>, name: &str) -> Option<u32> {
    let n = fraction(step, name).filter(|n| n.fract() == 0.0)?;
    #[expect(clippy::cast_possible_truncation, reason = "a whole number; saturates")]
    u32::try_from(n as i64).ok()
}

fn flow_ids(node: &FlowNode) -> Value {
    let children: Vec<Value> = node.children.iter().map(flow_ids).collect();
    json!({ "id": mask(node.id.as_str()), "children": children })
}

fn final_state(name: Option<&str>) -> FinalState {
    if name == Some("completed") { FinalState::Completed } else { FinalState::Failed }
}

fn fetched_view(fetched: &Fetched) -> Value {
    match fetched.jobs.first() {
        Some(job) => view(job),
        None => json!({ "none": true, "rateLimited": fetched.limited_for.is_some(),
            "nextDelayed": fetched.next_due.map_or(0, |t| t.0) }),
    }
}
