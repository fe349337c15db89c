//! Regular expressions as Python's `re` reads them, run here: parsed
//! ([`parse`]), written down again for the `regex` crate, which is linear in
//! the line, or for `fancy-regex` where an expression looks around or refers
//! back ([`emit`]), and searched with a bound on the work ([`matcher`]).
//! Knows nothing of fail2ban's tags, of dates or of files.

mod ast;
mod emit;
mod literals;
mod matcher;
mod parse;
mod rewrite;

pub use self::{
    emit::Lines,
    literals::Literals,
    matcher::{Captured, CompileError, Pattern, Search},
    parse::ParseError,
};
