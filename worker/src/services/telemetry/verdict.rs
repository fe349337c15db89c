//! What a look from outside says about a target's health. Pure.

use std::time::Duration;

use reqwest::Url;
use serde_json::Value;

use super::sample::Reading;
use crate::adapters::probe::{HttpAnswer, Probed, Timings};

const DAY_S: i64 = 86_400;

/// What is expected of a target.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// A slower answer is degraded.
    pub slow: Duration,
    /// What the body must contain.
    pub body: Option<&'a str>,
    /// A certificate with fewer days left is degraded.
    pub certificate_days: i64,
}

/// Time in whole milliseconds, rounded up.
#[must_use]
pub fn latency_ms(timings: &Timings) -> i32 {
    i32::try_from(timings.total.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
}

/// Days until then; negative when it has passed.
#[must_use]
pub fn days_left(end: i64, now_s: i64) -> i64 {
    end.saturating_sub(now_s).div_euclid(DAY_S)
}

/// Judges an opened connection.
#[must_use]
pub fn tcp(probed: &Probed<()>, slow: Duration) -> Reading {
    match &probed.outcome {
        Err(error) => Reading::down(error.to_string()),
        Ok(()) => by_speed(&probed.timings, slow, "the connection opened"),
    }
}

/// Judges a fetched page.
#[must_use]
pub fn http(probed: &Probed<HttpAnswer>, expected: Expected<'_>, now_s: i64) -> Reading {
    let answer = match &probed.outcome {
        Err(error) => return Reading::down(error.to_string()),
        Ok(answer) => answer,
    };
    let latency = Some(latency_ms(&probed.timings));
    match answer.status {
        200..=299 => {}
        429 => return Reading::degraded(latency, "it answers 429: too many requests"),
        300..=399 => {
            let to = answer.location.as_deref().unwrap_or("nowhere");
            let to: String = to.chars().filter(|c| !c.is_control()).take(200).collect();
            let why = format!("it redirects elsewhere ({to}), which is not followed; configure that address");
            return Reading::degraded(latency, why);
        }
        status => return Reading::down(format!("it answers {status}")),
    }
    if let Some(wanted) = expected.body
        && !String::from_utf8_lossy(&answer.body).contains(wanted)
    {
        return Reading::down(format!("the first 64 KiB of its answer do not contain `{wanted}`"));
    }
    if let Some(word) = own_words(&answer.body) {
        return Reading::degraded(latency, format!("it says of itself `{word}`"));
    }
    if let Some(end) = probed.certificate_end {
        let days = days_left(end, now_s);
        if days < expected.certificate_days {
            return Reading::degraded(latency, format!("its certificate ends in {days} days; renew it"));
        }
    }
    by_speed(&probed.timings, expected.slow, "the answer took")
}

fn by_speed(timings: &Timings, slow: Duration, what: &str) -> Reading {
    let latency = latency_ms(timings);
    if timings.total < slow {
        return Reading::up(Some(latency));
    }
    let why = format!("{what} {latency} ms, more than {} ms", slow.as_millis());
    Reading::degraded(Some(latency), why)
}

/// The word of a health page that says it is not well.
fn own_words(body: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let word = value.get("status")?.as_str()?.to_ascii_lowercase();
    matches!(word.as_str(), "degraded" | "warn" | "warning").then_some(word)
}

/// Where a redirect leads, when that is the same server: only such are followed.
#[must_use]
pub fn same_origin(from: &Url, answer: &HttpAnswer) -> Option<Url> {
    if !(300..400).contains(&answer.status) {
        return None;
    }
    let to = from.join(answer.location.as_deref()?).ok()?;
    (to.origin() == from.origin()).then_some(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{adapters::probe::ProbeError, services::telemetry::sample::Status};

    const EXPECTED: Expected<'_> =
        Expected { slow: Duration::from_secs(1), body: Some("fine"), certificate_days: 14 };

    fn answered(status: u16, body: &str) -> Probed<HttpAnswer> {
        let timings = Timings { total: Duration::from_micros(1_001), ..Timings::default() };
        let answer = HttpAnswer { status, location: None, body: body.into() };
        Probed { timings, certificate_end: None, outcome: Ok(answer) }
    }

    #[test]
    fn pages_are_judged_by_status_body_certificate_and_speed() {
        let judge = |probed: &Probed<HttpAnswer>| http(probed, EXPECTED, 1_000_000).status;
        for (status, body, wanted) in [
            (200, "all fine", Status::Up),
            (204, "fine", Status::Up),
            (200, "other", Status::Down),
            (200, r#"{"status":"WARN","x":"fine"}"#, Status::Degraded),
            (200, r#"{"status":"ok","x":"fine"}"#, Status::Up),
            (302, "", Status::Degraded),
            (429, "", Status::Degraded),
            (404, "fine", Status::Down),
            (500, "fine", Status::Down),
            (999, "fine", Status::Down),
        ] {
            assert_eq!(judge(&answered(status, body)), wanted, "{status} {body}");
        }
        let mut soon = answered(200, "fine");
        soon.certificate_end = Some(1_000_000 + 13 * DAY_S);
        assert_eq!(judge(&soon), Status::Degraded);
        soon.certificate_end = Some(1_000_000 + 15 * DAY_S);
        assert_eq!(judge(&soon), Status::Up);
        let mut slow = answered(200, "fine");
        slow.timings.total = Duration::from_secs(1);
        assert_eq!(judge(&slow), Status::Degraded);
        let down = Probed { outcome: Err(ProbeError::Tls("expired".to_owned())), ..answered(200, "") };
        assert_eq!(http(&down, EXPECTED, 0), Reading::down("TLS: expired"));
    }

    #[test]
    fn latency_is_rounded_up() {
        assert_eq!(http(&answered(200, "fine"), EXPECTED, 0).latency_ms, Some(2));
    }

    #[test]
    fn only_redirects_to_the_same_server_are_followed() {
        let from = Url::parse("http://10.0.0.1:8080/health").unwrap();
        let follow = |status, to: &str| {
            let answer = HttpAnswer { status, location: Some(to.to_owned()), body: Vec::new() };
            same_origin(&from, &answer).map(String::from)
        };
        assert_eq!(follow(302, "/login").as_deref(), Some("http://10.0.0.1:8080/login"));
        assert_eq!(follow(200, "/login"), None);
        for elsewhere in ["http://169.254.169.254/", "//10.0.0.1/", "https://10.0.0.1:8080/", "file:///etc"] {
            assert_eq!(follow(302, elsewhere), None, "{elsewhere}");
        }
    }
}
