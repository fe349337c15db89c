//! How a pod's use becomes one of mPanel's three words. A word changes only
//! after several ticks have said so, and goes back only below a margin: a pod
//! that hovers at a threshold does not ring every minute. Pure.

use serde::{Deserialize, Serialize};

use crate::config::{HealthLimits, Threshold};

/// mPanel's words, mildest first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing is wanting.
    #[default]
    Ok,
    /// It will be.
    Warning,
    /// It is.
    Critical,
}

impl Level {
    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    /// What one look says, without any memory.
    #[must_use]
    pub fn of(value: f64, at: Threshold) -> Self {
        if value >= f64::from(at.critical) {
            Self::Critical
        } else if value >= f64::from(at.warning) {
            Self::Warning
        } else {
            Self::Ok
        }
    }
}

/// The level of one resource, and what the last ticks say against it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gauge {
    /// What is believed.
    pub level: Level,
    /// Where the run of other ticks leads.
    pub towards: Level,
    /// How many ticks it has.
    pub run: u32,
}

impl Gauge {
    /// The gauge after one more tick.
    #[must_use]
    pub fn next(self, value: f64, at: Threshold, limits: &HealthLimits) -> Self {
        let said = self.says(value, at, limits.margin);
        let still = Self { level: self.level, towards: self.level, run: 0 };
        if said == self.level {
            return still;
        }
        // A run is of ticks on one side; it leads as far as all of them say.
        let same_side = self.run > 0 && (self.towards > self.level) == (said > self.level);
        let (towards, run) = match same_side {
            true if said > self.level => (self.towards.min(said), self.run + 1),
            true => (self.towards.max(said), self.run + 1),
            false => (said, 1),
        };
        if run >= limits.samples {
            return Self { level: towards, towards, run: 0 };
        }
        Self { level: self.level, towards, run }
    }

    /// What a tick says, given what is believed: a level is left only below its
    /// threshold less the margin.
    fn says(self, value: f64, at: Threshold, margin: u32) -> Level {
        let less = |threshold: u32| threshold.saturating_sub(margin);
        let eased = Threshold {
            warning: if self.level >= Level::Warning { less(at.warning) } else { at.warning },
            critical: if self.level == Level::Critical { less(at.critical) } else { at.critical },
        };
        Level::of(value, eased)
    }
}

/// The levels of a pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gauges {
    /// Of its cores.
    pub cpu: Gauge,
    /// Of its memory.
    pub memory: Gauge,
    /// Of its disk.
    pub disk: Gauge,
}

impl Gauges {
    /// The gauges after one more tick.
    #[must_use]
    pub fn next(self, cpu: f64, memory: f64, disk: f64, limits: &HealthLimits) -> Self {
        Self {
            cpu: self.cpu.next(cpu, limits.cpu, limits),
            memory: self.memory.next(memory, limits.memory, limits),
            disk: self.disk.next(disk, limits.disk, limits),
        }
    }

    /// The pod's level: the worst of them.
    #[must_use]
    pub fn level(self) -> Level {
        self.cpu.level.max(self.memory.level).max(self.disk.level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HealthLimits = HealthLimits {
        cpu: Threshold { warning: 90, critical: 98 },
        memory: Threshold { warning: 90, critical: 98 },
        disk: Threshold { warning: 90, critical: 98 },
        margin: 5,
        samples: 3,
    };

    /// The levels after each of these values.
    fn course(values: &[f64]) -> String {
        let mut gauge = Gauge::default();
        let mut words = String::new();
        for value in values {
            gauge = gauge.next(*value, LIMITS.cpu, &LIMITS);
            words.push(match gauge.level {
                Level::Ok => 'o',
                Level::Warning => 'w',
                Level::Critical => 'c',
            });
        }
        words
    }

    #[test]
    fn a_level_changes_after_several_ticks_and_goes_back_below_the_margin() {
        for (values, wanted) in [
            // Peaks are no state.
            (&[95.0, 95.0, 10.0, 95.0, 95.0, 10.0][..], "oooooo"),
            (&[90.0, 90.0, 90.0], "oow"),
            (&[99.0, 99.0, 99.0], "ooc"),
            // A run leads as far as all of it says.
            (&[99.0, 92.0, 99.0], "oow"),
            (&[92.0, 92.0, 92.0, 99.0, 99.0, 99.0], "oowwwc"),
            // Hovering at a threshold changes nothing.
            (&[91.0, 91.0, 91.0, 89.0, 89.0, 89.0, 86.0, 86.0, 86.0], "oowwwwwww"),
            (&[91.0, 91.0, 91.0, 84.0, 84.0, 84.0], "oowwwo"),
            (&[99.0, 99.0, 99.0, 94.0, 94.0, 94.0], "oocccc"),
            (&[99.0, 99.0, 99.0, 92.0, 92.0, 92.0], "oocccw"),
            (&[99.0, 99.0, 99.0, 10.0, 92.0, 10.0], "oocccw"),
            (&[99.0, 99.0, 99.0, 10.0, 10.0, 10.0], "ooccco"),
        ] {
            assert_eq!(course(values), wanted, "{values:?}");
        }
    }

    #[test]
    fn a_pod_is_as_ill_as_its_worst_part() {
        let mut gauges = Gauges::default();
        for _ in 0..3 {
            gauges = gauges.next(10.0, 95.0, 99.0, &LIMITS);
        }
        assert_eq!(
            (gauges.cpu.level, gauges.memory.level, gauges.disk.level, gauges.level()),
            (Level::Ok, Level::Warning, Level::Critical, Level::Critical)
        );
        // What is kept between ticks comes back as it was.
        let kept = serde_json::to_string(&gauges).unwrap();
        assert_eq!(serde_json::from_str::<Gauges>(&kept).unwrap(), gauges);
    }
}
