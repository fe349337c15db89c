//! The memory of requests that arrived at the API listener.
//!
//! Secrets are starred before anything is kept.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use serde::Serialize;

use super::faults::{Fault, FaultAction};
use super::route::Request;
use super::wire::{RawParams, RawValue, parse_form, parse_json};

/// How many requests are remembered.
const LOG_MAX: usize = 50_000;

/// A request that arrived at the API listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RequestView {
    /// Counts from 1.
    pub seq: u64,
    /// Milliseconds since the simulator started.
    pub at_ms: u64,
    /// HTTP method.
    pub method: String,
    /// Path below the format, such as `/nodes/pve1/lxc`.
    pub path: String,
    /// Parameters from query and body; secrets are starred.
    pub params: BTreeMap<String, String>,
    /// Authenticated user or token.
    pub user: Option<String>,
    /// Status answered; none while it runs and when the connection was dropped.
    pub status: Option<u16>,
    /// Reason phrase of a refusal.
    pub reason: Option<String>,
    /// Fault that struck.
    pub fault: Option<FaultAction>,
}

/// The last requests, oldest first.
#[derive(Debug)]
pub(crate) struct RequestLog {
    started_at: Instant,
    entries: VecDeque<RequestView>,
    next_seq: u64,
}

impl RequestLog {
    pub(crate) fn new() -> Self {
        Self { started_at: Instant::now(), entries: VecDeque::new(), next_seq: 1 }
    }

    /// Notes an arrived request and returns its number.
    pub(crate) fn open(&mut self, request: &Request, path: &str) -> u64 {
        let mut raw = RawParams::new();
        parse_form(&request.query, &mut raw);
        let body = String::from_utf8_lossy(&request.body);
        if body.trim_start().starts_with('{') {
            // A body that is no JSON is shown without its parameters.
            let _ = parse_json(&body, &mut raw);
        } else {
            parse_form(&body, &mut raw);
        }
        let params = raw
            .into_iter()
            .map(|(key, value)| {
                let text = match value {
                    _ if key.contains("password") => "***".to_owned(),
                    RawValue::One(text) => text,
                    RawValue::Many(items) => items.join(","),
                    RawValue::Object => "{…}".to_owned(),
                };
                (key, text)
            })
            .collect();
        let seq = self.next_seq;
        self.next_seq += 1;
        if self.entries.len() == LOG_MAX {
            self.entries.pop_front();
        }
        self.entries.push_back(RequestView {
            seq,
            at_ms: u64::try_from(self.started_at.elapsed().as_millis()).unwrap_or(u64::MAX),
            method: request.method.clone(),
            path: path.to_owned(),
            params,
            user: None,
            status: None,
            reason: None,
            fault: None,
        });
        seq
    }

    fn entry(&mut self, seq: u64) -> Option<&mut RequestView> {
        let first = self.entries.front()?.seq;
        let index = usize::try_from(seq.checked_sub(first)?).ok()?;
        self.entries.get_mut(index)
    }

    pub(crate) fn identify(&mut self, seq: u64, user: &str) {
        if let Some(entry) = self.entry(seq)
            && !user.is_empty()
        {
            entry.user = Some(user.to_owned());
        }
    }

    pub(crate) fn close(
        &mut self,
        seq: u64,
        status: Option<u16>,
        fault: Option<&Fault>,
        reason: Option<String>,
    ) {
        if let Some(entry) = self.entry(seq) {
            entry.status = status;
            entry.reason = reason;
            entry.fault = fault.map(|fault| fault.action);
        }
    }

    pub(crate) fn all(&self) -> Vec<RequestView> {
        self.entries.iter().cloned().collect()
    }
}
