//! Schedules for random scenarios: every third seed has many of its steps replaced
//! by schedulers, repeatables, moves of the clock and work on their iterations,
//! whose ids are guessed from slots that are likely.

use mpanel_protocol::schedule::{Repeat, legacy_removal_keys};
use serde_json::{Map, Value, json};

use super::scenario::EPOCH_MS;

/// An id with as many parts as the keys of BullMQ 3.
const OLD_LOOKING: &str = "x:y:z:u:v";
const IDS: [&str; 5] = ["s", "tick", "a:b", OLD_LOOKING, "with space/ü"];
const EVERY: [i64; 6] = [7, 1000, 5000, 10_000, 60_000, 61_000];
/// Patterns with the span between their times, or 0 where it is none.
const PATTERNS: [(&str, i64); 8] = [
    ("*/5 * * * *", 300_000),
    ("* * * * *", 60_000),
    ("*/10 * * * * *", 10_000),
    ("@hourly", 3_600_000),
    ("30 2 * * *", 0),
    ("0 9 * * 1-5", 0),
    ("0 0 L * *", 0),
    ("*/7 8-18 * * mon#2", 0),
];
const ZONES: [&str; 4] = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"];
const SPANS: [i64; 10] = [1, 7, 500, 1000, 5000, 10_000, 60_000, 61_000, 300_000, 3_600_000];

struct Weaver {
    rng: fastrand::Rng,
    now: i64,
    /// Ids of iterations that may exist.
    iterations: Vec<String>,
    /// Iterations only wait for their time, so that queues may be drained: npm bullmq
    /// cuts the wrong ids from a list that has a current iteration in it, and leaves
    /// ids without a job there; we keep the iteration.
    drains: bool,
}

/// The scenario as it is, or with schedules.
pub(super) fn weave(seed: u64, mut scenario: Value) -> Value {
    if !seed.is_multiple_of(3) {
        return scenario;
    }
    let rng = fastrand::Rng::with_seed(seed ^ 0x5c4e_d01e);
    let mut weaver = Weaver { rng, now: EPOCH_MS, iterations: Vec::new(), drains: seed.is_multiple_of(9) };
    // 5.x refuses a repeatable for its size when the schedule is stored already.
    if let Some(defaults) =
        scenario["queueOptions"].get_mut("defaultJobOptions").and_then(Value::as_object_mut)
    {
        defaults.shift_remove("sizeLimit");
    }
    for step in scenario["steps"].as_array_mut().into_iter().flatten() {
        if weaver.chance(0.6) {
            *step = weaver.step();
        }
        let op = step["op"].as_str().unwrap_or_default();
        let brings_in_line = matches!(op, "promote" | "promoteJobs" | "changeDelay" | "clock");
        if (weaver.drains && brings_in_line) || (!weaver.drains && op == "drain") {
            *step = json!({"op": "dump"});
        }
        if step["op"] == "clock" {
            weaver.now += step["advance"].as_i64().unwrap_or(0);
        }
    }
    scenario
}

