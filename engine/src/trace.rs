//! The trace that an attempt belongs to: the context it runs in, and what is left of
//! it in the job when it fails. Makes no spans and knows no exporter.

use mpanel_protocol::{
    calls::finish::Transition,
    options::JobOptions,
    trace::{SpanId, TraceContext, TraceId},
};

/// The trace context of one attempt.
#[derive(Debug, Clone)]
pub(crate) struct AttemptTrace {
    context: TraceContext,
    parent: Option<SpanId>,
    /// The metadata as the job carries it.
    carried: Option<String>,
    /// Whether a failure leaves the context in the job.
    stored: bool,
}

impl AttemptTrace {
    /// From the job's options as stored. Every attempt is a child of what they carry,
    /// a retry too, as in BullMQ's worker; without anything a new trace begins.
    pub(crate) fn of(opts: &str) -> Self {
        // The options are parsed once more only where there is something to find.
        let options = if opts.contains(r#""tm""#) { JobOptions::from_json(opts).ok() } else { None };
        let options = options.unwrap_or_default();
        let (trace_id, span_id) = (TraceId::random(fastrand::u128(1..)), SpanId::random(fastrand::u64(1..)));
        let (context, parent) = TraceContext::continuing(options.telemetry.as_deref(), trace_id, span_id);
        // BullMQ stores it whenever a worker has telemetry. That is ours to guess: a
        // job that carries a context comes from where there is telemetry.
        let stored = parent.is_some() && options.omit_context != Some(true);
        Self { context, parent, carried: options.telemetry, stored }
    }

    pub(crate) fn context(&self) -> &TraceContext {
        &self.context
    }

    pub(crate) fn parent(&self) -> Option<SpanId> {
        self.parent
    }

    pub(crate) fn carried(&self) -> Option<&str> {
        self.carried.as_deref()
    }

    /// The transition, with the context in what is stored of a failure.
    pub(crate) fn mark(&self, mut transition: Transition) -> Transition {
        if self.stored
            && let Some(failure) = transition.failure_mut()
        {
            failure.trace = Some(self.context.to_carrier());
        }
        transition
    }
}

#[cfg(test)]
mod tests {
    use mpanel_protocol::calls::finish::Failure;

    use super::*;

    const CARRIED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn stored(opts: &str) -> Option<TraceContext> {
        let failure = Failure { reason: "no".into(), stacktrace: None, trace: None };
        let trace = AttemptTrace::of(opts);
        let mut marked = trace.mark(Transition::RetryNow { failure, lifo: false });
        let carrier = marked.failure_mut().unwrap().trace.take()?;
        let context = TraceContext::from_carrier(&carrier).unwrap();
        assert_eq!(&context, trace.context());
        Some(context)
    }

    #[test]
    fn a_failure_leaves_the_context_of_a_job_that_carries_one() {
        let tm = format!(r#""tm":"{{\"traceparent\":\"{CARRIED}\"}}""#);
        let carried = TraceContext::from_traceparent(CARRIED).unwrap();
        let context = stored(&format!("{{{tm}}}")).unwrap();
        assert_eq!(context.trace_id, carried.trace_id);
        assert_ne!(context.span_id, carried.span_id);
        assert_eq!(stored(&format!(r#"{{{tm},"omc":true}}"#)), None);
        for opts in ["{}", "", "{", r#"{"omc":true,"tm":false}"#, r#"{"tm":"other"}"#] {
            assert_eq!(stored(opts), None, "{opts}");
        }
        assert_eq!(AttemptTrace::of("{}").mark(Transition::Release), Transition::Release);
    }

    #[test]
    fn two_attempts_are_siblings_and_without_a_context_strangers() {
        let opts = format!(r#"{{"tm":"{{\"traceparent\":\"{CARRIED}\"}}"}}"#);
        let (first, second) = (AttemptTrace::of(&opts), AttemptTrace::of(&opts));
        assert_eq!(first.parent(), second.parent());
        assert!(first.parent().is_some());
        assert_ne!(first.context().span_id, second.context().span_id);
        let (first, second) = (AttemptTrace::of("{}"), AttemptTrace::of("{}"));
        assert_eq!((first.parent(), second.parent()), (None, None));
        assert_ne!(first.context().trace_id, second.context().trace_id);
        assert_eq!(AttemptTrace::of(r#"{"tm":"theirs"}"#).carried(), Some("theirs"));
    }
}
