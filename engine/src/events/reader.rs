//! Reading a queue's event stream on a connection of its own.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use mpanel_connect::{Conn, ConnectError, Redis};
use mpanel_protocol::{
    ids::{Prefix, QueueName},
    keys::QueueKeys,
};
use redis::{FromRedisValue, RedisError, RedisResult, Value};
use tokio_util::task::AbortOnDropHandle;

use super::{EventEntry, EventId, QueueEvent};
use crate::{admin::EVENTS_SUFFIX, marker::client_name};

/// Longest block of one read.
const BLOCK: Duration = Duration::from_secs(5);
/// A reply later than the block plus this breaks the connection.
const GRACE: Duration = Duration::from_secs(2);
/// Pauses after a failure, doubling.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Most entries of one read; fewer while they are large.
const COUNT_MAX: usize = 100;
/// A read of more bytes than this halves the next one.
const BYTES: usize = 4 << 20;

/// From where to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// What happens from now on.
    Now,
    /// What the stream still has, then what happens.
    Oldest,
    /// What came after an entry seen before.
    After(EventId),
}

/// What a reader gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// An entry.
    Event(EventEntry),
    /// Entries behind `after` were trimmed before they were read (the stream keeps
    /// about `opts.maxLenEvents`), or the stream was replaced by another. Who
    /// follows jobs should look at their state.
    Gap {
        /// The last entry seen.
        after: EventId,
        /// How many are missing, where that can be told.
        missed: Option<u64>,
    },
}

/// Reading cannot go on. Whatever passes by itself is waited for instead.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EventsError {
    /// The server refuses us, or the URL is no good.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server answers with an error that waiting does not mend.
    #[error("events of {queue} cannot be read: {source}")]
    Refused {
        /// The queue.
        queue: QueueName,
        /// The cause.
        #[source]
        source: RedisError,
    },
}

/// A reader of one queue's events. Memory is bounded: it reads up to 100 entries
/// ahead.
///
/// ```no_run
/// use mpanel_engine::{Engine, events::{Notice, QueueEvent, Start}};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let engine = Engine::connect("redis://127.0.0.1:6379").await?;
/// let mut events = engine.events("mails", Start::Now)?;
/// loop {
///     match events.next().await? {
///         Notice::Event(entry) => match entry.event {
///             QueueEvent::Failed { id, reason, .. } => println!("{id} failed: {reason}"),
///             _ => {}
///         },
///         Notice::Gap { after, .. } => println!("events after {after} were trimmed unread"),
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct QueueEvents {
    redis: Redis,
    keys: QueueKeys,
    client_name: String,
    start: Start,
    /// The last entry taken over from the stream; none before the first contact.
    last: Option<EventId>,
    /// How many entries the stream had been given up to `last`, where known.
    position: Option<u64>,
    conn: Option<Conn>,
    /// The read that is under way. It outlives a call that is dropped: its answer is
    /// the next call's, and reads do not pile up at the server.
    reading: Option<AbortOnDropHandle<RedisResult<Value>>>,
    ahead: VecDeque<Notice>,
    count: usize,
}

impl QueueEvents {
    /// A reader that begins with its first [`QueueEvents::next`].
    #[must_use]
    pub fn new(redis: Redis, prefix: &Prefix, queue: &QueueName, start: Start) -> Self {
        let keys = QueueKeys::new(prefix, queue);
        let client_name = format!("{}{EVENTS_SUFFIX}", client_name(prefix, &keys, None));
        Self {
            redis,
            keys,
            client_name,
            start,
            last: None,
            position: None,
            conn: None,
            reading: None,
            ahead: VecDeque::new(),
            count: COUNT_MAX,
        }
    }

