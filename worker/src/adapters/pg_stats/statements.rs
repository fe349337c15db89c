//! The counters of pg_stat_statements, by the columns that the installed version
//! of the extension has. That is not the server's: after an upgrade the extension
//! keeps its shape until ALTER EXTENSION … UPDATE.

use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, FromRow, PgConnection};

use super::{PgStatsError, TAG, failed};

/// Longest text that is read, characters.
const TEXT_MAX: i32 = 20_000;

/// Names an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "(i64, i64, bool, i64)", into = "(i64, i64, bool, i64)")]
pub struct StatementKey {
    /// The database's OID.
    pub database: i64,
    /// The role's OID.
    pub user: i64,
    /// Whether a client sent it, not a function; always before PG 14.
    pub top: bool,
    /// Postgres's name for it; any number.
    pub queryid: i64,
}

impl From<(i64, i64, bool, i64)> for StatementKey {
    fn from((database, user, top, queryid): (i64, i64, bool, i64)) -> Self {
        Self { database, user, top, queryid }
    }
}

impl From<StatementKey> for (i64, i64, bool, i64) {
    fn from(key: StatementKey) -> Self {
        (key.database, key.user, key.top, key.queryid)
    }
}

/// An entry's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// The entry.
    #[serde(rename = "k")]
    pub key: StatementKey,
    /// Calls.
    #[serde(rename = "c")]
    pub calls: i64,
    /// Time, whole µs: sums of floats cannot be compared.
    #[serde(rename = "t")]
    pub time_us: i64,
    /// When its counting began, µs; from PG 17 on.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub since_us: Option<i64>,
}

/// The extension, as it is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// Its schema, quoted.
    pub schema: String,
    /// Its version.
    pub version: (u32, u32),
}

/// All counters.
#[derive(Debug, Clone, PartialEq)]
pub struct Counters {
    /// The extension.
    pub extension: Extension,
    /// The entries.
    pub statements: Vec<Statement>,
    /// When all were last reset, µs; from PG 14 on.
    pub reset_us: Option<i64>,
    /// How often the table was full, and entries were given up; from PG 14 on.
    pub evictions: Option<i64>,
}

/// Why there are no counters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// The extension is not there.
    #[error(
        "slow statements are not known: this database has no pg_stat_statements. Add it to \
         shared_preload_libraries, restart Postgres, and run CREATE EXTENSION pg_stat_statements"
    )]
    Extension,
    /// It is there, and was not loaded at start.
    #[error(
        "slow statements are not known: pg_stat_statements is not in shared_preload_libraries. Add it and \
         restart Postgres"
    )]
    NotLoaded,
    /// It is older than PG 13's.
    #[error(
        "slow statements are not known: pg_stat_statements {0} is too old; ALTER EXTENSION pg_stat_statements UPDATE"
    )]
    TooOld(String),
    /// The role may not see what others do.
    #[error("slow statements of others are hidden from this role: GRANT pg_monitor TO it")]
    Rights,
}

