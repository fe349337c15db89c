//! Several Redis servers that make one service: behind Sentinels, or as a Cluster. Built of [`RedisServer`]s, so
//! nothing outlives the test process.

mod cluster;
mod sentinel;

use std::time::Duration;

use redis::{FromRedisValue, RedisResult};

pub use cluster::Cluster;
pub use sentinel::Sentinel;

use crate::{RedisServer, TestkitError};

/// Longest wait for a topology to be ready, and for a fail-over.
const PATIENCE: Duration = Duration::from_secs(30);

/// One command to one server over a fresh connection.
async fn ask<T: FromRedisValue>(server: &RedisServer, command: &[&str]) -> Result<T, TestkitError> {
    let asked: RedisResult<T> = async {
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(1)))
            .set_response_timeout(Some(Duration::from_secs(10)));
        let client = redis::Client::open(server.url())?;
        let mut conn = client.get_multiplexed_async_connection_with_config(&config).await?;
        redis::cmd(command[0]).arg(&command[1..]).query_async(&mut conn).await
    }
    .await;
    asked.map_err(|error| {
        TestkitError::failed(format!("{} at port {}", command.join(" "), server.port()), error.to_string())
    })
}
