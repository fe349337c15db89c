//! Fault rules: which request is hit, and what then happens to it.
//!
//! The file format is fixed (`--faults FILE`, `POST /faults`). Counting and chance are per rule and seeded,
//! so one seed and one order of requests give one course of events.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::wire::Method;

/// A fault rule, as the JSON file has it. Without `nth`, `every` or `prob` it hits every matching request.
///
/// ```json
/// {"method": "POST", "path": "/nodes/*/lxc", "nth": 3, "do": "drop_after"}
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// HTTP method; absent or `*` is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Path below `/api2/json`: `*` stands for anything within a segment, `**` also across; absent is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Hits the n-th matching request only, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nth: Option<u64>,
    /// Hits each n-th matching request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<u64>,
    /// Hits with this probability, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prob: Option<f64>,
    /// What happens.
    #[serde(rename = "do")]
    pub action: FaultAction,
    /// Milliseconds: how long `delay` waits; for the others a wait before they strike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ms: Option<u64>,
    /// Status of `status` and `status_after`; 500 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Reason phrase of `status`, exit status of `task_error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// What a fault does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultAction {
    /// The request is handled `ms` later, even when its client has gone meanwhile.
    Delay,
    /// The request is handled at once, its reply comes `ms` later.
    DelayAfter,
    /// The connection is closed, nothing was done.
    DropBefore,
    /// Everything was done, the connection is closed without a reply.
    DropAfter,
    /// The given status and reason are answered, nothing was done.
    Status,
    /// Everything was done, yet the given status and reason are answered (a relay that timed out).
    StatusAfter,
    /// The request's task ends with `text`; a text `WARNINGS: n` is a success with warnings.
    TaskError,
    /// The request is handled; its task gets half-way at most, and the node in its path dies `ms` later
    /// (three quarters of a task's time when absent, so after that half).
    NodeDown,
}

impl Fault {
    /// A rule that hits every request with this method and path.
    pub fn new(method: &str, path: &str, action: FaultAction) -> Self {
        Self {
            method: Some(method.to_owned()),
            path: Some(path.to_owned()),
            nth: None,
            every: None,
            prob: None,
            action,
            ms: None,
            status: None,
            text: None,
        }
    }

    /// Hits the n-th matching request only.
    #[must_use]
    pub fn nth(mut self, nth: u64) -> Self {
        self.nth = Some(nth);
        self
    }

    /// Sets the time the action uses.
    #[must_use]
    pub fn ms(mut self, ms: u64) -> Self {
        self.ms = Some(ms);
        self
    }

    /// Sets status and text.
    #[must_use]
    pub fn status(mut self, status: u16, text: &str) -> Self {
        self.status = Some(status);
        self.text = Some(text.to_owned());
        self
    }

    /// Sets the text.
    #[must_use]
    pub fn text(mut self, text: &str) -> Self {
        self.text = Some(text.to_owned());
        self
    }

    fn matches(&self, method: Option<Method>, path: &str) -> bool {
        let method_fits = match self.method.as_deref() {
            None | Some("*" | "ANY") => true,
            Some(wanted) => method.is_some_and(|method| wanted.eq_ignore_ascii_case(method.as_str())),
        };
        let path_fits = match self.path.as_deref() {
            None | Some("*" | "/*" | "**") => true,
            Some(pattern) => {
                let pattern = pattern
                    .strip_prefix("/api2/json")
                    .or(pattern.strip_prefix("/api2/extjs"))
                    .unwrap_or(pattern);
                glob(pattern.trim_end_matches('/').as_bytes(), path.trim_end_matches('/').as_bytes())
            }
        };
        method_fits && path_fits
    }

    /// Complains about values that could never work.
    fn check(&self) -> Result<(), String> {
        if [self.nth.is_some(), self.every.is_some(), self.prob.is_some()].iter().filter(|set| **set).count()
            > 1
        {
            return Err("a fault takes one of nth, every and prob".to_owned());
        }
        if self.nth == Some(0) || self.every == Some(0) {
            return Err("nth and every count from 1".to_owned());
        }
        if self.prob.is_some_and(|p| !(0.0..=1.0).contains(&p)) {
            return Err("prob is between 0 and 1".to_owned());
        }
        if self.status.is_some_and(|status| !(200..=999).contains(&status)) {
            return Err("status is between 200 and 999".to_owned());
        }
        Ok(())
    }
}