impl Weaver {
    fn chance(&mut self, p: f64) -> bool {
        self.rng.f64() < p
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.rng.usize(..from.len())].clone()
    }

    /// `every` or `pattern`, with the span between its slots.
    fn rhythm(&mut self, repeat: &mut Map<String, Value>) -> i64 {
        if !self.drains && self.chance(0.65) {
            let every = self.pick(&EVERY);
            repeat.insert("every".into(), json!(every));
            return every;
        }
        let (pattern, span) = self.pick(&PATTERNS);
        repeat.insert("pattern".into(), json!(pattern));
        if self.chance(0.5) {
            repeat.insert("tz".into(), json!(self.pick(&ZONES)));
        }
        span
    }

    fn bounds(&mut self, repeat: &mut Map<String, Value>) {
        if self.chance(0.12) {
            repeat.insert("limit".into(), json!(self.rng.i64(0..4)));
        }
        if self.chance(0.1) {
            let at = self.now + self.pick(&SPANS) * self.pick(&[1, 1, 5, -1]);
            repeat.insert("endDate".into(), json!(at));
        }
        if self.chance(0.12) {
            let at = self.now + self.pick(&SPANS) * self.pick(&[1, -1]);
            repeat.insert("startDate".into(), json!(at));
        }
        if !self.drains && self.chance(0.1) {
            repeat.insert("immediately".into(), json!(true));
        }
    }

    fn note(&mut self, key: &str, from: i64, span: i64, offset: i64) {
        let slot = if span > 0 { from.div_euclid(span) * span } else { from };
        for k in 0..4 {
            for at in [from + k * span, slot + offset + k * span] {
                let id = format!("repeat:{key}:{at}");
                if !self.iterations.contains(&id) {
                    self.iterations.push(id);
                }
            }
        }
    }

    fn options(&mut self) -> Value {
        let mut o = Map::new();
        for (name, p, values) in [
            ("attempts", 0.4, vec![json!(0), json!(2), json!(3)]),
            ("priority", 0.2, vec![json!(0), json!(1), json!(5)]),
            ("backoff", 0.25, vec![json!(100), json!({"type": "exponential", "delay": 1000}), json!(0)]),
            ("removeOnComplete", 0.25, vec![json!(true), json!(1), json!({"count": 2})]),
            ("removeOnFail", 0.2, vec![json!(true), json!(false), json!({"age": 10})]),
            ("lifo", 0.15, vec![json!(true), json!(false)]),
            ("delay", 0.08, vec![json!(5000)]),
            ("keepLogs", 0.05, vec![json!(1)]),
            ("stackTraceLimit", 0.05, vec![json!(1)]),
        ] {
            if self.chance(p) {
                o.insert(name.into(), self.pick(&values));
            }
        }
        o.into()
    }

    fn data(&mut self) -> Value {
        self.pick(&[
            json!({}),
            json!({"k": 1}),
            json!([1, "a/b"]),
            json!("text"),
            json!({"id": 7}),
            json!({"id": "x"}),
        ])
    }

    fn upsert(&mut self) -> Value {
        let mut repeat = Map::new();
        let span = self.rhythm(&mut repeat);
        self.bounds(&mut repeat);
        let offset = if self.chance(0.15) { self.pick(&[0, 1, 500, 2500]) } else { 0 };
        if offset > 0 || self.chance(0.05) {
            repeat.insert("offset".into(), json!(offset));
        }
        match self.rng.u32(..40) {
            0 if repeat.contains_key("every") => drop(repeat.insert("pattern".into(), json!("* * * * *"))),
            1 => repeat.clear(),
            2 => {
                repeat.clear();
                repeat.insert("every".into(), json!(0));
            }
            _ => {}
        }
        let id = self.pick(&IDS);
        let from = repeat.get("startDate").and_then(Value::as_i64).unwrap_or(self.now).max(self.now);
        self.note(id, from, span, offset);
        let mut step = json!({"op": "upsertScheduler", "id": id, "repeat": repeat});
        if self.chance(0.8) {
            let mut template = json!({});
            if self.chance(0.7) {
                template["name"] = json!(self.pick(&["tick", "mail", "ü/x"]));
            }
            if self.chance(0.6) {
                template["data"] = self.data();
            }
            if self.chance(0.6) {
                template["opts"] = self.options();
            }
            step["template"] = template;
        }
        step
    }

    fn repeatable(&mut self) -> Value {
        let mut repeat = Map::new();
        let span = self.rhythm(&mut repeat);
        self.bounds(&mut repeat);
        if self.chance(0.15) {
            repeat.insert("key".into(), json!(self.pick(&["key", "k2", "n:i:e:z:p"])));
        }
        let name = self.pick(&["health", "mail"]);
        let mut opts = self.options();
        if let Some(opts) = opts.as_object_mut() {
            opts.shift_remove("delay");
        }
        let job_id = self.chance(0.5).then_some("health-sweep-schedule");
        if let Some(id) = job_id {
            opts["jobId"] = json!(id);
        }
        if let Ok((key, _, _)) = legacy_removal_keys(name, &Repeat::from_json(repeat.clone()), job_id) {
            self.note(&key, self.now, span, 0);
        }
        opts["repeat"] = repeat.into();
        json!({"op": "add", "name": name, "data": self.data(), "opts": opts})
    }

    fn iteration(&mut self) -> String {
        if self.iterations.is_empty() { "repeat:s:1".to_owned() } else { self.pick(&self.iterations.clone()) }
    }

    fn step(&mut self) -> Value {
        let id = self.iteration();
        let token = self.pick(&["t1", "t1", "t1", "t2"]);
        match self.rng.u32(..100) {
            0..16 => self.upsert(),
            16..20 => {
                // Of an id that looks old 5.x goes on without a key when it is removed
                // while a run of it is in line: nobody could remove it any more.
                let id = self.pick(&IDS);
                json!({"op": "removeScheduler", "id": if id == OLD_LOOKING { IDS[0] } else { id }})
            }
            20..27 => self.repeatable(),
            27..43 => json!({"op": "clock", "advance": self.pick(&SPANS)}),
            43..58 => json!({"op": "fetch", "token": token}),
            58..64 => json!({"op": "process", "value": 1}),
            64..66 => json!({"op": "process", "error": "no"}),
            66..74 => {
                json!({"op": "complete", "id": id, "value": 1, "token": token, "fetchNext": self.chance(0.5)})
            }
            74..79 => {
                json!({"op": "fail", "id": id, "error": "boom", "token": token, "fetchNext": self.chance(0.4)})
            }
            79 => {
                json!({"op": "moveToDelayed", "id": id, "at": self.now + self.pick(&SPANS), "token": token})
            }
            80 => json!({"op": "moveLimited", "id": id, "token": token}),
            81..84 => json!({"op": "remove", "id": id}),
            84..86 => json!({"op": "promote", "id": id}),
            86 => json!({"op": "promoteJobs"}),
            87..89 => json!({"op": "retry", "id": id, "state": self.pick(&["completed", "failed"])}),
            89 => json!({"op": "changeDelay", "id": id, "delay": self.pick(&SPANS)}),
            90 => json!({"op": "changePriority", "id": id, "priority": self.rng.i64(0..3)}),
            91 => json!({"op": "dropLock", "id": id}),
            92..94 => json!({"op": "stalledSweep"}),
            94 => json!({"op": "drain", "delayed": self.chance(0.6)}),
            95 => {
                let state = self.pick(&["completed", "failed", "delayed", "wait", "prioritized"]);
                json!({"op": "clean", "type": state, "grace": 0, "limit": self.pick(&[0, 1])})
            }
            96 => json!({"op": "pause"}),
            97 => json!({"op": "resume"}),
            98 => json!({"op": "state", "id": id}),
            _ => json!({"op": "dump"}),
        }
    }
}
