//! [`Conn`]: a connection that knows where it leads. In a Cluster it follows
//! redirections of commands that the server did not run, so that no caller has to;
//! and it ends at once when its server stopped being the primary, in place of
//! waiting for an answer that a frozen server may give much later.
//!
//! It repeats nothing that may have been done: that is the callers' decision.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use redis::{
    Cmd, Pipeline, RedisError, RedisFuture, RedisResult, Value, aio::ConnectionLike,
    aio::MultiplexedConnection,
};
use tokio_util::sync::CancellationToken;

use crate::{
    ConnectError,
    redis_handle::{Inner, Place},
    slots::redirection,
};

/// How long a command that the Cluster refuses for the moment is sent again.
const REDIRECT_WITHIN: Duration = Duration::from_secs(3);
/// Pauses in between, doubling.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// A physical connection, and which server's it is.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) conn: MultiplexedConnection,
    pub(crate) place: Place,
    pub(crate) generation: u64,
    /// Cancelled when the server is no primary any more.
    pub(crate) cut: CancellationToken,
}

/// A connection to Redis. Clones share it.
#[derive(Clone)]
pub struct Conn {
    pub(crate) link: Link,
    pub(crate) routes: Routes,
}

/// What to do with redirections.
#[derive(Clone)]
pub(crate) enum Routes {
    /// There are none: not a Cluster, and no other server to turn to.
    None,
    /// Sentinels watch over the server; it may be cut.
    Watched,
    /// They are remembered for the next connection; this one belongs to a server.
    Note(Arc<Inner>),
    /// They are followed.
    Follow(Arc<Inner>),
}

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conn")
            .field("place", &self.link.place)
            .field("generation", &self.link.generation)
            .finish_non_exhaustive()
    }
}

/// The server does not serve these keys now, and has not run the command.
enum Refusal {
    Moved,
    Ask,
    Later,
}

fn refusal(error: &RedisError) -> Option<Refusal> {
    match error.code()? {
        "MOVED" => Some(Refusal::Moved),
        "ASK" => Some(Refusal::Ask),
        "TRYAGAIN" => Some(Refusal::Later),
        // A transaction was given up before any of it ran; why, its parts tell.
        "EXECABORT" => {
            let parts = error.clone().into_server_errors()?;
            let code = parts
                .iter()
                .map(|(_, part)| part.code())
                .find(|c| matches!(*c, "MOVED" | "ASK" | "TRYAGAIN"));
            code.map(|code| if code == "MOVED" { Refusal::Moved } else { Refusal::Later })
        }
        _ => None,
    }
}

/// The part of a failed transaction that says where its keys are.
fn cause(error: &RedisError) -> RedisError {
    let parts = error.clone().into_server_errors().unwrap_or_default();
    let moved = parts.iter().find(|(_, part)| part.code() == "MOVED").map(|(_, part)| part.clone());
    moved.map_or_else(|| error.clone(), RedisError::from)
}

fn not_reached(error: &ConnectError) -> RedisError {
    io::Error::new(io::ErrorKind::ConnectionRefused, error.to_string()).into()
}

impl Link {
    /// Runs `call` on the connection; ends early when the server is cut.
    async fn run<T>(&self, call: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        if self.cut.is_cancelled() {
            let why = "its server is not the primary any more";
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, why).into());
        }
        // cancel-safe: a call that is dropped counts as of unknown outcome.
        tokio::select! {
            biased;
            answer = call => answer,
            () = self.cut.cancelled() => {
                let why = "its server stopped being the primary before it answered";
                Err(io::Error::new(io::ErrorKind::ConnectionReset, why).into())
            }
        }
    }

    async fn command(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        let mut conn = self.conn.clone();
        self.run(async { conn.send_packed_command(cmd).await?.extract_error() }).await
    }

    async fn pipeline(&mut self, pipe: &Pipeline, offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        let mut conn = self.conn.clone();
        self.run(conn.send_packed_commands(pipe, offset, count)).await
    }

    /// One command to a server that is still taking the slot over.
    async fn asking(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        let mut pipe = redis::pipe();
        pipe.cmd("ASKING").add_command(cmd.clone());
        let mut answers = self.pipeline(&pipe, 0, 2).await?;
        answers.pop().unwrap_or(Value::Nil).extract_error()
    }
}

/// How long, and how often, a refused command is sent again.
struct Patience {
    until: Instant,
    pause: Duration,
}

