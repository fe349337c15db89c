//! The scripts, and how one is called: by SHA, with the text only when the
//! server does not know it yet.
//!
//! A script is its own file after the shared fragments it names. Every call has
//! one argument and two keys: the queue's `meta`, which routes it in a Cluster, and
//! a key that never exists. While a Cluster moves the slot to another node the keys
//! of a queue are on both for a time; Redis then refuses a call that names a missing
//! key whole (TRYAGAIN), where otherwise it would break the script off at the first
//! key that is on the other side, with what it had written left behind.

use std::sync::LazyLock;

use redis::{FromRedisValue, RedisError, aio::ConnectionLike};

/// Why a script call did not give its result.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// Redis refused or did not answer. The call may have taken effect, unless
    /// [`ScriptError::is_not_done`].
    #[error("script {script}: {source}")]
    Redis {
        /// Which script.
        script: &'static str,
        /// The cause.
        #[source]
        source: RedisError,
    },
    /// The reply has a form the script never gives.
    #[error("script {script} answered in an unknown form: {detail}")]
    Reply {
        /// Which script.
        script: &'static str,
        /// What was wrong with it.
        detail: String,
    },
    /// An argument cannot be packed.
    #[error("argument cannot be packed for Redis: {0}")]
    Encoding(String),
}

impl ScriptError {
    /// The Redis error behind it, if one is.
    #[must_use]
    pub fn redis(&self) -> Option<&RedisError> {
        match self {
            Self::Redis { source, .. } => Some(source),
            Self::Reply { .. } | Self::Encoding(_) => None,
        }
    }

    /// Whether the server surely did nothing: it answered with an error before
    /// running the script, or was never reached.
    #[must_use]
    pub fn is_not_done(&self) -> bool {
        let Self::Redis { source, .. } = self else { return false };
        if source.is_connection_refusal() {
            return true;
        }
        matches!(
            source.code(),
            Some(
                "READONLY"
                    | "LOADING"
                    | "MASTERDOWN"
                    | "CLUSTERDOWN"
                    | "TRYAGAIN"
                    | "NOREPLICAS"
                    | "MISCONF"
                    | "OOM"
                    | "NOSCRIPT"
                    | "BUSY"
                    | "NOAUTH"
                    | "WRONGPASS"
                    | "NOPERM"
                    | "MOVED"
                    | "ASK"
                    | "CROSSSLOT"
                    | "EXECABORT"
            )
        )
    }
}

/// A key beside `meta` that never exists. No job can have it: ids have no colon.
pub(crate) fn absent(meta_key: &str) -> String {
    format!("{meta_key}:absent")
}

/// One script: name, text, SHA.
#[derive(Debug)]
pub struct Script {
    /// The file's name without extension.
    pub name: &'static str,
    inner: redis::Script,
    source: String,
}

impl Script {
    fn new(name: &'static str, parts: &[&str]) -> Self {
        let source = parts.concat();
        Self { name, inner: redis::Script::new(&source), source }
    }

    /// The whole text as sent to Redis.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Its SHA1, as SLOWLOG and `SCRIPT EXISTS` know it.
    #[must_use]
    pub fn hash(&self) -> &str {
        self.inner.get_hash()
    }

    /// Puts a call into a transaction: the first of a script brings its text along,
    /// so that it cannot fail for an unknown SHA.
    pub(crate) fn append(&self, pipe: &mut redis::Pipeline, first: bool, meta_key: &str, argument: &[u8]) {
        if first {
            pipe.cmd("EVAL").arg(&self.source);
        } else {
            pipe.cmd("EVALSHA").arg(self.inner.get_hash());
        }
        pipe.arg(2).arg(meta_key).arg(absent(meta_key)).arg(argument);
    }

    /// Calls the script.
    ///
    /// # Errors
    /// [`ScriptError::Redis`], or [`ScriptError::Reply`] when the reply is not a `T`.
    pub(crate) async fn call<T: FromRedisValue>(
        &'static self,
        conn: &mut impl ConnectionLike,
        meta_key: &str,
        argument: &[u8],
    ) -> Result<T, ScriptError> {
        let absent = absent(meta_key);
        let by = |command, script: &str| {
            let mut cmd = redis::cmd(command);
            cmd.arg(script).arg(2).arg(meta_key).arg(&absent).arg(argument);
            cmd
        };
        let outcome = match by("EVALSHA", self.inner.get_hash()).query_async(conn).await {
            // The text travels with the call: a server that forgets between a load
            // and the call after it would refuse again.
            Err(error) if error.code() == Some("NOSCRIPT") => {
                by("EVAL", &self.source).query_async(conn).await
            }
            outcome => outcome,
        };
        outcome.map_err(|source| ScriptError::Redis { script: self.name, source })
    }
}

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident = $file:literal [$($include:literal),*];)*) => {
        $($(#[$doc])*
        pub static $name: LazyLock<Script> = LazyLock::new(|| Script::new($file, &[
            $(include_str!(concat!("../lua/includes/", $include, ".lua")),)*
            include_str!(concat!("../lua/", $file, ".lua")),
        ]));)*

        /// Every script, for self-tests and preloading.
        #[must_use]
        pub fn all() -> Vec<&'static Script> {
            vec![$(&*$name),*]
        }
    };
}

