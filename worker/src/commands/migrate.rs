//! `migrate up` and `migrate status`.

use serde_json::json;

use super::{note, print_json, print_table};
use crate::{
    cli::{Migrate, MigrateArgs},
    config::Config,
    exit::{Exit, Failed},
    migrate as migrations,
};

/// Migrates, or shows what is migrated.
///
/// # Errors
/// With the exit code of what went wrong.
pub async fn migrate(config: &Config, args: &MigrateArgs) -> Result<(), Failed> {
    let options = &config.database.options;
    match &args.command {
        None | Some(Migrate::Up) => {
            let applied = migrations::up(options).await?;
            match applied.as_slice() {
                [] => note("the database is up to date; nothing to do"),
                versions => {
                    let versions: Vec<String> = versions.iter().map(ToString::to_string).collect();
                    note(&format!("applied migration {}; the database is up to date", versions.join(", ")));
                }
            }
            Ok(())
        }
        Some(Migrate::Status(args)) => {
            let status = migrations::status(options).await?;
            let missing = status.iter().filter(|row| row.applied_at.is_none()).count();
            if args.json {
                let rows: Vec<_> = status
                    .iter()
                    .map(|row| {
                        json!({ "version": row.version, "description": row.description, "appliedAt": row.applied_at })
                    })
                    .collect();
                print_json(&json!({ "version": 1, "migrations": rows, "missing": missing }))?;
            } else {
                let rows = status
                    .into_iter()
                    .map(|row| {
                        let applied = row.applied_at.unwrap_or_else(|| "missing".to_owned());
                        [row.version.to_string(), row.description, applied]
                    })
                    .collect();
                print_table(["number", "about", "applied"], rows)?;
            }
            if missing > 0 {
                return Err(Failed::new(
                    Exit::Precondition,
                    format!("{missing} migrations are missing; run `mpanel-worker migrate`"),
                ));
            }
            Ok(())
        }
    }
}
