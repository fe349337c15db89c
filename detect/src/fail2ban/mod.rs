//! fail2ban's filter files as they are published: read ([`ini`]), put together
//! with their includes ([`files`]), interpolated ([`options`], [`tags`]),
//! compiled ([`filter`]) and run over lines ([`matching`], [`failures`]).
//!
//! Host names are never resolved: an address is what stands in the line.

mod error;
mod failures;
mod files;
mod filter;
mod ini;
mod matching;
mod options;
mod tags;

pub use self::{
    error::FilterError,
    filter::{Filter, FilterRequest},
    matching::{Match, Matcher},
};
