//! Tasks: UPIDs, states, logs, and the lists with filters.
//!
//! Keeps the table only. What a task does to the cluster is in `work`, its timing in `route`.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

use super::state::{Cluster, unix_s};
use super::wire::{ApiError, Params, Reply};
use super::work::Work;

/// How many ended tasks are kept.
const ARCHIVE_MAX: usize = 20_000;
/// What a task ends with when its process vanished with its node.
const LOST: &str = "unexpected status";

/// The parts of a task's unique id.
#[derive(Debug, Clone)]
pub(crate) struct Upid {
    pub(crate) node: String,
    pub(crate) pid: u32,
    pub(crate) pstart: u32,
    pub(crate) started_at_s: u64,
    pub(crate) kind: String,
    pub(crate) id: String,
    pub(crate) user: String,
}

impl fmt::Display for Upid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "UPID:{}:{:08X}:{:08X}:{:08X}:{}:{}:{}:",
            self.node, self.pid, self.pstart, self.started_at_s, self.kind, self.id, self.user
        )
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TaskState {
    /// The worker lives; only its own steps or the death of its node end it.
    Running,
    /// It ended with this exit status.
    Stopped { exit: String, ended_at_s: u64 },
}

#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) upid: Upid,
    pub(crate) state: TaskState,
    pub(crate) log: Vec<String>,
    pub(crate) work: Work,
    /// A fault decides the exit status.
    pub(crate) forced_exit: Option<String>,
    /// Never gets beyond its first half: its node is about to die.
    pub(crate) doomed: bool,
}

/// Kinds of ends, for `statusfilter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EndClass {
    Ok,
    Warning,
    Unknown,
    Error,
}

impl EndClass {
    fn of(exit: &str) -> Self {
        match exit {
            "OK" => Self::Ok,
            LOST => Self::Unknown,
            _ if exit.starts_with("WARNINGS: ") => Self::Warning,
            _ => Self::Error,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Unknown => "unknown",
            Self::Error => "error",
        }
    }
}

/// All tasks by UPID, with what the next started task inherits from a fault.
#[derive(Debug, Default)]
pub(crate) struct TaskTable {
    all: BTreeMap<String, Task>,
    order: Vec<String>,
    next_pid: u32,
    started: Vec<String>,
    pub(crate) next_forced_exit: Option<String>,
    pub(crate) next_doomed: bool,
}

impl TaskTable {
    /// Registers a running task and returns its UPID.
    pub(crate) fn start(&mut self, node: &str, kind: &str, id: &str, user: &str, work: Work) -> String {
        self.next_pid += 1;
        let upid = Upid {
            node: node.to_owned(),
            pid: 0x1000 + self.next_pid,
            pstart: 0x0010_0000 + self.next_pid * 7,
            started_at_s: unix_s(),
            kind: kind.to_owned(),
            id: id.to_owned(),
            user: user.to_owned(),
        };
        let text = upid.to_string();
        let task = Task {
            upid,
            state: TaskState::Running,
            log: Vec::new(),
            work,
            forced_exit: self.next_forced_exit.take(),
            doomed: self.next_doomed,
        };
        self.all.insert(text.clone(), task);
        self.order.push(text.clone());
        self.started.push(text.clone());
        self.prune();
        text
    }

    fn prune(&mut self) {
        if self.order.len() > ARCHIVE_MAX + ARCHIVE_MAX / 10 {
            let surplus = self.order.len() - ARCHIVE_MAX;
            let (old, kept): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.order).into_iter().enumerate().partition(|(index, upid)| {
                    *index < surplus && self.all.get(upid).is_none_or(|task| task.state != TaskState::Running)
                });
            for (_, upid) in old {
                self.all.remove(&upid);
            }
            self.order = kept.into_iter().map(|(_, upid)| upid).collect();
        }
    }

    /// Tasks registered since the last call; the caller gives them their time.
    pub(crate) fn take_started(&mut self) -> Vec<String> {
        std::mem::take(&mut self.started)
    }

    pub(crate) fn get(&self, upid: &str) -> Option<&Task> {
        self.all.get(upid)
    }

    pub(crate) fn get_mut(&mut self, upid: &str) -> Option<&mut Task> {
        self.all.get_mut(upid)
    }

    /// Newest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Task> {
        self.order.iter().rev().filter_map(|upid| self.all.get(upid))
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = &Task> {
        self.iter().filter(|task| task.state == TaskState::Running)
    }

    /// Ends a task and closes its log.
    pub(crate) fn end(&mut self, upid: &str, exit: String) {
        if let Some(task) = self.all.get_mut(upid) {
            let last = match EndClass::of(&exit) {
                EndClass::Ok => "TASK OK".to_owned(),
                EndClass::Warning => format!("TASK {exit}"),
                EndClass::Error => format!("TASK ERROR: {exit}"),
                // Nobody was left to write a last line.
                EndClass::Unknown => String::new(),
            };
            if !last.is_empty() {
                task.log.push(last);
            }
            task.state = TaskState::Stopped { exit, ended_at_s: unix_s() };
        }
    }

    /// The node died: whatever ran there has no known end.
    pub(crate) fn lose(&mut self, node: &str) {
        let lost: Vec<String> =
            self.running().filter(|task| task.upid.node == node).map(|task| task.upid.to_string()).collect();
        for upid in lost {
            self.end(&upid, LOST.to_owned());
        }
    }
}

