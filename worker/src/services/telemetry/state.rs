//! From single results to the status that is held to be true. Pure.
//!
//! A service is down after three failures in a row, up again after two
//! successes, degraded when three of the last five results were, and no longer
//! when two in a row are good and fewer than three of the five are not. So one
//! lost packet is no outage, and one lucky answer no recovery.

use super::sample::{Reading, Status};

/// Failures in a row that make a service down.
pub const FAILURES: u32 = 3;
/// Successes in a row that end it.
pub const SUCCESSES: u32 = 2;
/// Of the last so many results …
const LOOK_BACK: usize = 5;
/// … so many make a service degraded.
const DEGRADED: usize = 3;
/// Results that are remembered; a later look for flapping needs more than we do.
const REMEMBERED: usize = 21;

/// What is known of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceState {
    /// What is held to be true.
    pub status: Status,
    /// Failures in a row.
    pub failures: u32,
    /// Successes in a row.
    pub successes: u32,
    /// The last results, oldest first: `u` up, `g` degraded, `d` down.
    pub recent: String,
    /// Why it is not up, or was not lately.
    pub why: Option<String>,
    /// Of the newest result.
    pub latency_ms: Option<i32>,
}

impl ServiceState {
    /// The state after the first result, which is believed as it is.
    #[must_use]
    pub fn first(reading: &Reading) -> Self {
        let empty = Self {
            status: reading.status,
            failures: 0,
            successes: 0,
            recent: String::new(),
            why: None,
            latency_ms: None,
        };
        Self { status: reading.status, ..empty.after(reading) }
    }

    /// The state after one more result.
    #[must_use]
    pub fn after(mut self, reading: &Reading) -> Self {
        let (letter, fine) = match reading.status {
            Status::Up => ('u', true),
            Status::Degraded => ('g', true),
            Status::Down => ('d', false),
        };
        self.recent.push(letter);
        while self.recent.chars().count() > REMEMBERED {
            self.recent.remove(0);
        }
        (self.failures, self.successes) =
            if fine { (0, self.successes.saturating_add(1)) } else { (self.failures.saturating_add(1), 0) };
        self.status = self.confirmed();
        self.latency_ms = reading.latency_ms;
        match (&reading.why, self.status) {
            (Some(why), _) => self.why = Some(why.clone()),
            (None, Status::Up) => self.why = None,
            // It is still held to be true, and this is why.
            (None, _) => {}
        }
        self
    }

    fn confirmed(&self) -> Status {
        let last: Vec<char> = self.recent.chars().rev().take(LOOK_BACK).collect();
        let degraded = last.iter().filter(|letter| **letter == 'g').count() >= DEGRADED;
        let well = last.iter().take(2).filter(|letter| **letter == 'u').count() == 2;
        match self.status {
            _ if self.failures >= FAILURES => Status::Down,
            Status::Down if self.successes < SUCCESSES => Status::Down,
            // What it was degraded by before it went down says nothing now.
            Status::Down if last.iter().take(2).all(|letter| *letter == 'g') => Status::Degraded,
            Status::Down => Status::Up,
            Status::Up if degraded => Status::Degraded,
            Status::Degraded if well && !degraded => Status::Up,
            same => same,
        }
    }
}

/// The state after all results of a tick; `None` without any.
#[must_use]
pub fn after_all(before: Option<ServiceState>, readings: &[Reading]) -> Option<ServiceState> {
    readings.iter().fold(before, |state, reading| {
        Some(match state {
            Some(state) => state.after(reading),
            None => ServiceState::first(reading),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(letter: char) -> Reading {
        match letter {
            'u' => Reading::up(Some(5)),
            'g' => Reading::degraded(Some(2000), "slow"),
            _ => Reading::down("no answer"),
        }
    }

    /// The confirmed states after each of these results, as letters.
    fn run(results: &str) -> String {
        let mut state = None;
        let mut seen = String::new();
        for letter in results.chars() {
            state = after_all(state, &[reading(letter)]);
            seen.push(match state.as_ref().unwrap().status {
                Status::Up => 'u',
                Status::Degraded => 'g',
                Status::Down => 'd',
            });
        }
        seen
    }

    #[test]
    fn results_become_states() {
        for (results, states) in [
            // Two failures are no outage.
            ("uuduudduu", "uuuuuuuuu"),
            // Three are; one success is no recovery, two are.
            ("udddduduu", "uuudddddu"),
            // The first result is believed.
            ("duu", "ddu"),
            // Three of five, not in a row.
            ("ugugug", "uuuuug"),
            ("uggguuu", "uuugggu"),
            // Up again, but not well.
            ("udddgg", "uuuddg"),
            ("udddug", "uuuddu"),
        ] {
            assert_eq!(run(results), states, "{results}");
        }
    }

    #[test]
    fn the_reason_stays_as_long_as_the_state_and_the_memory_is_bounded() {
        let results: Vec<Reading> = "dddu".chars().map(reading).collect();
        let state = after_all(None, &results).unwrap();
        assert_eq!((state.status, state.why.as_deref()), (Status::Down, Some("no answer")));
        let state = state.after(&reading('u'));
        assert_eq!((state.status, state.why.as_deref()), (Status::Up, None));
        let state = after_all(Some(state), &vec![reading('u'); 50]).unwrap();
        assert_eq!(state.recent, "u".repeat(21));
    }
}