scripts! {
    /// `lua/addJobs.lua`
    ADD_JOBS = "addJobs" ["queue", "score", "push", "rare_begin", "keys", "parents", "remove", "dedup", "rare_end"];
    /// `lua/fetchJobs.lua`
    FETCH_JOBS = "fetchJobs" ["queue", "score", "promote", "take"];
    /// `lua/finishJobs.lua`
    FINISH_JOBS = "finishJobs" ["queue", "score", "promote", "rare_begin", "push", "keys", "parents", "remove", "dedup", "rare_end", "take"];
    /// `lua/extendLocks.lua`
    EXTEND_LOCKS = "extendLocks" ["queue"];
    /// `lua/rescueStalled.lua`
    RESCUE_STALLED = "rescueStalled" ["queue"];
    /// `lua/cancelJob.lua`
    CANCEL_JOB = "cancelJob" ["queue", "score", "push", "keys", "parents"];
    /// `lua/findCancelled.lua`
    FIND_CANCELLED = "findCancelled" ["queue"];
    /// `lua/updateJob.lua`
    UPDATE_JOB = "updateJob" ["queue"];
    /// `lua/reprocessJob.lua`
    REPROCESS_JOB = "reprocessJob" ["queue", "score", "push", "regain"];
    /// `lua/requeueJobs.lua`
    REQUEUE_JOBS = "requeueJobs" ["queue", "regain"];
    /// `lua/promoteJob.lua`
    PROMOTE_JOB = "promoteJob" ["queue", "score", "push"];
    /// `lua/changeDelay.lua`
    CHANGE_DELAY = "changeDelay" ["queue", "score", "push"];
    /// `lua/changePriority.lua`
    CHANGE_PRIORITY = "changePriority" ["queue", "score", "push"];
    /// `lua/pauseQueue.lua`
    PAUSE_QUEUE = "pauseQueue" ["queue"];
    /// `lua/resumeQueue.lua`
    RESUME_QUEUE = "resumeQueue" ["queue"];
    /// `lua/removeJob.lua`
    REMOVE_JOB = "removeJob" ["queue", "score", "push", "keys", "parents", "remove", "current"];
    /// `lua/findLock.lua`
    FIND_LOCK = "findLock" ["queue"];
    /// `lua/drainQueue.lua`
    DRAIN_QUEUE = "drainQueue" ["queue", "score", "push", "keys", "parents", "remove", "current"];
    /// `lua/cleanJobs.lua`
    CLEAN_JOBS = "cleanJobs" ["queue", "score", "push", "keys", "parents", "remove", "current"];
    /// `lua/obliterateQueue.lua`
    OBLITERATE_QUEUE = "obliterateQueue" ["queue", "score", "push", "keys", "parents", "remove"];
    /// `lua/settleFlow.lua`
    SETTLE_FLOW = "settleFlow" ["queue", "score", "push", "keys", "parents"];
    /// `lua/forgetParent.lua`
    FORGET_PARENT = "forgetParent" ["queue", "score", "push", "keys", "parents"];
    /// `lua/upsertScheduler.lua`
    UPSERT_SCHEDULER = "upsertScheduler" ["queue", "score", "push", "keys", "parents", "remove", "iteration"];
    /// `lua/continueSchedulers.lua`
    CONTINUE_SCHEDULERS = "continueSchedulers" ["queue", "score", "push", "iteration"];
    /// `lua/removeScheduler.lua`
    REMOVE_SCHEDULER = "removeScheduler" ["queue"];
    /// `lua/storeRepeatable.lua`
    STORE_REPEATABLE = "storeRepeatable" ["queue", "score", "push", "keys", "parents", "remove", "iteration"];
    /// `lua/jobState.lua`
    JOB_STATE = "jobState" ["queue"];
    /// `lua/removeOrphans.lua`
    REMOVE_ORPHANS = "removeOrphans" ["queue"];
    /// `lua/checkPermissions.lua`
    CHECK_PERMISSIONS = "checkPermissions" ["queue"];
    /// `lua/freeDedup.lua`
    FREE_DEDUP = "freeDedup" ["queue"];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_script_has_the_header_the_style_asks_for() {
        for script in all() {
            let own = script.source().split("--[[").nth(1).unwrap_or_default();
            for part in ["KEYS[1]", "ARGV[1]", "Returns", "Errors", "Events", "Cost", "Cluster"] {
                assert!(own.contains(part), "{}: header lacks {part}", script.name);
            }
            assert!(
                own.trim_start().starts_with(script.name),
                "{}: header names another script",
                script.name
            );
            assert!(!script.source().contains("TIME"), "{}: scripts never read the clock", script.name);
        }
    }

    #[test]
    fn hashes_differ() {
        let mut hashes: Vec<_> = all().iter().map(|s| s.inner.get_hash().to_owned()).collect();
        hashes.sort();
        hashes.dedup();
        assert_eq!(hashes.len(), all().len());
    }
}
