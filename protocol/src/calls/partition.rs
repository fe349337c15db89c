//! The layout of a partitioned queue: one small sorted set, by plain commands.
//!
//! Each write is idempotent and only ever adds partitions that are served; taking
//! some away needs a look at them first and is the engine's (`admin::Partitions`).

use redis::{ErrorKind, RedisError, RedisResult, aio::ConnectionLike};

use crate::{
    partition::{Layout, PartitionedName},
    time::TimestampMs,
};

/// The layout; none when nobody has made one.
///
/// # Errors
/// [`RedisError`]; of kind `UnexpectedReturnType` when the key holds no layout.
///
/// # Cancel safety
/// Cancel safe.
pub async fn read_layout(
    conn: &mut impl ConnectionLike,
    name: &PartitionedName,
) -> RedisResult<Option<Layout>> {
    let key = name.layout_key();
    let mut range = redis::cmd("ZRANGE");
    range.arg(&key).arg(0).arg(-1).arg("WITHSCORES");
    let scores: Vec<(String, f64)> = range.query_async(conn).await?;
    Layout::from_scores(&scores).map_err(|why| {
        RedisError::from((
            ErrorKind::UnexpectedReturnType,
            "no layout of partitions",
            format!("`{key}`: {why}"),
        ))
    })
}

/// Opens the partitions below `open` for new jobs, and no others. Those that were
/// open before are served on.
///
/// # Errors
/// [`RedisError`].
///
/// # Cancel safety
/// A dropped call may have been done; it can be made again.
pub async fn open_partitions(
    conn: &mut impl ConnectionLike,
    name: &PartitionedName,
    open: u32,
    now: TimestampMs,
) -> RedisResult<()> {
    // Served before it is open; what is half done serves too much, never too little.
    if let Some(layout) = read_layout(conn, name).await? {
        keep_served(conn, name, layout.served()).await?;
    }
    keep_served(conn, name, open).await?;
    let mut add = redis::cmd("ZADD");
    add.arg(name.layout_key()).arg(open).arg("open").arg(now.0).arg("changed");
    add.query_async(conn).await
}

/// Lets workers serve the partitions below `served`, more if they do already.
///
/// # Errors
/// [`RedisError`].
///
/// # Cancel safety
/// A dropped call may have been done; it can be made again.
pub async fn keep_served(
    conn: &mut impl ConnectionLike,
    name: &PartitionedName,
    served: u32,
) -> RedisResult<()> {
    redis::cmd("ZADD").arg(name.layout_key()).arg("GT").arg(served).arg("served").query_async(conn).await
}
