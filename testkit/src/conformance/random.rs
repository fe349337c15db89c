//! Random scenarios for the differential test, from a seed: the same seed and
//! length give the same scenario. A rough model of the queue steers the choice of
//! ids, so that most steps hit a job in a fitting state and some do not. Spans that
//! become a key's real time to live are long, so that no key expires during a run.
//! Nodes of flows have ids: those that npm bullmq makes up cannot be told apart.

use serde_json::{Map, Value, json};

const QUEUES: [&str; 2] = ["q", "r"];
const CUSTOM_IDS: [&str; 4] = ["a", "b", "job-c", "x:y:z"];
/// So many of them hold no colon.
const PLAIN_IDS: usize = 3;
const BAD_IDS: [&str; 4] = ["7", "0", "0:x", "a:b"];
const DEDUP_IDS: [&str; 2] = ["d1", "d2"];
const DELAYS_MS: [i64; 8] = [0, 1, 50, 100, 1000, 5000, 60_000, 86_400_000];

/// What the generator believes of one queue.
#[derive(Debug, Default)]
struct Guess {
    counter: u64,
    ids: Vec<String>,
    line: Vec<String>,
    active: Vec<(String, String)>,
    delayed: Vec<String>,
    finished: Vec<String>,
}

impl Guess {
    fn forget(&mut self, id: &str) {
        self.line.retain(|i| i != id);
        self.delayed.retain(|i| i != id);
        self.finished.retain(|i| i != id);
        self.active.retain(|(i, _)| i != id);
    }
}

struct Generator {
    rng: fastrand::Rng,
    queues: [Guess; 2],
    which: usize,
    steps: Vec<Value>,
    /// Ids with colons may be parents; nothing is removed, since npm bullmq then looks
    /// for such a parent under a wrong name.
    colon_parents: bool,
}

/// A scenario of `steps` steps, as a scenario file holds it.
#[must_use]
pub fn scenario(seed: u64, steps: usize) -> Value {
    let mut generator = Generator {
        rng: fastrand::Rng::with_seed(seed),
        queues: [Guess::default(), Guess::default()],
        which: 0,
        steps: Vec::new(),
        colon_parents: false,
    };
    generator.colon_parents = generator.chance(0.15);
    let queue_options = generator.queue_options();
    let worker_options = generator.worker_options();
    while generator.steps.len() < steps {
        generator.which = usize::from(generator.chance(0.12));
        generator.step();
    }
    let scenario = json!({ "name": format!("random-{seed}"), "queueOptions": queue_options,
        "workerOptions": worker_options, "steps": generator.steps });
    let mut scenario = super::random_schedules::weave(seed, scenario);
    if generator.colon_parents
        && let Some(steps) = scenario["steps"].as_array_mut()
    {
        steps.retain(|step| !removes(step));
    }
    scenario
}

/// Whether jobs are taken away by hand.
fn removes(step: &Value) -> bool {
    const REMOVALS: [&str; 5] = ["remove", "removeChildDependency", "drain", "clean", "obliterate"];
    step["op"].as_str().is_some_and(|op| REMOVALS.contains(&op))
}

