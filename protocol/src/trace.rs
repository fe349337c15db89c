//! W3C trace contexts as BullMQ's telemetry sends them along with a job: option
//! `tm` holds the JSON text of a propagator's carrier, `traceparent`, `tracestate`
//! and `baggage` (what npm bullmq-otel writes).
//!
//! Reading is tolerant: text that is none of this gives no context and no error,
//! and stays in the job as it is. Random ids are arguments; no tracing library is
//! known here.

use std::{
    fmt,
    num::{NonZeroU64, NonZeroU128},
};

use serde::Serialize;
use serde_json::{Map, Value};

/// Flag of a trace that is recorded.
pub const SAMPLED: u8 = 0x01;
/// Flags that the standard knows: sampled, and that the trace id is random.
const FLAGS: u8 = 0x03;
/// Largest carrier that is looked at, bytes.
const CARRIER_MAX: usize = 32 * 1024;
/// Largest `tracestate` or `baggage` that is passed on, bytes.
const TEXT_MAX: usize = 8 * 1024;

/// The id of a trace; 32 hexadecimal digits as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(NonZeroU128);

/// The id of a span; 16 hexadecimal digits as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(NonZeroU64);

impl TraceId {
    /// From a random number; 0 is no id and becomes 1.
    #[must_use]
    pub fn random(n: u128) -> Self {
        Self(NonZeroU128::new(n).unwrap_or(NonZeroU128::MIN))
    }

    /// The bytes, as tracing libraries take them.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.get().to_be_bytes()
    }

    /// From 32 hexadecimal digits in lower case.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let n = hex(text, 32).and_then(|text| u128::from_str_radix(text, 16).ok())?;
        NonZeroU128::new(n).map(Self)
    }
}

impl SpanId {
    /// From a random number; 0 is no id and becomes 1.
    #[must_use]
    pub fn random(n: u64) -> Self {
        Self(NonZeroU64::new(n).unwrap_or(NonZeroU64::MIN))
    }

    /// The bytes, as tracing libraries take them.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 8] {
        self.0.get().to_be_bytes()
    }

    /// From 16 hexadecimal digits in lower case.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let n = hex(text, 16).and_then(|text| u64::from_str_radix(text, 16).ok())?;
        NonZeroU64::new(n).map(Self)
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A place in a trace: what a span hands to those that continue it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: TraceId,
    /// The span in it.
    pub span_id: SpanId,
    /// Flags, see [`SAMPLED`].
    pub flags: u8,
    /// `tracestate` as it came.
    pub state: Option<String>,
    /// `baggage` as it came.
    pub baggage: Option<String>,
}

/// `tm` as it is written, in the order of OpenTelemetry's propagators.
#[derive(Serialize)]
struct Carrier<'a> {
    traceparent: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tracestate: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    baggage: Option<&'a str>,
}

impl TraceContext {
    /// The first span of a new trace. It is sampled: a tracing library that follows
    /// its parent's decision would else drop all that continues it.
    #[must_use]
    pub fn root(trace_id: TraceId, span_id: SpanId) -> Self {
        Self { trace_id, span_id, flags: SAMPLED, state: None, baggage: None }
    }

    /// A span below this one.
    #[must_use]
    pub fn child(&self, span_id: SpanId) -> Self {
        Self { span_id, ..self.clone() }
    }

    /// The span that continues what a job carries, and its parent there: a child
    /// of the context in `carrier`, else the root of a new trace. Baggage is kept
    /// also where it came alone.
    #[must_use]
    pub fn continuing(carrier: Option<&str>, trace_id: TraceId, span_id: SpanId) -> (Self, Option<SpanId>) {
        let Some(fields) = carrier.and_then(object) else { return (Self::root(trace_id, span_id), None) };
        match Self::from_fields(&fields) {
            Some(parent) => (parent.child(span_id), Some(parent.span_id)),
            None => (Self { baggage: header(&fields, "baggage"), ..Self::root(trace_id, span_id) }, None),
        }
    }

