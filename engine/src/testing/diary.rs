//! What a handler under test did to its job.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde_json::Value;

use super::{Outcome, Tried};
use crate::{children::Parked, context::ContextError};

/// Stands in for the job's keys.
#[derive(Debug, Default)]
pub(crate) struct Diary {
    pending_children: bool,
    children: BTreeMap<String, String>,
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    progress: Vec<Value>,
    log: Vec<String>,
    data: Option<Value>,
}

impl Diary {
    pub(crate) fn new(pending_children: bool, children: BTreeMap<String, String>) -> Self {
        Self { pending_children, children, notes: Mutex::default() }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn progress(&self, json: &str) -> Result<(), ContextError> {
        self.notes().progress.push(value(json));
        Ok(())
    }

    pub(crate) fn log(&self, line: &str) -> Result<(), ContextError> {
        self.notes().log.push(line.to_owned());
        Ok(())
    }

    pub(crate) fn data(&self, json: &str) -> Result<(), ContextError> {
        self.notes().data = Some(value(json));
        Ok(())
    }

    pub(crate) fn park(&self) -> Parked {
        if self.pending_children { Parked::Waiting } else { Parked::NothingPending }
    }

    pub(crate) fn children(&self) -> BTreeMap<String, String> {
        self.children.clone()
    }

    /// What it holds, with what follows.
    pub(super) fn close(&self, outcome: Outcome) -> Tried {
        let Notes { progress, log, data } = std::mem::take(&mut *self.notes());
        Tried { outcome, progress, log, new_data: data }
    }
}

/// It was written from a value just now.
fn value(json: &str) -> Value {
    serde_json::from_str(json).unwrap_or(Value::Null)
}
