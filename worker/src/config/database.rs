//! Prisma's DATABASE_URL, made fit for sqlx: Prisma's own parameters are taken
//! out, `schema` becomes the search path. Pure.

use std::str::FromStr;

use reqwest::Url;
use sqlx::postgres::PgConnectOptions;

/// Parameters that only Prisma understands.
const PRISMA_ONLY: &[&str] =
    &["schema", "connection_limit", "pool_timeout", "pgbouncer", "statement_cache_size"];

/// The connect options of a Prisma URL.
///
/// # Errors
/// What is wrong with the URL; the text repeats no part of it, since it holds
/// the password.
pub fn connect_options(database_url: &str) -> Result<PgConnectOptions, String> {
    let mut url = Url::parse(database_url).map_err(|error| format!("is not a URL: {error}"))?;
    if !matches!(url.scheme(), "postgres" | "postgresql") {
        return Err(format!("begins with `{}://`, must begin with `postgresql://`", url.scheme()));
    }
    let mut schema = None;
    let mut behind_pgbouncer = false;
    let kept: Vec<(String, String)> = url
        .query_pairs()
        .filter_map(|(name, value)| {
            match (&*name, &*value) {
                ("schema", value) => schema = Some(value.to_owned()),
                ("pgbouncer", "true" | "1") => behind_pgbouncer = true,
                _ => {}
            }
            (!PRISMA_ONLY.contains(&&*name)).then(|| (name.into_owned(), value.into_owned()))
        })
        .collect();
    url.set_query(None);
    if !kept.is_empty() {
        url.query_pairs_mut().extend_pairs(kept);
    }
    let mut options = PgConnectOptions::from_str(url.as_str())
        .map_err(|error| format!("cannot be understood: {error}"))?
        .application_name("mpanel-worker");
    if let Some(schema) = schema.filter(|schema| schema != "public") {
        if !schema.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(
                "has a schema parameter with characters other than letters, digits and `_`".to_owned()
            );
        }
        options = options.options([("search_path", format!("{schema},public"))]);
    }
    if behind_pgbouncer {
        // Prepared statements do not survive transaction pooling.
        options = options.statement_cache_capacity(0);
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prisma_parameters_are_taken_out_and_the_schema_becomes_the_search_path() {
        let options = connect_options(
            "postgresql://u:p%40ss@db.example:5433/mpanel?schema=panel&connection_limit=5&pool_timeout=2&sslmode=require",
        )
        .unwrap();
        assert_eq!((options.get_host(), options.get_port()), ("db.example", 5433));
        assert_eq!(options.get_database(), Some("mpanel"));
        assert!(format!("{options:?}").contains("search_path=panel,public"), "{options:?}");
        assert!(format!("{:?}", options.get_ssl_mode()).contains("Require"));
    }

    #[test]
    fn the_public_schema_needs_no_search_path() {
        let options = connect_options("postgres://u@h/d?schema=public").unwrap();
        assert!(!format!("{options:?}").contains("search_path"));
    }

    #[test]
    fn a_wrong_url_is_refused_without_repeating_its_password() {
        for url in ["mysql://u:geheim@h/d", "geheim", "postgresql://u:geheim@h:port/d"] {
            let problem = connect_options(url).unwrap_err();
            assert!(!problem.contains("geheim"), "{problem}");
        }
    }
}
