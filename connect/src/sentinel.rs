//! Asking Sentinels who the primary is. A Sentinel that is behind, or wrong, must
//! not trap us: all are asked, the newest answer counts first, and the server it
//! names has to say itself that it is the primary.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use redis::{RedisError, Value, aio::MultiplexedConnection};

use crate::{ConnectError, dial::Dialer, node::NodeAddr};

/// How long one Sentinel may take to answer, and to let us in.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// The question after the primary. During a fail-over its answer is the new one, as
/// soon as the leading Sentinel has seen it take over.
const ADDRESS: &str = "GET-MASTER-ADDR-BY-NAME";
/// Most Sentinels that are kept in mind.
const KNOWN_MAX: usize = 16;

/// The Sentinels of one primary.
#[derive(Debug)]
pub(crate) struct Sentinels {
    dialer: Dialer,
    master: String,
    /// Those of the URL, then those that they told of.
    known: Mutex<Vec<NodeAddr>>,
    open: Mutex<HashMap<NodeAddr, MultiplexedConnection>>,
}

/// What one Sentinel says.
#[derive(Debug)]
struct Opinion {
    primary: NodeAddr,
    /// Rises with each fail-over.
    epoch: u64,
    /// It leads a fail-over: of all it is the first to know the new primary.
    leads: bool,
    others: Vec<NodeAddr>,
}

/// A server that may be the primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) node: NodeAddr,
    pub(crate) epoch: u64,
}

impl Sentinels {
    pub(crate) fn new(dialer: Dialer, sentinels: Vec<NodeAddr>, master: String) -> Self {
        Self { dialer, master, known: Mutex::new(sentinels), open: Mutex::default() }
    }

    /// Who may be the primary, the likeliest first. Never empty.
    pub(crate) async fn candidates(&self, endpoint: &str) -> Result<Vec<Candidate>, ConnectError> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let answers = join_all(known.iter().map(|sentinel| self.ask(sentinel))).await;
        let mut opinions = Vec::new();
        let mut failures = Vec::new();
        let mut refused = None;
        for (sentinel, answer) in known.iter().zip(answers) {
            match answer {
                Ok(Some(opinion)) => opinions.push(opinion),
                Ok(None) => failures.push(format!("{sentinel} knows no `{}`", self.master)),
                Err(error) => {
                    self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(sentinel);
                    failures.push(format!("{sentinel}: {error}"));
                    refused = Some(ConnectError::from_redis(&format!("Sentinel {sentinel}"), error));
                }
            }
        }
        self.learn(&opinions);
        let candidates = ranked(&opinions);
        if candidates.is_empty() {
            return Err(match refused {
                // When nobody else has an answer, wrong credentials are the reason to tell.
                Some(error @ ConnectError::Refused { .. }) => error,
                _ => ConnectError::NoPrimary { endpoint: endpoint.to_owned(), why: failures.join("; ") },
            });
        }
        Ok(candidates)
    }

    fn learn(&self, opinions: &[Opinion]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let heard: BTreeSet<&NodeAddr> = opinions.iter().flat_map(|o| &o.others).collect();
        for sentinel in heard {
            if known.len() < KNOWN_MAX && !known.contains(sentinel) {
                known.push(sentinel.clone());
            }
        }
    }

    async fn ask(&self, sentinel: &NodeAddr) -> Result<Option<Opinion>, RedisError> {
        let asked = tokio::time::timeout(PATIENCE, self.ask_patiently(sentinel));
        asked.await.unwrap_or_else(|_| {
            Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time").into())
        })
    }

    async fn ask_patiently(&self, sentinel: &NodeAddr) -> Result<Option<Opinion>, RedisError> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner).get(sentinel).cloned();
        let mut conn = match open {
            Some(conn) => conn,
            None => {
                let conn = self.dialer.dial(sentinel).await?;
                self.open
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(sentinel.clone(), conn.clone());
                conn
            }
        };
        let sentinel_cmd = |what| {
            let mut cmd = redis::cmd("SENTINEL");
            cmd.arg(what).arg(&self.master);
            cmd
        };
        let address = sentinel_cmd(ADDRESS).query_async::<Option<(String, u16)>>(&mut conn).await?;
        let Some((host, port)) = address else { return Ok(None) };
        // The rest helps, but is not needed: a Sentinel's user may not be allowed to ask.
        let master: BTreeMap<String, String> =
            sentinel_cmd("MASTER").query_async(&mut conn).await.unwrap_or_default();
        let others: Vec<BTreeMap<String, Value>> =
            sentinel_cmd("SENTINELS").query_async(&mut conn).await.unwrap_or_default();
        let epoch = master.get("config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
        let leads = master.get("flags").is_some_and(|flags| flags.contains("failover_in_progress"));
        let others = others.into_iter().filter_map(|mut other| {
            let host = redis::from_redis_value(other.remove("ip")?).ok()?;
            let port = redis::from_redis_value(other.remove("port")?).ok()?;
            Some(NodeAddr { host, port })
        });
        Ok(Some(Opinion { primary: NodeAddr { host, port }, epoch, leads, others: others.collect() }))
    }

    /// Whether a Sentinel to which we have a connection names another primary than
    /// `held`, or there is none that answers: one short command each.
    pub(crate) async fn doubt(&self, held: &NodeAddr) -> bool {
        let open: Vec<_> =
            self.open.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let asked = open.into_iter().map(|mut conn| async move {
            let mut cmd = redis::cmd("SENTINEL");
            cmd.arg(ADDRESS).arg(&self.master);
            let address = cmd.query_async::<Option<(String, u16)>>(&mut conn);
            tokio::time::timeout(PATIENCE, address).await.ok()?.ok()?
        });
        let answers = join_all(asked).await;
        let same = |(host, port): &(String, u16)| *host == held.host && *port == held.port;
        answers.is_empty() || answers.iter().any(|answer| !answer.as_ref().is_some_and(same))
    }
}

