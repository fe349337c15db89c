//! Reading several keys at one moment (MULTI), or nearly so where the server does
//! not take that: one that is full refuses MULTI, reads included, and so does a
//! Cluster for a slot that it moves. An operator needs the figures most of all then.

use redis::{FromRedisValue, Pipeline, RedisError, RedisResult, aio::ConnectionLike};

/// Runs a pipeline that only reads, and ignores none of its answers.
pub(crate) async fn read<T: FromRedisValue>(
    pipe: &Pipeline,
    conn: &mut impl ConnectionLike,
) -> RedisResult<T> {
    match pipe.query_async(conn).await {
        Err(error) if pipe.is_transaction() && is_refused_whole(&error) => {
            let mut apart = redis::pipe();
            for cmd in pipe.cmd_iter() {
                apart.add_command(cmd.clone());
            }
            apart.query_async(conn).await
        }
        answer => answer,
    }
}

fn is_refused_whole(error: &RedisError) -> bool {
    let reasons = error.clone().into_server_errors();
    error.code() == Some("EXECABORT")
        && reasons
            .is_some_and(|all| all.iter().any(|(_, one)| matches!(one.code(), "OOM" | "ASK" | "TRYAGAIN")))
}
