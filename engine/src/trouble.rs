//! What goes wrong with every try is told to the operator once, and again now and
//! then, not with every try.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How often trouble of one kind is told.
const REMIND: Duration = Duration::from_secs(60);

/// One thing that may go wrong again and again. Pure: the time is given.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    /// Since when, as long as it goes wrong.
    since: Option<Instant>,
    /// The operator has heard of what goes wrong now.
    open: bool,
    /// When each kind was told last. Codes of Redis: a handful.
    told: BTreeMap<String, Instant>,
}

impl Trouble {
    /// It went wrong (again). Whether the operator should hear of it: not when the same
    /// was told a moment ago, be it that all was well in between.
    pub(crate) fn is_news(&mut self, kind: &str, now: Instant) -> bool {
        self.since.get_or_insert(now);
        if self.told.get(kind).is_some_and(|at| now < *at + REMIND) {
            return false;
        }
        self.told.insert(kind.to_owned(), now);
        self.open = true;
        true
    }

    /// It went well. How long it had gone wrong, if the operator has heard of that.
    pub(crate) fn over(&mut self, now: Instant) -> Option<Duration> {
        let since = self.since.take()?;
        std::mem::take(&mut self.open).then(|| now.duration_since(since))
    }
}

/// The kind of a Redis error: its code, or that there was no answer.
pub(crate) fn kind(error: Option<&redis::RedisError>) -> &str {
    error.and_then(redis::RedisError::code).unwrap_or("no answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_told_at_first_when_it_changes_and_once_in_a_while() {
        let (mut trouble, start) = (Trouble::default(), Instant::now());
        let after = |s: u64| start + Duration::from_secs(s);
        assert_eq!(trouble.over(start), None);
        let told: Vec<u64> = (0..=130).filter(|s| trouble.is_news("MISCONF", after(*s))).collect();
        assert_eq!(told, [0, 60, 120]);
        assert!(trouble.is_news("no answer", after(131)));
        assert!(!trouble.is_news("MISCONF", after(132)));
        assert_eq!(trouble.over(after(140)), Some(Duration::from_secs(140)));
        assert_eq!(trouble.over(after(141)), None);
    }

    #[test]
    fn trouble_that_comes_and_goes_is_no_storm() {
        let (mut trouble, start) = (Trouble::default(), Instant::now());
        let mut told = (0, 0);
        for second in 0..120 {
            let now = start + Duration::from_secs(second);
            told.0 += u32::from(trouble.is_news("OOM", now));
            told.1 += u32::from(trouble.over(now).is_some());
        }
        assert_eq!(told, (2, 2));
    }
}