/// The newest configuration first, then what the leader of a fail-over says, then
/// what most of them say.
fn ranked(opinions: &[Opinion]) -> Vec<Candidate> {
    let mut votes: BTreeMap<&NodeAddr, (u64, bool, usize)> = BTreeMap::new();
    for opinion in opinions {
        let (epoch, leads, count) = votes.entry(&opinion.primary).or_default();
        *epoch = opinion.epoch.max(*epoch);
        *leads |= opinion.leads;
        *count += 1;
    }
    let mut ranked: Vec<_> = votes.into_iter().map(|(node, rank)| (rank, node)).collect();
    ranked.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
    ranked.into_iter().map(|((epoch, ..), node)| Candidate { node: node.clone(), epoch }).collect()
}

/// Whether the server says of itself that it is a primary.
pub(crate) async fn is_primary(conn: &mut MultiplexedConnection) -> Result<bool, RedisError> {
    let role: Vec<Value> = redis::cmd("ROLE").query_async(conn).await?;
    let role = role.into_iter().next().map(redis::from_redis_value::<String>);
    Ok(matches!(role, Some(Ok(role)) if role == "master"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(host: &str, epoch: u64) -> Opinion {
        let primary = NodeAddr { host: host.to_owned(), port: 1 };
        Opinion { primary, epoch, leads: false, others: Vec::new() }
    }

    fn order(opinions: &[Opinion]) -> Vec<String> {
        ranked(opinions).into_iter().map(|c| c.node.host).collect()
    }

    #[test]
    fn the_newest_configuration_wins_over_the_number_of_votes() {
        assert_eq!(order(&[says("old", 1), says("new", 2), says("old", 1)]), ["new", "old"]);
        assert_eq!(order(&[says("a", 1), says("b", 1), says("b", 1)]), ["b", "a"]);
        let leader = Opinion { leads: true, ..says("promoted", 1) };
        assert_eq!(order(&[says("old", 1), leader, says("old", 1)]), ["promoted", "old"]);
        assert!(order(&[]).is_empty());
    }
}