    /// Fixes where [`Start::Now`] is: events after this call are given. Without it
    /// the first [`QueueEvents::next`] does so.
    ///
    /// # Errors
    /// [`EventsError`]; a server that is away is waited for.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn ready(&mut self) -> Result<(), EventsError> {
        let mut pause = PAUSE_MIN;
        loop {
            match self.begin().await {
                Ok(()) => return Ok(()),
                Err(failure) => self.pause_after(failure, &mut pause).await?,
            }
        }
    }

    /// The next event; waits for one. Connections that break are replaced, and
    /// reading goes on behind the last entry.
    ///
    /// # Errors
    /// [`EventsError`].
    ///
    /// # Cancel safety
    /// Cancel safe: no entry is lost, and the next call goes on with the same read.
    pub async fn next(&mut self) -> Result<Notice, EventsError> {
        let mut pause = PAUSE_MIN;
        loop {
            if let Some(notice) = self.ahead.pop_front() {
                return Ok(notice);
            }
            match self.read().await {
                Ok(()) => pause = PAUSE_MIN,
                Err(failure) => self.pause_after(failure, &mut pause).await?,
            }
        }
    }

    async fn pause_after(&mut self, failure: Failure, pause: &mut Duration) -> Result<(), EventsError> {
        self.conn = None;
        self.reading = None;
        match failure {
            Failure::Connect(error) if !error.is_retryable() => return Err(error.into()),
            Failure::Redis(source) if is_final(&source) => {
                return Err(EventsError::Refused { queue: self.keys.queue().clone(), source });
            }
            failure => {
                tracing::debug!(queue = %self.keys.queue(), ?failure, "reading events failed; connecting anew");
                tokio::time::sleep(*pause).await;
                *pause = (*pause * 2).min(PAUSE_MAX);
            }
        }
        Ok(())
    }

    /// Connects, and finds out where to begin.
    async fn begin(&mut self) -> Result<(), Failure> {
        if self.conn.is_none() {
            let key = self.keys.events();
            self.conn = Some(self.redis.dedicated(&key, Some(&self.client_name), BLOCK + GRACE).await?);
        }
        if self.last.is_none() {
            let about = self.about().await?;
            (self.last, self.position) = match self.start {
                Start::Now => (Some(about.last), about.added),
                Start::Oldest => {
                    (Some(EventId::ZERO), about.added.map(|added| added - about.length.min(added)))
                }
                Start::After(id) => (Some(id), (id == about.last).then_some(about.added).flatten()),
            };
        }
        Ok(())
    }

    async fn read(&mut self) -> Result<(), Failure> {
        self.begin().await?;
        let Some(after) = self.last else { return Ok(()) };
        let reply = self.read_after(after).await?;
        let entries = entries(reply)?;
        let Some(newest) = entries.last().map(|(id, _)| *id) else {
            return self.look_whether_replaced(after).await;
        };
        let gap = self.gap(after).await?;
        let bytes: usize = entries.iter().map(|(_, fields)| size(fields)).sum();
        self.count = if bytes > BYTES { (self.count / 2).max(1) } else { (self.count * 2).min(COUNT_MAX) };
        // From here on nothing waits: what was read is taken over as a whole.
        if let Some(missed) = gap {
            self.ahead.push_back(Notice::Gap { after, missed });
            self.position = self.position.zip(missed).map(|(position, missed)| position + missed);
        }
        self.position = self.position.map(|position| position + entries.len() as u64);
        self.last = Some(newest);
        let events =
            entries.into_iter().map(|(id, fields)| EventEntry { id, event: QueueEvent::from_fields(fields) });
        self.ahead.extend(events.map(Notice::Event));
        Ok(())
    }

    async fn read_after(&mut self, after: EventId) -> Result<Value, Failure> {
        let reading = match &mut self.reading {
            Some(reading) => reading,
            None => {
                let Some(mut conn) = self.conn.clone() else { return Err(not_connected().into()) };
                let mut read = redis::cmd("XREAD");
                read.arg("COUNT").arg(self.count).arg("BLOCK").arg(millis(BLOCK));
                read.arg("STREAMS").arg(self.keys.events()).arg(after.to_string());
                let reading = tokio::spawn(async move { read.query_async(&mut conn).await });
                self.reading.insert(AbortOnDropHandle::new(reading))
            }
        };
        let reply = reading.await;
        self.reading = None;
        // Without an answer the runtime is being shut down.
        Ok(reply.unwrap_or_else(|_| Err(not_connected()))?)
    }

    /// Whether entries behind `after` were trimmed; how many, where it can be told.
    async fn gap(&mut self, after: EventId) -> Result<Option<Option<u64>>, Failure> {
        if after == EventId::ZERO {
            return Ok(None);
        }
        let key = self.keys.events();
        let mut older = redis::cmd("XRANGE");
        older.arg(&key).arg("-").arg(after.to_string()).arg("COUNT").arg(1);
        let older: Value = self.ask(&older).await?;
        // Trimming goes from the oldest on: as long as one that old is there, nothing is missing.
        if !matches!(&older, Value::Array(entries) if entries.is_empty()) {
            return Ok(None);
        }
        let about = self.about().await?;
        let trimmed = about.added.map(|added| added.saturating_sub(about.length));
        Ok(match (trimmed, self.position) {
            (Some(trimmed), Some(position)) => (trimmed > position).then(|| Some(trimmed - position)),
            _ => Some(None),
        })
    }

    /// A stream that was deleted and begun anew on a server with an earlier clock
    /// has lower ids: it is read from its start.
    async fn look_whether_replaced(&mut self, after: EventId) -> Result<(), Failure> {
        let about = self.about().await?;
        if about.last < after && about.length > 0 {
            self.ahead.push_back(Notice::Gap { after, missed: None });
            self.last = Some(EventId::ZERO);
            self.position = None;
        }
        Ok(())
    }

    async fn about(&mut self) -> Result<About, Failure> {
        let key = self.keys.events();
        let mut info = redis::cmd("XINFO");
        info.arg("STREAM").arg(&key);
        match self.ask::<BTreeMap<String, Value>>(&info).await {
            Ok(fields) => {
                let number =
                    |name: &str| fields.get(name).and_then(|v| u64::from_redis_value(v.clone()).ok());
                let id =
                    fields.get("last-generated-id").and_then(|v| String::from_redis_value(v.clone()).ok());
                Ok(About {
                    last: id.and_then(|id| id.parse().ok()).unwrap_or_default(),
                    length: number("length").unwrap_or(0),
                    // Since Redis 7.
                    added: number("entries-added"),
                })
            }
            // No stream yet.
            Err(Failure::Redis(e)) if e.to_string().contains("no such key") => {
                Ok(About { last: EventId::ZERO, length: 0, added: Some(0) })
            }
            Err(failure) => Err(failure),
        }
    }

    async fn ask<T: FromRedisValue>(&mut self, cmd: &redis::Cmd) -> Result<T, Failure> {
        match &mut self.conn {
            Some(conn) => Ok(cmd.query_async(conn).await?),
            None => Err(not_connected().into()),
        }
    }
}

