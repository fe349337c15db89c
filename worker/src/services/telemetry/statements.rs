//! From counters that only grow, and now and then begin anew, to what happened
//! since the last tick. Pure.
//!
//! An entry that is smaller than before, or says that its counting began anew,
//! was reset or evicted and came back: all it says happened since. An entry that
//! was not there before is counted whole for the same reason. Before PG 17 an
//! eviction cannot be seen when the entry has grown past its old figure: then
//! too little is counted, never too much.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::adapters::pg_stats::{Statement, StatementKey};

/// Counters at a tick; what is kept until the next.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// When they were read, epoch ms.
    pub at_ms: i64,
    /// When all were last reset, µs; absent before PG 14.
    pub reset_us: Option<i64>,
    /// When the server was started, µs.
    pub started_us: i64,
    /// The counters.
    pub statements: Vec<Statement>,
    /// Statements that were slow, and when last, epoch ms: they are followed
    /// while the window lasts.
    #[serde(default)]
    pub slow: Vec<(StatementKey, i64)>,
}

/// What a statement did since the last tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delta {
    /// The statement.
    pub key: StatementKey,
    /// Calls.
    pub calls: i64,
    /// Time, µs.
    pub time_us: i64,
}

/// What happened between two snapshots. Nothing is said when the first is so
/// old that what happened would be told of the wrong time.
#[must_use]
pub fn deltas(before: &Snapshot, now: &Snapshot, age_max: Duration) -> Vec<Delta> {
    let age_ms = now.at_ms.saturating_sub(before.at_ms);
    if u128::try_from(age_ms).is_ok_and(|age| age > age_max.as_millis()) {
        return Vec::new();
    }
    let reset = before.reset_us != now.reset_us;
    let known: BTreeMap<StatementKey, &Statement> =
        before.statements.iter().map(|statement| (statement.key, statement)).collect();
    now.statements
        .iter()
        .filter_map(|statement| {
            let old = known.get(&statement.key).filter(|old| !reset && !began_anew(old, statement));
            let (calls, time_us) = old.map_or((0, 0), |old| (old.calls, old.time_us));
            let delta = Delta {
                key: statement.key,
                calls: statement.calls - calls,
                time_us: (statement.time_us - time_us).max(0),
            };
            (delta.calls > 0).then_some(delta)
        })
        .collect()
}

fn began_anew(old: &Statement, now: &Statement) -> bool {
    let since = matches!((old.since_us, now.since_us), (Some(old), Some(now)) if old != now);
    since || now.calls < old.calls || now.time_us < old.time_us
}

/// Which are slow: by their mean, or by their share of all time.
#[derive(Debug, Clone, Copy)]
pub struct Slowness {
    /// From this mean duration on.
    pub mean: Duration,
    /// Or from this share of all time on, percent, when that is as much time as one
    /// slow call: where nothing happens, every trifle has a share.
    pub share_percent: i64,
    /// So many at most.
    pub top: usize,
}

