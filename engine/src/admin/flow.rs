//! Children of a job: counts, pages, the tree. What a tree may show is bounded;
//! a tree that leads back to itself ends there.

use std::{collections::BTreeMap, pin::Pin};

use mpanel_protocol::{
    calls::manage::Removal,
    ids::{JobId, QueueName},
    keys::QueueKeys,
    state::JobState,
};

use super::{AdminError, JobDetail, QueueAdmin};

/// A job in any queue under the same prefix or another.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobRef {
    /// Its full key, as parents and children name each other.
    pub key: String,
    /// Its queue.
    pub queue: String,
    /// Its id.
    pub id: JobId,
}

/// What became of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DependencyKind {
    /// Not finished.
    Unprocessed,
    /// Completed; its value is kept with the parent.
    Processed,
    /// Failed, and the parent goes on all the same (`ignoreDependencyOnFailure`,
    /// `continueParentOnFailure`); its reason is kept.
    Ignored,
    /// Failed, and the parent fails with it (`failParentOnFailure`).
    Failed,
}

impl DependencyKind {
    /// Every kind, in the order a tree lists them.
    pub const ALL: [Self; 4] = [Self::Processed, Self::Unprocessed, Self::Failed, Self::Ignored];

    fn part(self) -> &'static str {
        match self {
            Self::Unprocessed => "dependencies",
            Self::Processed => "processed",
            Self::Ignored => "failed",
            Self::Failed => "unsuccessful",
        }
    }
}

/// How many children of each kind a job has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DependencyCounts {
    /// Not finished.
    pub unprocessed: u64,
    /// Completed.
    pub processed: u64,
    /// Failed, ignored by the parent.
    pub ignored: u64,
    /// Failed, and the parent with them.
    pub failed: u64,
}

impl DependencyCounts {
    /// All children.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.unprocessed + self.processed + self.ignored + self.failed
    }
}

/// A child, with what the parent keeps of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// Its key.
    pub key: String,
    /// JSON text of its value when it completed, its reason when it was ignored.
    pub kept: Option<String>,
}

/// Some children of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DependencyPage {
    /// The children.
    pub children: Vec<Dependency>,
    /// Where the next page begins; none after the last. A child may come twice.
    pub next: Option<u64>,
}

/// How much of a tree is read.
#[derive(Debug, Clone, Copy)]
pub struct FlowLimits {
    /// Levels, the root being the first.
    pub depth: u32,
    /// Children of each job.
    pub children: u32,
    /// Jobs in all.
    pub jobs: u32,
}

impl Default for FlowLimits {
    /// Node's: 10 levels, 20 children a job; and 10,000 jobs in all.
    fn default() -> Self {
        Self { depth: 10, children: 20, jobs: 10_000 }
    }
}

/// A job with its children.
#[derive(Debug, Clone, PartialEq)]
pub struct FlowTree {
    /// Which job.
    pub job: JobRef,
    /// As stored.
    pub detail: JobDetail,
    /// Where it is.
    pub state: Option<JobState>,
    /// How many children it has, shown or not.
    pub counts: DependencyCounts,
    /// The children shown, with what became of them.
    pub children: Vec<(DependencyKind, Subtree)>,
}

/// A child in a tree.
#[derive(Debug, Clone, PartialEq)]
pub enum Subtree {
    /// With what is below it.
    Job(Box<FlowTree>),
    /// Its hash is gone (removed after it finished).
    Gone(String),
    /// It is above itself: the flow is circular, and is not followed further.
    Circle(JobRef),
    /// The limits end here.
    NotShown(String),
}

type Boxed<'a, T> = Pin<Box<dyn Future<Output = Result<T, AdminError>> + Send + 'a>>;