    /// Reads a carrier's JSON text; `None` when it holds no W3C context.
    #[must_use]
    pub fn from_carrier(carrier: &str) -> Option<Self> {
        Self::from_fields(&object(carrier)?)
    }

    fn from_fields(fields: &Map<String, Value>) -> Option<Self> {
        let context = Self::from_traceparent(&text(fields, "traceparent")?)?;
        Some(Self { state: header(fields, "tracestate"), baggage: header(fields, "baggage"), ..context })
    }

    /// Reads a `traceparent`, also of a later version of the standard.
    #[must_use]
    pub fn from_traceparent(text: &str) -> Option<Self> {
        let mut parts = text.trim().splitn(5, '-');
        let version = hex(parts.next()?, 2)?;
        let trace_id = TraceId::from_hex(parts.next()?)?;
        let span_id = SpanId::from_hex(parts.next()?)?;
        let flags = u8::from_str_radix(hex(parts.next()?, 2)?, 16).ok()?;
        // Only a later version may have more fields; ff is none.
        if version == "ff" || (version == "00" && parts.next().is_some()) {
            return None;
        }
        Some(Self { flags: flags & FLAGS, ..Self::root(trace_id, span_id) })
    }

    /// The context as `traceparent`.
    #[must_use]
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-{:02x}", self.trace_id, self.span_id, self.flags & FLAGS)
    }

    /// The context as a carrier's JSON text: what goes into `tm`.
    #[must_use]
    pub fn to_carrier(&self) -> String {
        let carrier = Carrier {
            traceparent: self.traceparent(),
            tracestate: self.state.as_deref(),
            baggage: self.baggage.as_deref(),
        };
        // Three texts are always JSON.
        serde_json::to_string(&carrier).unwrap_or_default()
    }
}

/// The digits, when they are so many and in lower case.
fn hex(text: &str, digits: usize) -> Option<&str> {
    let all = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (text.len() == digits && all).then_some(text)
}

fn object(carrier: &str) -> Option<Map<String, Value>> {
    if carrier.len() > CARRIER_MAX {
        return None;
    }
    match serde_json::from_str(carrier) {
        Ok(Value::Object(fields)) => Some(fields),
        _ => None,
    }
}

