//! Dates in log lines, found and read as fail2ban does it: many forms are
//! known ([`forms`]), the one that fits a log is learned from its lines
//! ([`detector`]), and what a line leaves out, year or zone, comes from a
//! replay clock ([`clock`]). Knows nothing of filters and files.

mod clock;
mod detector;
mod forms;
mod template;
mod zones;

pub use self::{
    clock::{Clock, ClockError},
    detector::{Detector, Found, Templates},
    template::TemplateError,
};
