//! Waiting for a condition with a deadline, in place of sleeping and hoping.

use std::future::Future;
use std::time::{Duration, Instant};

use crate::TestkitError;

/// Pause between two looks.
const INTERVAL: Duration = Duration::from_millis(10);

/// Looks again and again until `check` gives `Ok`, at most for `within`.
///
/// `check` returns `Err(seen)` while the condition does not hold; the last `seen` is part of the error.
///
/// ```
/// # async fn f() -> Result<(), mpanel_testkit::TestkitError> {
/// use mpanel_testkit::wait::eventually;
/// use std::time::Duration;
/// let mut n = 0;
/// eventually("the count", Duration::from_secs(1), || {
///     n += 1;
///     let n = n;
///     async move { if n == 3 { Ok(()) } else { Err(format!("count is {n}")) } }
/// })
/// .await
/// # }
/// ```
///
/// # Errors
/// [`TestkitError::Timeout`] with what was seen last.
pub async fn eventually<T, F, Fut>(what: &str, within: Duration, mut check: F) -> Result<T, TestkitError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let started = Instant::now();
    let mut seen = String::from("nothing: the check itself did not return");
    loop {
        let left = within.saturating_sub(started.elapsed());
        match tokio::time::timeout(left, check()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(now)) => seen = now,
            Err(_) => return Err(TestkitError::Timeout { what: what.into(), within, seen }),
        }
        if started.elapsed() >= within {
            return Err(TestkitError::Timeout { what: what.into(), within, seen });
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_error_says_what_was_seen_last() {
        let mut looks = 0;
        let error = eventually::<(), _, _>("ten jobs", Duration::from_millis(50), || {
            looks += 1;
            let jobs = looks;
            async move { Err(format!("{} jobs", jobs.min(3))) }
        })
        .await
        .unwrap_err();
        assert_eq!(error.to_string(), "ten jobs: not within 50ms; seen: 3 jobs");
    }

    #[tokio::test]
    async fn a_check_that_hangs_ends_at_the_deadline() {
        let error = eventually::<(), _, _>("a reply", Duration::from_millis(30), std::future::pending).await;
        assert!(matches!(error, Err(TestkitError::Timeout { .. })));
    }
}
