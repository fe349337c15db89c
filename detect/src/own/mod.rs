//! Our own rules: data in `detect/rules`, compiled in, one file a service.
//! Linear in the line, anchored at its front, and the address is taken from
//! where the daemon writes it, never from what a client sent.

mod header;
mod matching;
mod rules;

pub use self::{
    matching::{OwnMatch, OwnMatcher},
    rules::{OwnRules, RulesError, services},
};