/// Reads an array of faults or a single one.
pub(crate) fn parse(text: &str) -> Result<Vec<Fault>, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let faults: Vec<Fault> = if value.is_array() {
        serde_json::from_value(value).map_err(|error| error.to_string())?
    } else {
        vec![serde_json::from_value(value).map_err(|error| error.to_string())?]
    };
    faults.iter().try_for_each(Fault::check)?;
    Ok(faults)
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', b'*', rest @ ..] => (0..=text.len()).any(|at| glob(rest, &text[at..])),
        [b'*', rest @ ..] => {
            let end = text.iter().position(|byte| *byte == b'/').unwrap_or(text.len());
            (0..=end).any(|at| glob(rest, &text[at..]))
        }
        [b'?', rest @ ..] => text.first().is_some_and(|byte| *byte != b'/') && glob(rest, &text[1..]),
        [byte, rest @ ..] => text.first() == Some(byte) && glob(rest, &text[1..]),
    }
}

#[derive(Debug)]
struct Armed {
    fault: Fault,
    seen: u64,
    rng: fastrand::Rng,
}

/// All armed rules.
#[derive(Debug)]
pub(crate) struct FaultSet {
    seed: u64,
    armed: Vec<Armed>,
}

/// What a request has to suffer: all delays together, and the first other action.
#[derive(Debug, Clone, Default)]
pub(crate) struct Verdict {
    pub(crate) delay_ms: u64,
    pub(crate) strike: Option<Fault>,
}

impl FaultSet {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, armed: Vec::new() }
    }

    pub(crate) fn add(&mut self, fault: Fault) {
        let index = u64::try_from(self.armed.len()).unwrap_or_default();
        let rng = fastrand::Rng::with_seed(self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(index));
        self.armed.push(Armed { fault, seen: 0, rng });
    }

    pub(crate) fn clear(&mut self) {
        self.armed.clear();
    }

    pub(crate) fn list(&self) -> Vec<Fault> {
        self.armed.iter().map(|armed| armed.fault.clone()).collect()
    }

    /// Counts a request in every rule it matches and says what happens to it.
    pub(crate) fn judge(&mut self, method: Option<Method>, path: &str) -> Verdict {
        let mut verdict = Verdict::default();
        for armed in &mut self.armed {
            if !armed.fault.matches(method, path) {
                continue;
            }
            armed.seen += 1;
            let fault = &armed.fault;
            let hit = match (fault.nth, fault.every, fault.prob) {
                (Some(nth), ..) => armed.seen == nth,
                (_, Some(every), _) => armed.seen.is_multiple_of(every.max(1)),
                (.., Some(prob)) => armed.rng.f64() < prob,
                _ => true,
            };
            if !hit {
                continue;
            }
            match fault.action {
                FaultAction::Delay => verdict.delay_ms += fault.ms.unwrap_or_default(),
                _ if verdict.strike.is_none() => verdict.strike = Some(fault.clone()),
                _ => {}
            }
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stays_within_its_segment() {
        let fault = Fault::new("POST", "/nodes/*/lxc", FaultAction::DropBefore);
        assert!(fault.matches(Some(Method::Post), "/nodes/pve1/lxc"));
        assert!(!fault.matches(Some(Method::Post), "/nodes/pve1/lxc/100/status/start"));
        assert!(!fault.matches(Some(Method::Get), "/nodes/pve1/lxc"));
        assert!(Fault::new("*", "/nodes/**", FaultAction::Delay).matches(None, "/nodes/a/b/c"));
    }

    #[test]
    fn nth_every_and_prob_count_per_rule() {
        let hits = |fault: Fault, count: usize| {
            let mut set = FaultSet::new(5);
            set.add(fault);
            (0..count).map(|_| set.judge(Some(Method::Get), "/x").strike.is_some()).collect::<Vec<_>>()
        };
        let base = Fault::new("GET", "/x", FaultAction::Status);
        assert_eq!(hits(base.clone().nth(2), 3), [false, true, false]);
        let every = Fault { every: Some(2), ..base.clone() };
        assert_eq!(hits(every, 4), [false, true, false, true]);
        let prob = Fault { prob: Some(0.5), ..base };
        assert_eq!(hits(prob.clone(), 32), hits(prob, 32));
    }

    #[test]
    fn the_file_format_is_read() {
        let text = r#"[{"method":"POST","path":"/nodes/*/lxc","nth":3,"do":"task_error","text":"boom"}]"#;
        assert_eq!(parse(text).unwrap()[0].action, FaultAction::TaskError);
        assert!(parse(r#"{"do":"explode"}"#).is_err());
        assert!(parse(r#"{"do":"delay","nth":1,"every":2}"#).is_err());
    }
}
