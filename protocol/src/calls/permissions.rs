//! `checkPermissions`: whether the user of a connection may do all that our scripts
//! do. Redis checks each command of a script when it comes to it, and does not undo
//! those before.

use std::collections::BTreeSet;

use redis::aio::ConnectionLike;

use crate::{
    keys::QueueKeys,
    script::{
        ADD_JOBS, CHECK_PERMISSIONS, CONTINUE_SCHEDULERS, EXTEND_LOCKS, FETCH_JOBS, FIND_CANCELLED,
        FINISH_JOBS, FREE_DEDUP, REMOVE_SCHEDULER, RESCUE_STALLED, STORE_REPEATABLE, Script, ScriptError,
        UPDATE_JOB, UPSERT_SCHEDULER, absent,
    },
    wire,
};

/// What a connection is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Adds jobs, flows and schedules.
    Producer,
    /// Runs jobs.
    Worker,
    /// Manages queues; needs every script.
    Manager,
}

impl Role {
    fn scripts(self) -> Vec<&'static Script> {
        match self {
            Self::Producer => {
                vec![&*ADD_JOBS, &UPSERT_SCHEDULER, &STORE_REPEATABLE, &REMOVE_SCHEDULER, &FREE_DEDUP]
            }
            Self::Worker => vec![
                &*FETCH_JOBS,
                &FINISH_JOBS,
                &EXTEND_LOCKS,
                &RESCUE_STALLED,
                &UPDATE_JOB,
                &FIND_CANCELLED,
                &CONTINUE_SCHEDULERS,
            ],
            Self::Manager => crate::script::all(),
        }
    }

    /// The commands that the scripts of this role run.
    #[must_use]
    pub fn commands(self) -> BTreeSet<&'static str> {
        let scripts = self.scripts();
        let used = |command: &str| {
            let quoted = format!("\"{command}\"");
            scripts.iter().any(|script| script.source().contains(&quoted))
        };
        PROBES.iter().map(|(command, _)| *command).filter(|command| used(command)).collect()
    }
}

/// A call of each command that changes nothing on a key that does not exist (`K`):
/// either it has no effect there, or its arguments are refused.
const PROBES: &[(&str, &[&str])] = &[
    ("DECRBY", &["K", "x"]),
    ("DEL", &["K"]),
    ("EXISTS", &["K"]),
    ("GET", &["K"]),
    ("HDEL", &["K", "f"]),
    ("HEXISTS", &["K", "f"]),
    ("HGET", &["K", "f"]),
    ("HINCRBY", &["K", "f", "x"]),
    ("HKEYS", &["K"]),
    ("HLEN", &["K"]),
    ("HMGET", &["K", "f"]),
    ("HRANDFIELD", &["K"]),
    ("HSET", &["K", "f", "v", "g"]),
    ("HSETNX", WRITES),
    ("INCR", WRITES),
    ("INCRBY", &["K", "x"]),
    ("LLEN", &["K"]),
    ("LPOS", &["K", "x"]),
    ("LPUSH", WRITES),
    ("LRANGE", &["K", "0", "-1"]),
    ("LREM", &["K", "0", "x"]),
    ("LSET", &["K", "0", "x"]),
    ("LTRIM", &["K", "0", "-1"]),
    ("MGET", &["K"]),
    ("PERSIST", &["K"]),
    ("PEXPIRE", &["K", "1"]),
    ("PTTL", &["K"]),
    ("RENAME", &["K", "K"]),
    ("RPOP", &["K"]),
    ("RPUSH", WRITES),
    ("SADD", WRITES),
    ("SCARD", &["K"]),
    ("SET", &["K", "x", "XX"]),
    ("SISMEMBER", &["K", "x"]),
    ("SMEMBERS", &["K"]),
    ("SRANDMEMBER", &["K"]),
    ("SREM", &["K", "x"]),
    ("SSCAN", &["K", "0"]),
    ("UNLINK", &["K"]),
    ("XADD", &["K", "x", "f", "v"]),
    ("XLEN", &["K"]),
    ("XTRIM", &["K", "MAXLEN", "0"]),
    ("ZADD", &["K", "XX", "1", "x"]),
    ("ZCARD", &["K"]),
    ("ZPOPMIN", &["K"]),
    ("ZRANGE", &["K", "0", "-1"]),
    ("ZRANGEBYSCORE", &["K", "0", "0"]),
    ("ZREM", &["K", "x"]),
    ("ZREVRANGEBYSCORE", &["K", "0", "0"]),
    ("ZSCORE", &["K", "x"]),
];

/// Stands for commands that have no such call; see [`WRITING`].
const WRITES: &[&str] = &[];

/// The calls of those: they make the key, and it is deleted within the script.
const WRITING: &[(&str, &[&str])] = &[
    ("HSETNX", &["K", "f", "v"]),
    ("INCR", &["K"]),
    ("LPUSH", &["K", "x"]),
    ("RPUSH", &["K", "x"]),
    ("SADD", &["K", "x"]),
];

/// The commands that the scripts of `role` need and the connection's user may not
/// run on the queue's keys. Leaves nothing behind.
///
/// # Errors
/// [`ScriptError`]; with code NOPERM when the user may not run scripts, or has no
/// right to the queue's keys at all.
///
/// # Cancel safety
/// Cancel safe.
pub async fn refused_commands(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    role: Role,
) -> Result<Vec<String>, ScriptError> {
    let commands = role.commands();
    let key = absent(keys.meta());
    let calls = |probes: &[(&str, &[&str])]| -> Vec<Vec<String>> {
        let wanted = probes.iter().filter(|(command, args)| commands.contains(command) && !args.is_empty());
        let call = |(command, args): &(&str, &[&str])| {
            let args = args.iter().map(|arg| if *arg == "K" { key.clone() } else { (*arg).to_owned() });
            std::iter::once((*command).to_owned()).chain(args).collect()
        };
        wanted.map(call).collect()
    };
    let argument = wire::pack(&(calls(PROBES), calls(WRITING)))?;
    let mut refused: Vec<String> = CHECK_PERMISSIONS.call(conn, keys.meta(), &argument).await?;
    refused.sort();
    refused.dedup();
    Ok(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every quoted word in capitals that a script gives to Redis as a command.
    fn called(source: &str) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        for opening in ["call(\"", "Call(\"", "attempt(\"", "pushJob("] {
            for (at, _) in source.match_indices(opening) {
                let rest = &source[at + opening.len()..];
                found.extend(
                    rest.split('"').next().filter(|word| word.chars().all(|c| c.is_ascii_uppercase())),
                );
            }
        }
        found
    }

    #[test]
    fn every_command_of_every_script_can_be_checked() {
        let known: BTreeSet<&str> = PROBES.iter().map(|(command, _)| *command).collect();
        for script in crate::script::all() {
            for command in called(script.source()) {
                assert!(known.contains(command), "{}: {command} has no probe", script.name);
            }
        }
        let manager = Role::Manager.commands();
        assert_eq!(manager, known, "a probe for a command that no script runs");
        for command in ["RPUSH", "LPUSH", "ZADD", "XADD"] {
            assert!(Role::Producer.commands().contains(command) && Role::Worker.commands().contains(command));
        }
    }

    #[test]
    fn commands_without_a_harmless_call_have_another() {
        for (command, args) in PROBES {
            let writing = WRITING.iter().any(|(other, _)| other == command);
            assert_eq!(args.is_empty(), writing, "{command}");
        }
    }
}
