//! The example of the environment names every setting there is.

use mpanel_worker::config::settings::SETTINGS;

const EXAMPLE: &str = include_str!("../../deploy/env/fleet.env.example");

#[test]
fn every_setting_stands_in_the_example() {
    let named: Vec<&str> = EXAMPLE
        .lines()
        .filter_map(|line| line.trim_start_matches('#').split_once('='))
        .map(|(name, _)| name)
        .collect();
    let missing: Vec<String> =
        SETTINGS.iter().map(|s| s.variable()).filter(|name| !named.contains(&name.as_str())).collect();
    assert!(missing.is_empty(), "deploy/env/fleet.env.example lacks {missing:?}");
}

#[test]
fn every_line_of_the_example_says_what_it_is_for() {
    let lines: Vec<&str> = EXAMPLE.lines().collect();
    for (at, line) in lines.iter().enumerate().skip(1) {
        let is_variable = line.trim_start_matches('#').split_once('=').is_some_and(|(name, _)| {
            !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        });
        assert!(!is_variable || lines[at - 1].starts_with("# "), "no comment above {line}");
    }
}