impl Task {
    fn row(&self) -> Value {
        let mut row = json!({
            "upid": self.upid.to_string(), "node": self.upid.node, "pid": self.upid.pid, "pstart": self.upid.pstart,
            "starttime": self.upid.started_at_s, "type": self.upid.kind, "id": self.upid.id, "user": self.upid.user,
        });
        if let TaskState::Stopped { exit, ended_at_s } = &self.state {
            row["endtime"] = json!(ended_at_s);
            row["status"] = json!(exit);
        }
        row
    }
}

/// `GET /nodes/{node}/tasks`.
pub(crate) fn list(cluster: &Cluster, node: &str, params: &Params) -> Reply {
    let source = params.get("source").unwrap_or("archive");
    let statuses: Vec<&str> =
        params.get("statusfilter").map(|s| super::formats::split_list(s).collect()).unwrap_or_default();
    let vmid = params.get("vmid");
    let rows: Vec<Value> = cluster
        .tasks
        .iter()
        .filter(|task| task.upid.node == node)
        .filter(|task| match (source, &task.state) {
            ("all", _) => true,
            ("active", state) => *state == TaskState::Running,
            (_, state) => *state != TaskState::Running,
        })
        .filter(|task| vmid.is_none_or(|vmid| task.upid.id == vmid))
        .filter(|task| params.get("typefilter").is_none_or(|kind| task.upid.kind == kind))
        .filter(|task| {
            params
                .get("userfilter")
                .is_none_or(|user| task.upid.user.to_lowercase().contains(&user.to_lowercase()))
        })
        .filter(|task| {
            params
                .get("since")
                .and_then(|s| s.parse::<i64>().ok())
                .is_none_or(|since| i64::try_from(task.upid.started_at_s).is_ok_and(|at| at >= since))
        })
        .filter(|task| {
            params
                .get("until")
                .and_then(|s| s.parse::<i64>().ok())
                .is_none_or(|until| i64::try_from(task.upid.started_at_s).is_ok_and(|at| at <= until))
        })
        .filter(|task| match &task.state {
            TaskState::Running => !params.flag("errors") && statuses.is_empty(),
            TaskState::Stopped { exit, .. } => {
                let class = EndClass::of(exit);
                (!params.flag("errors") || !matches!(class, EndClass::Ok | EndClass::Warning))
                    && (statuses.is_empty() || statuses.contains(&class.name()))
            }
        })
        .map(Task::row)
        .collect();
    page(rows, params)
}

/// `GET /cluster/tasks`: the most recent ones of all nodes.
pub(crate) fn recent(cluster: &Cluster) -> Reply {
    Reply::Data(Value::Array(cluster.tasks.iter().take(50).map(Task::row).collect()))
}

fn page(rows: Vec<Value>, params: &Params) -> Reply {
    let as_size = |key, default| params.number(key).and_then(|n| usize::try_from(n).ok()).unwrap_or(default);
    let total = rows.len();
    let limit = match as_size("limit", 50) {
        0 => usize::MAX,
        limit => limit,
    };
    Reply::Page { rows: rows.into_iter().skip(as_size("start", 0)).take(limit).collect(), total }
}

fn find<'a>(cluster: &'a Cluster, node: &str, upid: &str) -> Result<&'a Task, ApiError> {
    cluster
        .tasks
        .get(upid)
        .filter(|task| task.upid.node == node)
        .ok_or_else(|| ApiError::param("upid", "no such task"))
}

/// `GET …/tasks/{upid}/status`.
pub(crate) fn status(cluster: &Cluster, node: &str, upid: &str) -> Result<Reply, ApiError> {
    let task = find(cluster, node, upid)?;
    let mut row = task.row();
    if let Some(map) = row.as_object_mut() {
        map.remove("endtime");
        map.remove("status");
    }
    match &task.state {
        TaskState::Running => row["status"] = json!("running"),
        TaskState::Stopped { exit, .. } => {
            row["status"] = json!("stopped");
            row["exitstatus"] = json!(exit);
        }
    }
    Ok(Reply::Data(row))
}

/// `GET …/tasks/{upid}/log`.
pub(crate) fn log(cluster: &Cluster, node: &str, upid: &str, params: &Params) -> Result<Reply, ApiError> {
    let task = find(cluster, node, upid)?;
    let mut rows: Vec<Value> =
        task.log.iter().enumerate().map(|(index, line)| json!({ "n": index + 1, "t": line })).collect();
    if rows.is_empty() {
        rows.push(json!({ "n": 1, "t": "no content" }));
    }
    Ok(page(rows, params))
}

/// `DELETE …/tasks/{upid}`: interrupts the worker, which rolls nothing back.
pub(crate) fn stop(cluster: &mut Cluster, node: &str, upid: &str) -> Result<Reply, ApiError> {
    if find(cluster, node, upid)?.state == TaskState::Running {
        cluster.tasks.end(upid, "interrupted by signal".to_owned());
    }
    Reply::none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_upid_has_its_nine_fields() {
        let mut table = TaskTable::default();
        let upid = table.start(
            "pve1",
            "vzstart",
            "100",
            "root@pam!fleet",
            Work::RemoveVolume { volid: String::new() },
        );
        assert!(upid.starts_with("UPID:pve1:00001001:00100007:"));
        assert!(upid.ends_with(":vzstart:100:root@pam!fleet:"));
        assert_eq!(upid.matches(':').count(), 8);
    }
}
