//! `check-config`: every setting with its origin, every problem at once.

use serde_json::json;

use super::{print_json, print_table};
use crate::{
    config::{Config, Layers, Needs, Sources},
    exit::Failed,
};

/// Shows the settings, then fails if they cannot be used.
///
/// # Errors
/// Exit 78 with every problem.
pub fn check_config(sources: &Sources, json: bool) -> Result<(), Failed> {
    let shown = Layers::of(sources).shown();
    let checked = Config::from_sources(sources, Needs::All);
    let redis = checked.as_ref().ok().and_then(|c| c.redis.as_ref()).map(|redis| redis.topology.clone());
    if json {
        let settings: Vec<_> = shown
            .iter()
            .map(|(setting, value, origin)| {
                json!({ "key": setting.key, "variable": setting.variable(), "value": value, "origin": origin })
            })
            .collect();
        let problems: Vec<_> = checked
            .as_ref()
            .err()
            .into_iter()
            .flat_map(|error| &error.0)
            .map(|problem| json!({ "what": problem.what, "problem": problem.problem }))
            .collect();
        print_json(&json!({ "version": 1, "settings": settings, "redis": redis, "problems": problems }))?;
    } else {
        let topology = redis.map(|redis| {
            let (what, meaning) =
                ("(redis)".to_owned(), "which Redis servers these settings lead to".to_owned());
            [what, redis, "derived".to_owned(), String::new(), meaning]
        });
        let rows = shown
            .into_iter()
            .map(|(setting, value, origin)| {
                [setting.key.to_owned(), value, origin, setting.variable(), setting.help.to_owned()]
            })
            .chain(topology)
            .collect();
        print_table(["setting", "value", "from", "variable", "meaning"], rows)?;
    }
    checked.map(|_| ()).map_err(Failed::from)
}