impl Patience {
    fn new() -> Self {
        Self { until: Instant::now() + REDIRECT_WITHIN, pause: PAUSE_MIN }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

impl Conn {
    /// Goes over to the server that a MOVED names.
    async fn follow(&mut self, inner: &Arc<Inner>, error: &RedisError) -> RedisResult<()> {
        let place = inner.note(error, &self.link.place).ok_or_else(|| error.clone())?;
        self.link = inner.link(&place).await.map_err(|e| not_reached(&e))?;
        Ok(())
    }

    async fn command(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        let answer = self.link.command(cmd).await;
        self.settled(cmd, answer).await
    }

    /// Sends a command again as long as the Cluster refuses it for a reason that
    /// passes, or names another server.
    async fn settled(&mut self, cmd: &Cmd, mut answer: RedisResult<Value>) -> RedisResult<Value> {
        let inner = match &self.routes {
            Routes::Follow(inner) => inner.clone(),
            Routes::Note(inner) => {
                if let Err(error) = &answer {
                    inner.note(error, &self.link.place);
                }
                return answer;
            }
            Routes::None | Routes::Watched => return answer,
        };
        let mut patience = Patience::new();
        loop {
            let Err(error) = &answer else { return answer };
            let Some(refused) = refusal(error).filter(|_| !patience.is_over()) else { return answer };
            answer = match refused {
                Refusal::Moved => {
                    self.follow(&inner, error).await?;
                    self.link.command(cmd).await
                }
                Refusal::Ask => {
                    let node = redirection(error, self.link.place.0.as_ref());
                    let (_, node) = node.ok_or_else(|| error.clone())?;
                    let target = inner.link(&Place(Some(node))).await;
                    let asked = target.map_err(|e| not_reached(&e))?.asking(cmd).await;
                    if asked.as_ref().is_err_and(|e| refusal(e).is_some()) {
                        patience.wait().await;
                    }
                    match asked {
                        // What the target says of the slot holds for the target only.
                        Err(e) if refusal(&e).is_some() => self.link.command(cmd).await,
                        asked => asked,
                    }
                }
                Refusal::Later => {
                    patience.wait().await;
                    self.link.command(cmd).await
                }
            };
        }
    }

    async fn transaction(&mut self, pipe: &Pipeline, offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        let mut patience = Patience::new();
        loop {
            let answer = self.link.pipeline(pipe, offset, count).await;
            // The commands may have been queued before the slot moved: then EXEC itself
            // is refused, and all of them are forgotten.
            let answer = answer.and_then(|answers| match answers.first() {
                Some(Value::ServerError(error)) if refusal(&error.clone().into()).is_some() => {
                    Err(error.clone().into())
                }
                _ => Ok(answers),
            });
            let Err(error) = &answer else { return answer };
            let inner = match &self.routes {
                Routes::Follow(inner) => inner.clone(),
                Routes::Note(inner) => {
                    inner.note(&cause(error), &self.link.place);
                    return answer;
                }
                Routes::None | Routes::Watched => return answer,
            };
            match refusal(error).filter(|_| !patience.is_over()) {
                Some(Refusal::Moved) => self.follow(&inner, &cause(error)).await?,
                Some(Refusal::Ask | Refusal::Later) => patience.wait().await,
                None => return answer,
            }
        }
    }

    /// Commands that travel together without being one: those that were refused
    /// are sent again, each by itself.
    async fn together(&mut self, pipe: &Pipeline, offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        let refused = |value: &Value| match value {
            Value::ServerError(error) => {
                let error = RedisError::from(error.clone());
                refusal(&error).map(|kind| (kind, error))
            }
            _ => None,
        };
        let mut answers = self.link.pipeline(pipe, offset, count).await?;
        if let Routes::Follow(inner) = self.routes.clone()
            && let Some((Refusal::Moved, error)) = answers.first().and_then(refused)
            && answers.iter().all(|answer| matches!(refused(answer), Some((Refusal::Moved, _))))
        {
            self.follow(&inner, &error).await?;
            answers = self.link.pipeline(pipe, offset, count).await?;
        }
        for (answer, cmd) in answers.iter_mut().zip(pipe.cmd_iter()) {
            let Some((_, error)) = refused(answer) else { continue };
            match self.settled(cmd, Err(error)).await {
                Ok(value) => *answer = value,
                // A server's answer belongs to this command alone.
                Err(error) if error.code().is_some() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(answers)
    }
}

impl ConnectionLike for Conn {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        if let Routes::None = self.routes {
            return self.link.conn.req_packed_command(cmd);
        }
        Box::pin(self.command(cmd))
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipe: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self.routes {
            Routes::None => self.link.conn.req_packed_commands(pipe, offset, count),
            _ if pipe.is_transaction() => Box::pin(self.transaction(pipe, offset, count)),
            _ => Box::pin(self.together(pipe, offset, count)),
        }
    }

    fn get_db(&self) -> i64 {
        self.link.conn.get_db()
    }
}
