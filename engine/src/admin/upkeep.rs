//! Upkeep of the queue's keys: trimming the event stream, deleting what no list
//! or set names any more.

use std::{collections::HashSet, pin::Pin};

use mpanel_protocol::{calls::sweep, ids::JobId};

use super::{AdminError, Bulk, QueueAdmin, bulk::Chunked, script};

/// How many entries or keys one call looks at.
const CHUNK: usize = 1000;
/// How many jobs one call of the script checks; each costs a look through the lists.
const CHECK: usize = 10;

type Chunk<'a, T> = Pin<Box<dyn Future<Output = Result<Option<T>, AdminError>> + Send + 'a>>;

/// See [`QueueAdmin::trim_events`].
#[derive(Debug)]
pub struct TrimSweep {
    keep: u64,
    gone: u64,
}

impl Chunked for TrimSweep {
    type Output = u64;

    fn chunk<'a>(&'a mut self, admin: &'a QueueAdmin, done: &'a mut u64) -> Chunk<'a, u64> {
        Box::pin(async move {
            let key = admin.keys.events();
            let mut trim = redis::cmd("XTRIM");
            trim.arg(key).arg("MAXLEN").arg("~").arg(self.keep).arg("LIMIT").arg(CHUNK);
            let gone: u64 = admin.ask(&trim).await?;
            *done += gone;
            self.gone += gone;
            Ok((gone == 0).then_some(self.gone))
        })
    }
}

/// See [`QueueAdmin::remove_orphans`].
#[derive(Debug)]
pub struct OrphanSweep {
    cursor: u64,
    /// Ids in lists when the search began; they need no look one by one.
    listed: Option<HashSet<String>>,
    seen: HashSet<String>,
    gone: u64,
}

impl Chunked for OrphanSweep {
    type Output = u64;

    fn chunk<'a>(&'a mut self, admin: &'a QueueAdmin, done: &'a mut u64) -> Chunk<'a, u64> {
        Box::pin(async move {
            let listed = match &self.listed {
                Some(listed) => listed,
                None => self.listed.insert(admin.listed_ids().await?),
            };
            let base = admin.keys.base();
            let mut scan = redis::cmd("SCAN");
            scan.arg(self.cursor).arg("MATCH").arg(format!("{}*", glob(base))).arg("COUNT").arg(CHUNK);
            let (cursor, keys): (u64, Vec<Vec<u8>>) = admin.ask(&scan).await?;
            let candidates: HashSet<String> = keys
                .iter()
                .filter_map(|key| std::str::from_utf8(key).ok()?.strip_prefix(base).and_then(job_id))
                .filter(|id| !listed.contains(*id) && !self.seen.contains(*id))
                .map(ToOwned::to_owned)
                .collect();
            let orphans = admin.in_no_set(candidates.into_iter().collect()).await?;
            for ids in orphans.chunks(CHECK) {
                let gone = script!(admin, |conn| sweep::remove_orphans(conn, &admin.keys, ids))?;
                *done += gone;
                self.gone += gone;
                self.seen.extend(ids.iter().map(|id| id.as_str().to_owned()));
            }
            self.cursor = cursor;
            Ok((cursor == 0).then_some(self.gone))
        })
    }
}

/// The job behind a key, as BullMQ's own search reads it: ids with colons are
/// left alone, since nothing tells them from other keys.
fn job_id(suffix: &str) -> Option<&str> {
    const PARTS: [&str; 6] = ["logs", "dependencies", "processed", "failed", "unsuccessful", "lock"];
    let (id, part) = suffix.split_once(':').map_or((suffix, None), |(id, part)| (id, Some(part)));
    let known = part.is_none_or(|part| PARTS.contains(&part));
    // Structural names are refused as custom ids; integers are the queue's own.
    let integer = !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit());
    (known && (integer || JobId::custom(id).is_ok())).then_some(id)
}

/// Text that a glob pattern takes literally.
fn glob(text: &str) -> String {
    text.chars().flat_map(|c| "*?[]\\".contains(c).then_some('\\').into_iter().chain([c])).collect()
}

impl QueueAdmin {
    /// Drops old events until about `keep` are left; gives back how many went.
    /// Redis drops whole nodes of 100 entries.
    pub fn trim_events(&self, keep: u64) -> Bulk<'_, TrimSweep> {
        Bulk::new(self, TrimSweep { keep, gone: 0 })
    }

    /// Deletes the keys of jobs that no list or set of the queue names; gives back
    /// how many. Goes through all keys of the server, and holds the ids of jobs in
    /// line in memory meanwhile.
    pub fn remove_orphans(&self) -> Bulk<'_, OrphanSweep> {
        Bulk::new(self, OrphanSweep { cursor: 0, listed: None, seen: HashSet::new(), gone: 0 })
    }

    async fn listed_ids(&self) -> Result<HashSet<String>, AdminError> {
        let mut ids = HashSet::new();
        for list in [self.keys.wait(), self.keys.paused(), self.keys.active()] {
            // From the tail: what is added meanwhile comes in at the head.
            let mut end: isize = -1;
            loop {
                let start = end - 4999;
                let page: Vec<String> = self.ask(redis::cmd("LRANGE").arg(&list).arg(start).arg(end)).await?;
                if page.is_empty() {
                    break;
                }
                ids.extend(page);
                end = start - 1;
            }
        }
        Ok(ids)
    }

    async fn in_no_set(&self, candidates: Vec<String>) -> Result<Vec<JobId>, AdminError> {
        let k = &self.keys;
        let sets = [k.completed(), k.failed(), k.delayed(), k.prioritized(), k.waiting_children()];
        let mut orphans = Vec::new();
        for chunk in candidates.chunks(CHUNK / sets.len()) {
            let mut pipe = redis::pipe();
            for id in chunk {
                for set in &sets {
                    pipe.zscore(set, id);
                }
            }
            let scores: Vec<Option<f64>> = self.ask_all(&pipe).await?;
            let named = scores.chunks(sets.len()).map(|scores| scores.iter().any(Option::is_some));
            orphans.extend(
                chunk.iter().zip(named).filter(|(_, named)| !named).map(|(id, _)| JobId::stored(id.clone())),
            );
        }
        Ok(orphans)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_told_from_other_keys() {
        for (suffix, id) in [("7", "7"), ("7:logs", "7"), ("mail-1:lock", "mail-1")] {
            assert_eq!(job_id(suffix), Some(id), "{suffix}");
        }
        for suffix in ["meta", "wait", "repeat:x", "de:7", "metrics:completed", "7:other", "repeat:a:7", ""] {
            assert_eq!(job_id(suffix), None, "{suffix}");
        }
        assert_eq!(glob("a*b[c]:"), "a\\*b\\[c\\]:");
    }
}