/// The slow ones, those that took most time first, and those that were slow
/// lately whatever they did now.
#[must_use]
pub fn slow(deltas: &[Delta], rule: Slowness, lately: &BTreeSet<StatementKey>) -> Vec<Delta> {
    let all_us: i128 = deltas.iter().map(|delta| i128::from(delta.time_us)).sum();
    let mean_us = i128::try_from(rule.mean.as_micros()).unwrap_or(i128::MAX);
    let is_slow = |delta: &Delta| {
        let time = i128::from(delta.time_us);
        time >= mean_us.saturating_mul(i128::from(delta.calls))
            || (time >= mean_us && time * 100 >= all_us * i128::from(rule.share_percent).max(1))
    };
    let mut found: Vec<Delta> = deltas.iter().copied().filter(is_slow).collect();
    found.sort_by_key(|delta| std::cmp::Reverse(delta.time_us));
    found.truncate(rule.top);
    let mut followed: Vec<Delta> = deltas
        .iter()
        .copied()
        .filter(|delta| lately.contains(&delta.key) && !found.iter().any(|other| other.key == delta.key))
        .collect();
    found.append(&mut followed);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn statement(queryid: i64, calls: i64, time_us: i64, since_us: Option<i64>) -> Statement {
        Statement {
            key: StatementKey { database: 5, user: 10, top: true, queryid },
            calls,
            time_us,
            since_us,
        }
    }

    fn snapshot(at_s: i64, statements: Vec<Statement>) -> Snapshot {
        Snapshot { at_ms: at_s * 1000, reset_us: Some(1), started_us: 1, statements, slow: Vec::new() }
    }

    fn told(before: &Snapshot, now: &Snapshot) -> Vec<(i64, i64, i64)> {
        deltas(before, now, HOUR).iter().map(|d| (d.key.queryid, d.calls, d.time_us)).collect()
    }

    #[test]
    fn counters_become_what_happened_since() {
        let before = snapshot(0, vec![statement(-1, 10, 1000, None), statement(2, 5, 500, None)]);
        let later = |statements| snapshot(30, statements);
        // Grown, and unchanged.
        let now = later(vec![statement(-1, 13, 1600, None), statement(2, 5, 500, None)]);
        assert_eq!(told(&before, &now), [(-1, 3, 600)]);
        // Evicted and back, or reset by itself: fewer calls, or less time.
        assert_eq!(told(&before, &later(vec![statement(-1, 4, 400, None)])), [(-1, 4, 400)]);
        assert_eq!(told(&before, &later(vec![statement(-1, 12, 700, None)])), [(-1, 12, 700)]);
        // New.
        assert_eq!(told(&before, &later(vec![statement(3, 2, 20, None)])), [(3, 2, 20)]);
        // All reset, and grown past the old figures since.
        let reset = Snapshot { reset_us: Some(2), ..later(vec![statement(-1, 11, 1100, None)]) };
        assert_eq!(told(&before, &reset), [(-1, 11, 1100)]);
        // PG 17 says when an entry was begun.
        let since = snapshot(0, vec![statement(-1, 10, 1000, Some(7))]);
        assert_eq!(told(&since, &later(vec![statement(-1, 11, 1100, Some(8))])), [(-1, 11, 1100)]);
        assert_eq!(told(&since, &later(vec![statement(-1, 11, 1100, Some(7))])), [(-1, 1, 100)]);
    }

    #[test]
    fn an_old_snapshot_is_only_begun_from_anew() {
        let before = snapshot(0, vec![statement(1, 10, 1000, None)]);
        let now = snapshot(3601, vec![statement(1, 20, 2000, None)]);
        assert_eq!(told(&before, &now), []);
    }

    #[test]
    fn slow_is_by_mean_or_by_share_and_followed_for_a_while() {
        let delta = |queryid, calls, time_us| {
            let statement = statement(queryid, calls, time_us, None);
            Delta { key: statement.key, calls, time_us }
        };
        let rule = Slowness { mean: Duration::from_millis(100), share_percent: 5, top: 2 };
        let all = [
            delta(1, 1, 100_000),
            delta(2, 100_000, 900_000),
            delta(3, 10, 9_999),
            delta(4, 1, 99_999),
            delta(5, 1, 5),
        ];
        let keys = |lately: &[i64]| -> Vec<i64> {
            let lately = all.iter().map(|d| d.key).filter(|k| lately.contains(&k.queryid)).collect();
            slow(&all, rule, &lately).iter().map(|delta| delta.key.queryid).collect()
        };
        assert_eq!(keys(&[]), [2, 1]);
        assert_eq!(keys(&[5, 1]), [2, 1, 5]);
        // A large share of next to nothing.
        let quiet = [delta(4, 10, 99_999), delta(6, 1, 1)];
        assert_eq!(slow(&quiet, rule, &BTreeSet::new()), []);
    }
}