/// What the extension of a version has beside the columns of all: `toplevel`,
/// `pg_stat_statements_info`, `stats_since`. `None`: it is too old.
#[must_use]
pub fn column_sets(version: (u32, u32)) -> Option<(bool, bool, bool)> {
    let from = |minor| version >= (1, minor);
    from(8).then(|| (from(9), from(9), from(11)))
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[derive(FromRow)]
struct Row {
    database: i64,
    user_id: i64,
    top: bool,
    queryid: Option<i64>,
    calls: i64,
    time_ms: f64,
    since_us: Option<i64>,
}

pub(super) async fn counters(
    connection: &mut PgConnection,
) -> Result<Result<Counters, Missing>, PgStatsError> {
    let found: Option<(String, String, bool)> = sqlx::query_as(
        "SELECT /* mpanel-telemetry */ quote_ident(n.nspname), e.extversion,
                pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')
         FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
         WHERE e.extname = 'pg_stat_statements'",
    )
    .fetch_optional(&mut *connection)
    .await
    .map_err(failed("look for pg_stat_statements"))?;
    let Some((schema, text, sees_all)) = found else { return Ok(Err(Missing::Extension)) };
    let too_old = || Ok(Err(Missing::TooOld(text.clone())));
    let Some(version) = parse_version(&text) else { return too_old() };
    let Some((toplevel, info, since)) = column_sets(version) else { return too_old() };
    if !sees_all {
        return Ok(Err(Missing::Rights));
    }
    let extension = Extension { schema, version };
    let read = read(connection, extension, toplevel, info, since).await;
    match &read {
        Err(error) if error.sqlstate() == Some("55000") => Ok(Err(Missing::NotLoaded)),
        Err(error) if error.sqlstate() == Some("42501") => Ok(Err(Missing::Rights)),
        _ => read.map(Ok),
    }
}

async fn read(
    connection: &mut PgConnection,
    extension: Extension,
    toplevel: bool,
    info: bool,
    since: bool,
) -> Result<Counters, PgStatsError> {
    let schema = &extension.schema;
    let sql = format!(
        "SELECT /* {TAG} */ s.dbid::bigint AS database, s.userid::bigint AS user_id, {} AS top, s.queryid,
                s.calls, s.total_exec_time AS time_ms, {} AS since_us
         FROM {schema}.pg_stat_statements(false) AS s WHERE s.queryid IS NOT NULL",
        if toplevel { "s.toplevel" } else { "true" },
        if since { "(extract(epoch FROM s.stats_since) * 1000000)::bigint" } else { "NULL::bigint" },
    );
    let rows: Vec<Row> = sqlx::query_as(AssertSqlSafe(sql))
        .fetch_all(&mut *connection)
        .await
        .map_err(failed("read pg_stat_statements"))?;
    let (reset_us, evictions) = if info {
        let sql = format!(
            "SELECT /* {TAG} */ (extract(epoch FROM stats_reset) * 1000000)::bigint, dealloc
             FROM {schema}.pg_stat_statements_info"
        );
        sqlx::query_as(AssertSqlSafe(sql))
            .fetch_one(connection)
            .await
            .map_err(failed("read pg_stat_statements_info"))?
    } else {
        (None, None)
    };
    let statements = rows
        .into_iter()
        .filter_map(|row| {
            let key = StatementKey {
                database: row.database,
                user: row.user_id,
                top: row.top,
                queryid: row.queryid?,
            };
            #[expect(clippy::cast_possible_truncation, reason = "saturates; NaN is 0")]
            let time_us = (row.time_ms * 1000.0).round() as i64;
            Some(Statement { key, calls: row.calls, time_us, since_us: row.since_us })
        })
        .collect();
    Ok(Counters { extension, statements, reset_us, evictions })
}

pub(super) async fn texts(
    connection: &mut PgConnection,
    extension: &Extension,
    keys: &[StatementKey],
) -> Result<Vec<(StatementKey, String, String)>, PgStatsError> {
    let schema = &extension.schema;
    let top = if column_sets(extension.version).is_some_and(|(toplevel, ..)| toplevel) {
        "s.toplevel"
    } else {
        "true"
    };
    let sql = format!(
        "SELECT /* {TAG} */ k.d, k.u, k.t, k.q, COALESCE(b.datname::text, ''), left(s.query, $5)
         FROM {schema}.pg_stat_statements(true) AS s
         JOIN unnest($1::bigint[], $2::bigint[], $3::boolean[], $4::bigint[]) AS k(d, u, t, q)
           ON k.d = s.dbid::bigint AND k.u = s.userid::bigint AND k.t = {top} AND k.q = s.queryid
         LEFT JOIN pg_database b ON b.oid = s.dbid
         WHERE s.query IS NOT NULL"
    );
    let rows: Vec<(i64, i64, bool, i64, String, String)> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(keys.iter().map(|key| key.database).collect::<Vec<i64>>())
        .bind(keys.iter().map(|key| key.user).collect::<Vec<i64>>())
        .bind(keys.iter().map(|key| key.top).collect::<Vec<bool>>())
        .bind(keys.iter().map(|key| key.queryid).collect::<Vec<i64>>())
        .bind(TEXT_MAX)
        .fetch_all(connection)
        .await
        .map_err(failed("read the texts of slow statements"))?;
    Ok(rows.into_iter().map(|(d, u, t, q, name, text)| ((d, u, t, q).into(), name, text)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_chosen_by_the_extensions_version() {
        for (version, sets) in [
            ("1.7", None),
            // PG 13, 14, 15 and 16, 17, 18.
            ("1.8", Some((false, false, false))),
            ("1.9", Some((true, true, false))),
            ("1.10", Some((true, true, false))),
            ("1.11", Some((true, true, true))),
            ("1.12", Some((true, true, true))),
            ("2.0", Some((true, true, true))),
        ] {
            assert_eq!(column_sets(parse_version(version).unwrap()), sets, "{version}");
        }
        assert_eq!(parse_version("unknown"), None);
    }

    #[test]
    fn counters_are_kept_in_few_bytes_and_come_back_the_same() {
        let key = StatementKey { database: 5, user: 10, top: true, queryid: -7_527_946_768_953_929_975 };
        let statement = Statement { key, calls: 1, time_us: 522, since_us: None };
        let text = serde_json::to_string(&statement).unwrap();
        assert_eq!(text, r#"{"k":[5,10,true,-7527946768953929975],"c":1,"t":522}"#);
        assert_eq!(serde_json::from_str::<Statement>(&text).unwrap(), statement);
    }
}