impl QueueAdmin {
    /// How many children a job has, by what became of them. A key of another type
    /// counts as none.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn dependency_counts(&self, id: &JobId) -> Result<DependencyCounts, AdminError> {
        let key = |kind: DependencyKind| format!("{}:{}", self.keys.job(id), kind.part());
        let mut pipe = redis::pipe();
        pipe.ignore_errors()
            .scard(key(DependencyKind::Unprocessed))
            .hlen(key(DependencyKind::Processed))
            .hlen(key(DependencyKind::Ignored))
            .zcard(key(DependencyKind::Failed));
        let replies: Vec<redis::RedisResult<u64>> = self.ask_all(&pipe).await?;
        let count = |i: usize| replies.get(i).and_then(|r| r.as_ref().ok()).copied().unwrap_or(0);
        Ok(DependencyCounts {
            unprocessed: count(0),
            processed: count(1),
            ignored: count(2),
            failed: count(3),
        })
    }

    /// Some children of one kind, about `count`, from a page's
    /// [`next`](DependencyPage::next) or 0 on.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn dependencies(
        &self,
        id: &JobId,
        kind: DependencyKind,
        from: u64,
        count: u32,
    ) -> Result<DependencyPage, AdminError> {
        let key = format!("{}:{}", self.keys.job(id), kind.part());
        let count = count.clamp(1, 1000);
        let (next, flat): (u64, Vec<Vec<u8>>) = match kind {
            DependencyKind::Failed => {
                let last = from + u64::from(count) - 1;
                let keys: Vec<Vec<u8>> = self.ask(redis::cmd("ZRANGE").arg(&key).arg(from).arg(last)).await?;
                (if keys.len() as u64 == u64::from(count) { last + 1 } else { 0 }, keys)
            }
            DependencyKind::Unprocessed => {
                self.ask(redis::cmd("SSCAN").arg(&key).arg(from).arg("COUNT").arg(count)).await?
            }
            DependencyKind::Processed | DependencyKind::Ignored => {
                self.ask(redis::cmd("HSCAN").arg(&key).arg(from).arg("COUNT").arg(count)).await?
            }
        };
        let mut texts = flat.into_iter().map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let mut children = Vec::new();
        let pairs = matches!(kind, DependencyKind::Processed | DependencyKind::Ignored);
        while let Some(key) = texts.next() {
            children.push(Dependency { key, kept: if pairs { texts.next() } else { None } });
        }
        Ok(DependencyPage { children, next: (next != 0).then_some(next) })
    }

    /// The values of a parent's completed children, by key; at most `most`.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn children_values(
        &self,
        id: &JobId,
        most: usize,
    ) -> Result<BTreeMap<String, String>, AdminError> {
        let mut values = BTreeMap::new();
        let mut from = Some(0);
        while let Some(cursor) = from.filter(|_| values.len() < most) {
            let page = self.dependencies(id, DependencyKind::Processed, cursor, 500).await?;
            let left = most - values.len();
            values.extend(page.children.into_iter().filter_map(|c| Some((c.key, c.kept?))).take(left));
            from = page.next;
        }
        Ok(values)
    }

    /// A job with its children and theirs, within `limits`; none when its key does
    /// not exist.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn flow(&self, id: &JobId, limits: FlowLimits) -> Result<Option<FlowTree>, AdminError> {
        let mut left = limits.jobs.max(1);
        let mut above = Vec::new();
        self.tree(id.clone(), limits, limits.depth.max(1), &mut left, &mut above).await
    }

    fn tree<'a>(
        &'a self,
        id: JobId,
        limits: FlowLimits,
        depth: u32,
        left: &'a mut u32,
        above: &'a mut Vec<String>,
    ) -> Boxed<'a, Option<FlowTree>> {
        Box::pin(async move {
            let Some(detail) = self.job(&id).await? else { return Ok(None) };
            *left = left.saturating_sub(1);
            let key = self.keys.job(&id);
            let mut tree = FlowTree {
                job: JobRef { key: key.clone(), queue: self.queue().to_string(), id: id.clone() },
                detail,
                state: self.state(&id).await?,
                counts: self.dependency_counts(&id).await?,
                children: Vec::new(),
            };
            if depth <= 1 {
                return Ok(Some(tree));
            }
            above.push(key);
            for (kind, child) in self.first_children(&id, tree.counts, limits.children).await? {
                let subtree = match self.job_ref(&child) {
                    _ if *left == 0 => Subtree::NotShown(child),
                    Some(found) if above.contains(&found.key) => Subtree::Circle(found),
                    Some(found) => match self.beside(&found) {
                        Some(admin) => {
                            let below = admin.tree(found.id, limits, depth - 1, left, above).await?;
                            below.map_or(Subtree::Gone(child), |tree| Subtree::Job(Box::new(tree)))
                        }
                        None => Subtree::NotShown(child),
                    },
                    None => Subtree::Gone(child),
                };
                tree.children.push((kind, subtree));
            }
            above.pop();
            Ok(Some(tree))
        })
    }

    async fn first_children(
        &self,
        id: &JobId,
        counts: DependencyCounts,
        most: u32,
    ) -> Result<Vec<(DependencyKind, String)>, AdminError> {
        let mut found: Vec<(DependencyKind, String)> = Vec::new();
        for kind in DependencyKind::ALL {
            let there = match kind {
                DependencyKind::Processed => counts.processed,
                DependencyKind::Unprocessed => counts.unprocessed,
                DependencyKind::Failed => counts.failed,
                DependencyKind::Ignored => counts.ignored,
            };
            let mut from = (there > 0).then_some(0);
            while let Some(cursor) = from.filter(|_| found.len() < most as usize) {
                let page = self.dependencies(id, kind, cursor, most).await?;
                for child in page.children {
                    // A scan may give one twice.
                    if found.len() < most as usize && !found.iter().any(|(_, key)| *key == child.key) {
                        found.push((kind, child.key));
                    }
                }
                from = page.next;
            }
        }
        Ok(found)
    }

    /// What a full job key means. Keys under our own prefix are read by it, since
    /// a prefix may hold colons.
    fn job_ref(&self, key: &str) -> Option<JobRef> {
        let own = format!("{}:", self.prefix);
        let (_, rest) = match key.strip_prefix(&own) {
            Some(rest) => (self.prefix.as_str(), rest),
            None => key.split_once(':')?,
        };
        let (queue, id) = rest.split_once(':')?;
        Some(JobRef { key: key.to_owned(), queue: queue.to_owned(), id: JobId::stored(id) })
    }

    /// The handle on the queue of another job.
    fn beside(&self, job: &JobRef) -> Option<Self> {
        let prefix = job.key.strip_suffix(&format!(":{}:{}", job.queue, job.id))?;
        let prefix = mpanel_protocol::ids::Prefix::new(prefix).ok()?;
        let queue = QueueName::new(&job.queue).ok()?;
        Some(Self { keys: QueueKeys::new(&prefix, &queue), prefix, ..self.clone() })
    }

    /// Takes away the children of a job that are not finished, but those that a
    /// worker holds; gives back how many went and how many are held.
    ///
    /// # Errors
    /// [`AdminError`]; what was removed before stays removed.
    pub async fn remove_unprocessed_children(&self, id: &JobId) -> Result<(u64, u64), AdminError> {
        let mut children = Vec::new();
        let mut from = Some(0);
        while let Some(cursor) = from {
            let page = self.dependencies(id, DependencyKind::Unprocessed, cursor, 500).await?;
            children.extend(page.children.into_iter().map(|child| child.key));
            from = page.next;
        }
        children.sort();
        children.dedup();
        let (mut removed, mut held) = (0, 0);
        for key in children {
            let Some(child) = self.job_ref(&key) else { continue };
            let Some(admin) = self.beside(&child) else { continue };
            match admin.remove(&child.id).await? {
                Removal::Removed => removed += 1,
                Removal::Locked => held += 1,
            }
        }
        Ok((removed, held))
    }
}