fn not_connected() -> RedisError {
    (redis::ErrorKind::Io, "not connected").into()
}

/// What XINFO says of the stream.
struct About {
    last: EventId,
    length: u64,
    added: Option<u64>,
}

#[derive(Debug)]
enum Failure {
    Connect(ConnectError),
    Redis(RedisError),
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self::Connect(error)
    }
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        Self::Redis(error)
    }
}

/// Whether trying again gives the same: the key is no stream, or we may not read it.
fn is_final(error: &RedisError) -> bool {
    matches!(error.code(), Some("WRONGTYPE" | "NOPERM"))
}

type Fields = BTreeMap<String, String>;

/// The entries of an XREAD reply; nil when nothing came. Fields whose entry was
/// deleted meanwhile are nil; such entries are passed over.
fn entries(reply: Value) -> Result<Vec<(EventId, Fields)>, RedisError> {
    type Entry = (String, Option<Vec<(Vec<u8>, Vec<u8>)>>);
    let streams: Option<Vec<(Value, Vec<Entry>)>> = match reply {
        // RESP3 gives a map.
        Value::Map(pairs) => {
            let pairs = pairs.into_iter().map(|(k, v)| Ok((k, FromRedisValue::from_redis_value(v)?)));
            Some(pairs.collect::<Result<_, redis::ParsingError>>()?)
        }
        other => FromRedisValue::from_redis_value(other)?,
    };
    let entries = streams.into_iter().flatten().flat_map(|(_, entries)| entries);
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(entries
        .filter_map(|(id, fields)| {
            let fields = fields?.into_iter().map(|(name, value)| (text(name), text(value))).collect();
            Some((id.parse().ok()?, fields))
        })
        .collect())
}

fn size(fields: &Fields) -> usize {
    fields.iter().map(|(name, value)| name.len() + value.len()).sum()
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