/// A field of a carrier. Where a header came several times it is a list: of
/// `traceparent` the first counts, the others are joined, as OpenTelemetry does it.
fn text(fields: &Map<String, Value>, name: &str) -> Option<String> {
    match fields.get(name)? {
        Value::String(text) => Some(text.clone()),
        Value::Array(list) if name == "traceparent" => list.first()?.as_str().map(str::to_owned),
        Value::Array(list) => Some(list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")),
        _ => None,
    }
}

/// A field that is passed on as text: bounded, and nothing that no header may hold.
fn header(fields: &Map<String, Value>, name: &str) -> Option<String> {
    text(fields, name).filter(|text| {
        !text.trim().is_empty() && text.len() <= TEXT_MAX && !text.chars().any(char::is_control)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    fn parent(flags: u8) -> TraceContext {
        let ids = (TraceId::from_hex(TRACE).unwrap(), SpanId::from_hex(SPAN).unwrap());
        TraceContext { flags, ..TraceContext::root(ids.0, ids.1) }
    }

    #[test]
    fn carriers_are_read() {
        let with = |state: Option<&str>, baggage: Option<&str>| TraceContext {
            state: state.map(str::to_owned),
            baggage: baggage.map(str::to_owned),
            ..parent(1)
        };
        let at = format!("00-{TRACE}-{SPAN}-01");
        for (carrier, expected) in [
            (format!(r#"{{"traceparent":"{at}"}}"#), parent(1)),
            (format!(r#"{{"traceparent":" {at} ","x":1,"tracestate":"","baggage":null}}"#), parent(1)),
            (format!(r#"{{"traceparent":["{at}","other"]}}"#), parent(1)),
            (format!(r#"{{"traceparent":"{at}","tracestate":"a=1,b=2"}}"#), with(Some("a=1,b=2"), None)),
            (
                format!(r#"{{"traceparent":"{at}","tracestate":["a=1","b=2"],"baggage":"user=%C3%BC"}}"#),
                with(Some("a=1,b=2"), Some("user=%C3%BC")),
            ),
            (format!(r#"{{"traceparent":"{at}","baggage":"a\nb","tracestate":7}}"#), parent(1)),
            (format!(r#"{{"traceparent":"00-{TRACE}-{SPAN}-00"}}"#), parent(0)),
            (format!(r#"{{"traceparent":"00-{TRACE}-{SPAN}-ff"}}"#), parent(3)),
            (format!(r#"{{"traceparent":"cc-{TRACE}-{SPAN}-01-what-the-future-brings"}}"#), parent(1)),
        ] {
            assert_eq!(TraceContext::from_carrier(&carrier), Some(expected), "{carrier}");
        }
    }

    #[test]
    fn what_is_no_context_gives_none() {
        let bad = [
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{TRACE}0-{SPAN}-01"),
            format!("00-+{}-{SPAN}-01", &TRACE[1..]),
            format!("00-{TRACE}-{SPAN}-0ü"),
            String::new(),
        ];
        for traceparent in &bad {
            assert_eq!(TraceContext::from_traceparent(traceparent), None, "{traceparent}");
        }
        let at = parent(1).traceparent();
        let huge = format!(r#"{{"traceparent":"{at}","x":"{}"}}"#, "x".repeat(CARRIER_MAX));
        for carrier in [
            "",
            "{",
            "null",
            "false",
            "[]",
            "{}",
            &at,
            r#"{"b3":"1-2-1"}"#,
            r#"{"traceparent":{}}"#,
            r#"{"traceparent":[]}"#,
            &huge,
        ] {
            assert_eq!(TraceContext::from_carrier(carrier), None, "{carrier}");
        }
    }

    #[test]
    fn what_was_written_is_read_again() {
        let context = TraceContext {
            state: Some(r#"vendor="x"/y"#.into()),
            baggage: Some("user=ü,plan=a%20b;p=1".into()),
            ..parent(1)
        };
        let carrier = context.to_carrier();
        assert!(carrier.starts_with(&format!(r#"{{"traceparent":"00-{TRACE}-{SPAN}-01","tracestate":"#)));
        assert_eq!(TraceContext::from_carrier(&carrier), Some(context));
        assert_eq!(parent(0).to_carrier(), format!(r#"{{"traceparent":"00-{TRACE}-{SPAN}-00"}}"#));
    }

    #[test]
    fn an_attempt_continues_what_the_job_carries() {
        let (trace, span) = (TraceId::random(7), SpanId::random(9));
        let carried = TraceContext { baggage: Some("a=1".into()), ..parent(0) };
        let (context, above) = TraceContext::continuing(Some(&carried.to_carrier()), trace, span);
        assert_eq!((context.clone(), above), (carried.child(span), Some(carried.span_id)));
        assert_eq!((context.flags, context.baggage.as_deref()), (0, Some("a=1")), "not sampled stays so");

        for carrier in [None, Some("not JSON"), Some(r#"{"b3":"1-2-1"}"#)] {
            let alone = (TraceContext::root(trace, span), None);
            assert_eq!(TraceContext::continuing(carrier, trace, span), alone, "{carrier:?}");
        }
        let (context, above) = TraceContext::continuing(Some(r#"{"baggage":"a=1"}"#), trace, span);
        assert_eq!((context.trace_id, context.baggage.as_deref(), above), (trace, Some("a=1"), None));
    }

    #[test]
    fn ids_are_never_zero_and_keep_their_leading_zeros() {
        assert_eq!(TraceId::random(0).to_string(), format!("{:032}", 1));
        assert_eq!(SpanId::random(0).to_string(), format!("{:016}", 1));
        assert_eq!(SpanId::from_hex("00000000000000ab").unwrap().to_bytes()[7], 0xab);
        assert_eq!(TraceId::from_hex(TRACE).unwrap().to_bytes()[0], 0x0a);
    }
}