impl Generator {
    fn chance(&mut self, p: f64) -> bool {
        self.rng.f64() < p
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.rng.usize(..from.len())].clone()
    }

    fn guess(&mut self) -> &mut Guess {
        &mut self.queues[self.which]
    }

    fn queue_options(&mut self) -> Value {
        let mut options = Map::new();
        if self.chance(0.15) {
            options.insert("defaultJobOptions".into(), self.options(false).into());
        }
        options.into()
    }

    fn worker_options(&mut self) -> Value {
        let mut options = Map::new();
        if self.chance(0.2) {
            options.insert("name".into(), json!("w-1"));
        }
        if self.chance(0.15) {
            options.insert(
                "limiter".into(),
                json!({"max": self.rng.i64(1..4), "duration": self.pick(&[30_000, 60_000])}),
            );
        }
        if self.chance(0.15) {
            options.insert("metrics".into(), json!({"maxDataPoints": self.pick(&[2, 10])}));
        }
        for name in ["removeOnComplete", "removeOnFail"] {
            if self.chance(0.1) {
                let keep = self.keep(true);
                options.insert(name.into(), keep);
            }
        }
        if self.chance(0.1) {
            options.insert("maxStalledCount".into(), json!(self.pick(&[0, 2])));
        }
        // A worker's own removal of jobs loses the place of a parent with a colon.
        if self.colon_parents {
            options.shift_remove("removeOnComplete");
            options.shift_remove("removeOnFail");
        }
        options.into()
    }

    /// Retention; a worker takes no plain bool or number.
    fn keep(&mut self, object: bool) -> Value {
        let choice = if object { self.rng.u32(3..7) } else { self.rng.u32(..7) };
        match choice {
            0 => json!(true),
            1 => json!(false),
            2 => json!(self.rng.i64(0..3)),
            3 => json!({"count": self.rng.i64(0..3)}),
            4 => json!({"age": self.pick(&[1, 10, 100])}),
            5 => json!({"age": self.pick(&[1, 10, 100]), "count": self.rng.i64(1..4)}),
            _ => json!({"age": self.pick(&[1, 10]), "limit": self.rng.i64(1..3)}),
        }
    }

    fn backoff(&mut self) -> Value {
        let delay = self.pick(&[0, 1, 33, 100, 1000]);
        if self.chance(0.3) {
            return json!(delay);
        }
        let mut backoff = json!({"type": self.pick(&["fixed", "exponential"]), "delay": delay});
        if self.chance(0.3) {
            backoff["jitter"] = json!(self.pick(&[0.25, 0.5, 1.0]));
        }
        backoff
    }

    fn telemetry(&mut self) -> Value {
        let traced =
            r#"{"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","baggage":"a=1"}"#;
        let metadata = self.pick(&[traced, "", "{", r#"{"b3":"1-2-1"}"#]);
        match self.rng.u8(0..3) {
            0 => json!({ "metadata": metadata }),
            1 => json!({ "omitContext": self.chance(0.5) }),
            _ => json!({ "metadata": metadata, "omitContext": self.chance(0.5) }),
        }
    }

    fn deduplication(&mut self) -> Value {
        let mut dedup = json!({"id": self.pick(&DEDUP_IDS)});
        if self.chance(0.4) {
            dedup["ttl"] = json!(self.pick(&[60_000, 600_000]));
        }
        for (name, p) in
            [("extend", 0.25), ("replace", 0.3), ("keepLastIfActive", 0.25), ("reschedule", 0.15)]
        {
            if self.chance(p) && !(self.colon_parents && name == "replace") {
                dedup[name] = json!(true);
            }
        }
        dedup
    }

    fn options(&mut self, own: bool) -> Map<String, Value> {
        let mut o = Map::new();
        if own && self.chance(0.25) {
            return o;
        }
        if self.chance(0.2) {
            o.insert("delay".into(), json!(self.pick(&DELAYS_MS)));
        }
        if self.chance(0.25) {
            o.insert("priority".into(), json!(self.pick(&[0, 1, 1, 2, 3, 10, 2_097_151])));
        }
        if self.chance(0.15) {
            o.insert("lifo".into(), json!(self.chance(0.8)));
        }
        if self.chance(0.4) {
            o.insert("attempts".into(), json!(self.rng.i64(0..5)));
        }
        if self.chance(0.35) {
            o.insert("backoff".into(), self.backoff());
        }
        for name in ["removeOnComplete", "removeOnFail"] {
            if self.chance(0.25) && !self.colon_parents {
                let keep = self.keep(false);
                o.insert(name.into(), keep);
            }
        }
        if self.chance(0.1) {
            o.insert("keepLogs".into(), json!(self.rng.i64(0..3)));
        }
        if self.chance(0.12) {
            o.insert("stackTraceLimit".into(), json!(self.rng.i64(0..3)));
        }
        if own && self.chance(0.2) {
            let id = if self.chance(0.08) { self.pick(&BAD_IDS) } else { self.pick(&CUSTOM_IDS) };
            o.insert("jobId".into(), json!(id));
        }
        if self.chance(0.05) {
            o.insert("timestamp".into(), json!(1_699_999_990_000_i64 + self.rng.i64(0..20_000)));
        }
        if self.chance(0.03) {
            o.insert("sizeLimit".into(), json!(self.pick(&[10, 1000])));
        }
        if own && self.chance(0.22) {
            let dedup = self.deduplication();
            o.insert("deduplication".into(), dedup);
        }
        // Not in a queue's defaults, which Node takes for single jobs only.
        if own && self.chance(0.08) {
            o.insert("telemetry".into(), self.telemetry());
        }
        if self.chance(0.06) {
            let (name, value) = self.odd();
            o.insert(name.into(), value);
        }
        o
    }

    /// What nobody should give, and Node takes.
    fn odd(&mut self) -> (&'static str, Value) {
        self.pick(&[
            ("attempts", json!(2.5)),
            ("attempts", json!("3")),
            ("attempts", json!(-1)),
            ("backoff", json!(-5)),
            ("backoff", json!(5.5)),
            ("backoff", json!({"type": "exponential", "delay": 1e12})),
            ("backoff", json!({"type": "nobody's", "delay": 5})),
            ("backoff", json!({"delay": 7, "more": [null]})),
            ("delay", json!(-3)),
            ("delay", json!(7.5)),
            ("priority", json!(-1)),
            ("timestamp", json!(0)),
            ("lifo", json!(1)),
            ("unknown", json!([])),
            ("unknown", json!({"a": null, "b": [null, 0.123_456_789_012_345_67, [], null], "c": 1e300})),
        ])
    }

    fn value(&mut self) -> Value {
        self.pick(&[
            json!({}),
            json!({"n": 1, "s": "a/b \"c\" ü"}),
            json!([]),
            json!(null),
            json!(0),
            json!("text"),
            json!(""),
            json!({"e": [], "o": {}, "f": 1.5}),
            json!(true),
        ])
    }

    fn job(&mut self) -> (Value, Value, Map<String, Value>) {
        let name = self.pick(&["mail", "scan", "ü/x"]);
        let data = self.value();
        let mut opts = self.options(true);
        if self.chance(0.08)
            && let Some(parent) = self.parent()
        {
            opts.insert("parent".into(), parent);
            self.no_colon_child(&mut opts);
        }
        let id = opts.get("jobId").and_then(Value::as_str).map(ToOwned::to_owned);
        let delayed = opts.get("delay").and_then(Value::as_i64).unwrap_or(0) > 0;
        let guess = self.guess();
        guess.counter += 1;
        let id = id.unwrap_or_else(|| guess.counter.to_string());
        if !guess.ids.contains(&id) {
            guess.ids.push(id.clone());
            if delayed { guess.delayed.push(id) } else { guess.line.push(id) }
        }
        (json!(name), data, opts)
    }

    /// A flow of up to three levels, now and then tied to a parent that is there already.
    fn flow(&mut self) {
        let mut flow = self.node(0);
        if self.chance(0.1)
            && let Some(parent) = self.parent()
        {
            flow["opts"]["parent"] = parent;
        }
        self.steps.push(json!({"op": "flow", "flow": flow}));
    }

    /// A job that may be somebody's parent.
    fn parent(&mut self) -> Option<Value> {
        let which = self.rng.usize(..2);
        let mut ids = self.queues[which].ids.clone();
        if !self.colon_parents {
            ids.retain(|id| !id.contains(':'));
        }
        if ids.is_empty() {
            return None;
        }
        Some(json!({"id": self.pick(&ids), "queue": format!("conf:{}", QUEUES[which])}))
    }

    /// npm bullmq does not find such a child when it removes the tree.
    fn no_colon_child(&self, opts: &mut Map<String, Value>) {
        if !self.colon_parents && opts.get("jobId").is_some_and(|id| id == CUSTOM_IDS[PLAIN_IDS]) {
            opts.shift_remove("jobId");
        }
    }

    fn node(&mut self, depth: usize) -> Value {
        let queue = QUEUES[self.which];
        let mut opts = self.options(false);
        let guess = self.guess();
        guess.counter += 1;
        let mut id = format!("{queue}-{}", guess.counter);
        if self.chance(0.15) {
            let most = if self.colon_parents { CUSTOM_IDS.len() } else { PLAIN_IDS };
            id = self.pick(&CUSTOM_IDS[..most]).to_owned();
        }
        opts.insert("jobId".into(), json!(id));
        if depth > 0 && self.chance(0.6) {
            let policy = self.pick(&[
                "failParentOnFailure",
                "continueParentOnFailure",
                "ignoreDependencyOnFailure",
                "removeDependencyOnFailure",
            ]);
            opts.insert(policy.into(), json!(true));
        }
        if self.chance(0.05) {
            let dedup = self.deduplication();
            opts.insert("deduplication".into(), dedup);
        }
        let mut node = json!({"name": "node", "queueName": queue, "opts": opts});
        if self.chance(0.04) {
            node["prefix"] = json!("conf:p");
        }
        if self.chance(0.7) {
            node["data"] = self.value();
        }
        let mut children = Vec::new();
        if depth == 0 || (depth == 1 && self.chance(0.25)) {
            for _ in 0..self.rng.usize(1..4) {
                children.push(self.node(depth + 1));
                if self.chance(0.6) {
                    self.which = 1 - self.which;
                }
            }
        }
        let leaf = children.is_empty();
        if !leaf {
            node["children"] = json!(children);
            self.which = usize::from(queue == QUEUES[1]);
        }
        let guess = self.guess();
        if !guess.ids.contains(&id) {
            guess.ids.push(id.clone());
        }
        if leaf {
            guess.line.push(id);
        }
        node
    }

    /// An id: from the list that fits, mostly.
    fn id(&mut self, fitting: &[String]) -> String {
        if !fitting.is_empty() && self.chance(0.85) {
            return self.pick(fitting);
        }
        let all = self.guess().ids.clone();
        if all.is_empty() || self.chance(0.05) { "999".to_owned() } else { self.pick(&all) }
    }

    fn active(&mut self) -> (String, String) {
        let active = self.guess().active.clone();
        let ids: Vec<String> = active.iter().map(|(id, _)| id.clone()).collect();
        let id = self.id(&ids);
        let token = active.iter().find(|(i, _)| *i == id).map_or("t1", |(_, t)| t.as_str()).to_owned();
        let token = if self.chance(0.04) { "wrong".to_owned() } else { token };
        (id, token)
    }

    /// Moves the job that is probably next to `active`.
    fn take(&mut self, token: &str) {
        let guess = self.guess();
        if !guess.line.is_empty() {
            let id = guess.line.remove(0);
            guess.active.push((id, token.to_owned()));
        }
    }

    fn ended(&mut self, id: &str) {
        let guess = self.guess();
        guess.forget(id);
        guess.finished.push(id.to_owned());
    }

    fn push(&mut self, mut step: Value) {
        if self.colon_parents && removes(&step) {
            return;
        }
        if self.which == 1 {
            step["queue"] = json!(QUEUES[1]);
        }
        self.steps.push(step);
    }

    fn step(&mut self) {
        match self.rng.u32(..100) {
            0..16 => {
                let (name, data, opts) = self.job();
                self.push(json!({"op": "add", "name": name, "data": data, "opts": opts}));
            }
            16 | 17 => self.flow(),
            18..22 => {
                let jobs: Vec<Value> = (0..self.rng.usize(1..4))
                    .map(|_| {
                        let (name, data, opts) = self.job();
                        json!({"name": name, "data": data, "opts": opts})
                    })
                    .collect();
                self.push(json!({"op": "addBulk", "jobs": jobs}));
            }
            22..35 => {
                let token = self.pick(&["t1", "t1", "t1", "t2"]);
                self.take(token);
                self.push(json!({"op": "fetch", "token": token}));
            }
            35..52 => self.finish(),
            52..57 => {
                let mut step = json!({"op": "process"});
                if self.chance(0.4) {
                    step["error"] = json!("process failed");
                    step["unrecoverable"] = json!(self.chance(0.2));
                } else if self.chance(0.7) {
                    step["value"] = self.value();
                }
                if !self.guess().line.is_empty() {
                    let id = self.guess().line.remove(0);
                    self.ended(&id);
                }
                self.push(step);
            }
            62 => self.mishap(),
            57..62 => {
                let ms = self.pick(&[1, 40, 100, 1000, 2000, 10_000, 61_000, 200_000]);
                self.steps.push(json!({"op": "clock", "advance": ms}));
            }
            63..77 => self.manage_job(),
            77..93 => self.manage_queue(),
            _ => self.look(),
        }
    }

    fn finish(&mut self) {
        let (id, token) = self.active();
        let mut step = json!({"id": id, "token": token});
        match self.rng.u32(..17) {
            16 => {
                step["op"] = json!("moveToWaitingChildren");
                if self.chance(0.3)
                    && let Some(child) = self.parent()
                {
                    step["child"] = child;
                }
            }
            0..6 => {
                step["op"] = json!("complete");
                if self.chance(0.8) {
                    step["value"] = self.value();
                }
            }
            6..12 => {
                step["op"] = json!("fail");
                if self.chance(0.8) {
                    step["error"] = json!(self.pick(&["boom", "", "ü \"x\"\nline"]));
                }
                if self.chance(0.15) {
                    step["unrecoverable"] = json!(true);
                }
            }
            12..14 => {
                step["op"] = json!("moveToDelayed");
                let at = self.pick(&[-1000, 0, 100, 5000, 100_000, 86_400_000]);
                step["at"] = json!(1_700_000_000_000_i64 + at);
            }
            _ => step["op"] = json!("moveLimited"),
        }
        let taken = step["op"] == "moveLimited";
        if (step["op"] == "complete" || step["op"] == "fail") && self.chance(0.35) {
            step["fetchNext"] = json!(true);
            self.take(&token);
        }
        self.ended(&id);
        if taken {
            self.guess().line.insert(0, id);
        }
        self.push(step);
    }

    fn manage_job(&mut self) {
        let guess = self.guess();
        let (line, delayed, finished) = (guess.line.clone(), guess.delayed.clone(), guess.finished.clone());
        let all = guess.ids.clone();
        let step = match self.rng.u32(..17) {
            16 => json!({"op": "removeChildDependency", "id": self.id(&all)}),
            0..3 => {
                let mut step = json!({"op": "retry", "id": self.id(&finished),
                    "state": self.pick(&["failed", "failed", "completed"])});
                if self.chance(0.3) {
                    step["options"] = json!({"resetAttemptsMade": self.chance(0.5),
                        "resetAttemptsStarted": self.chance(0.5)});
                }
                step
            }
            3..5 => json!({"op": "promote", "id": self.id(&delayed)}),
            5..7 => {
                let delay = if self.chance(0.1) {
                    self.pick(&[json!(-5), json!(5.5)])
                } else {
                    json!(self.pick(&DELAYS_MS))
                };
                json!({"op": "changeDelay", "id": self.id(&delayed), "delay": delay})
            }
            7..10 => {
                let mut step = json!({"op": "changePriority", "id": self.id(&line),
                    "priority": self.pick(&[0, 0, 1, 2, 5, -1])});
                if self.chance(0.3) {
                    step["lifo"] = json!(true);
                }
                step
            }
            10 => json!({"op": "updateData", "id": self.id(&all), "data": self.value()}),
            11 => json!({"op": "updateProgress", "id": self.id(&all),
                "progress": self.pick(&[json!(50), json!({"at": 1}), json!("half"), json!(0)])}),
            12 => {
                json!({"op": "log", "id": self.id(&all), "row": self.pick(&[json!("line"), json!(""), json!("ü"), json!("a\nb"), json!(5.5)])})
            }
            _ => {
                let id = self.id(&all);
                if self.chance(0.7) {
                    self.guess().forget(&id);
                }
                let children = self.chance(0.7);
                json!({"op": "remove", "id": id, "options": {"removeChildren": children}})
            }
        };
        self.push(step);
    }

    fn manage_queue(&mut self) {
        let (id, token) = self.active();
        let step = match self.rng.u32(..38) {
            32 | 33 => json!({"op": "drain", "delayed": self.chance(0.5)}),
            34..37 => {
                let state =
                    self.pick(&["completed", "failed", "wait", "active", "delayed", "prioritized", "paused"]);
                json!({"op": "clean", "type": state, "grace": self.pick(&[0, 0, 50, 1000]),
                    "limit": self.pick(&[0, 0, 1, 2, 5])})
            }
            37 => {
                let mut step = json!({"op": "obliterate", "force": self.chance(0.7)});
                if self.chance(0.3) {
                    step["count"] = json!(self.rng.i64(1..4));
                }
                step
            }
            0..4 => json!({"op": "pause"}),
            4..9 => json!({"op": "resume"}),
            9..11 => json!({"op": "rateLimit", "ms": self.pick(&[30_000, 60_000])}),
            11 => json!({"op": "removeRateLimitKey"}),
            12 => json!({"op": "globalConcurrency", "n": self.rng.i64(1..4)}),
            13 => json!({"op": "globalRateLimit", "max": self.rng.i64(1..4), "duration": 60_000}),
            14..19 => json!({"op": "stalledSweep"}),
            19..23 => json!({"op": "dropLock", "id": id}),
            23..25 => json!({"op": "extendLock", "id": id, "token": token}),
            25..28 => {
                let mut step =
                    json!({"op": "retryJobs", "state": self.pick(&["failed", "failed", "completed"])});
                if self.chance(0.3) {
                    step["count"] = json!(self.rng.i64(1..3));
                }
                if self.chance(0.2) {
                    step["timestamp"] = json!(1_700_000_000_000_i64 + self.pick(&[0, 1000, 100_000]));
                }
                step
            }
            28..30 => {
                let mut step = json!({"op": "promoteJobs"});
                if self.chance(0.4) {
                    step["count"] = json!(self.rng.i64(1..4));
                }
                step
            }
            _ => json!({"op": "removeDedupKey", "id": self.pick(&DEDUP_IDS)}),
        };
        self.push(step);
    }

    /// What others do to a queue: locks stolen, keys lost. The hash of a job is not:
    /// npm bullmq runs such a job without a name, we drop it.
    fn mishap(&mut self) {
        let (id, _) = self.active();
        let all = self.guess().ids.clone();
        let any = self.id(&all);
        let queue = QUEUES[self.which];
        let lost = match self.rng.u32(..10) {
            0..5 => {
                let lock = format!("conf:{queue}:{id}:lock");
                self.steps.push(json!({"op": "rawcmd", "args": ["SET", lock, "stolen", "PX", "60000"]}));
                return;
            }
            5 => format!("{any}:logs"),
            6 => "marker".to_owned(),
            7 => "stalled".to_owned(),
            8 => "limiter".to_owned(),
            _ => "pc".to_owned(),
        };
        self.push(json!({"op": "dropKey", "key": lost}));
    }

    fn look(&mut self) {
        let all = self.guess().ids.clone();
        let step = match self.rng.u32(..6) {
            0..3 => json!({"op": "state", "id": self.id(&all)}),
            3 => json!({"op": "counts"}),
            4 => {
                let types = [
                    "waiting",
                    "wait",
                    "failed",
                    "prioritized",
                    "paused",
                    "active",
                    "completed",
                    "delayed",
                    "waiting-children",
                ];
                let some: Vec<&str> = types.into_iter().filter(|_| self.chance(0.5)).collect();
                json!({"op": "counts", "types": some})
            }
            _ => json!({"op": "dump"}),
        };
        self.push(step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_scenario() {
        assert_eq!(scenario(7, 30), scenario(7, 30));
        assert_ne!(scenario(7, 30)["steps"], scenario(8, 30)["steps"]);
        assert_eq!(scenario(3, 25)["steps"].as_array().unwrap().len(), 25);
    }
}
