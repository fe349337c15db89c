//! What a refused call lacks, in words an operator can act on.

use mpanel_connect::Shared;
use mpanel_protocol::{
    calls::permissions::{Role, refused_commands},
    keys::QueueKeys,
};
use redis::RedisError;

use super::AdminError;

/// How Redis 7.0, then later ones and Valkey, word a refusal of a script's command.
const WITHIN_A_SCRIPT: [&str; 3] = [
    "can't run this command or subcommand",
    "can't access at least one of the keys",
    "ACL failure in script",
];

/// An error for a missing permission says what to grant; any other stays as it is.
pub(super) async fn told(shared: &Shared, keys: &QueueKeys, error: AdminError) -> AdminError {
    let Some(source) = error.redis() else { return error };
    let words = words(source);
    let within = WITHIN_A_SCRIPT.iter().any(|phrase| words.contains(phrase));
    if !within && !words.contains("NOPERM") {
        return error;
    }
    let source = source.clone();
    let own_keys = format!("~{}:*", keys.qualified_name());
    let named = of_answer(&words);
    let mut refused = Vec::new();
    // A script runs many commands: all that are missing, not only the one it came to.
    if within && named != Some(Missing::Keys) {
        let mut conn = shared.conn.clone();
        // When that cannot be asked, the server's own words have to do.
        refused = refused_commands(&mut conn, keys, Role::Manager).await.unwrap_or_default();
    }
    let rules: Vec<_> = refused.iter().map(|command| format!("+{}", command.to_lowercase())).collect();
    let grant = match named {
        _ if !rules.is_empty() => rules.join(" "),
        Some(Missing::Command(command)) => format!("+{command}"),
        Some(Missing::Keys) | None => own_keys,
    };
    AdminError::Forbidden { queue: keys.queue().clone(), grant, source }
}

/// The whole of an error: of commands that travelled together each has an answer.
fn words(error: &RedisError) -> String {
    let parts = error.clone().into_server_errors();
    let parts = parts.iter().flat_map(|all| all.iter());
    let parts = parts.map(|(_, one)| format!("{}: {}", one.code(), one.details().unwrap_or_default()));
    std::iter::once(format!("{}: {error}", error.code().unwrap_or_default()))
        .chain(parts)
        .collect::<Vec<_>>()
        .join("\n")
}

#[derive(Debug, PartialEq, Eq)]
enum Missing<'a> {
    Command(&'a str),
    Keys,
}

/// What the server's own words tell.
fn of_answer(words: &str) -> Option<Missing<'_>> {
    if let Some((_, rest)) = words.split_once("permissions to run the '") {
        return rest.split('\'').next().map(Missing::Command);
    }
    let of_keys = ["one of the keys", "access a key", "' key"];
    of_keys.iter().any(|phrase| words.contains(phrase)).then_some(Missing::Keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_each_version_are_understood() {
        for (words, missing) in [
            (
                "NOPERM this user has no permissions to run the 'client|list' command",
                Some(Missing::Command("client|list")),
            ),
            ("NOPERM User ann has no permissions to run the 'hset' command", Some(Missing::Command("hset"))),
            (
                "ERR ACL failure in script: User ann has no permissions to run the 'xadd' command",
                Some(Missing::Command("xadd")),
            ),
            (
                "NOPERM this user has no permissions to access one of the keys used as arguments",
                Some(Missing::Keys),
            ),
            ("NOPERM No permissions to access a key", Some(Missing::Keys)),
            ("ERR The user executing the script can't run this command or subcommand", None),
        ] {
            assert_eq!(of_answer(words), missing, "{words}");
        }
    }
}
