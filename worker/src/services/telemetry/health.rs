//! The first collector: are the configured targets well, seen from outside?
//!
//! All targets of a tick are looked at beside each other, each at its own
//! moment. One that fails is asked again within the tick, so that an outage is
//! confirmed in seconds and not in ticks, and one lost packet in none.

use std::time::Duration;

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout_at},
};

use super::{
    Collected, clock,
    sample::{Check, Reading, Samples, Status},
    state::FAILURES,
    verdict::{self, Expected},
};
use crate::{
    adapters::probe::{HttpAnswer, Probed, Prober, Timings},
    config::{Target, TargetKind},
};

/// Looks at once.
const AT_ONCE: usize = 16;
/// Pauses before a failed target is asked again.
const AGAIN: [Duration; FAILURES as usize - 1] = [Duration::from_secs(1), Duration::from_secs(2)];
/// Redirects within one server that are followed.
const HOPS: usize = 3;

/// When a tick must end, and what time it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub(super) interval: Duration,
    pub(super) deadline: Instant,
    /// Epoch seconds.
    pub(super) now_s: i64,
    pub(super) certificate_days: i64,
}

/// What looking at one target gave.
struct Looked {
    check: Check,
    samples: Samples,
}

/// Looks at all targets.
pub(super) async fn collect(prober: &Prober, targets: &[Target], frame: Frame) -> Collected {
    let permits = Semaphore::new(AT_ONCE);
    let mut looks: FuturesUnordered<_> =
        targets.iter().map(|target| look_at(prober, target, frame, &permits)).collect();
    let mut collected = Collected::default();
    while let Some(looked) = looks.next().await {
        collected.checks.push(looked.check);
        collected.samples.0.extend(looked.samples.0);
    }
    collected
}

async fn look_at(prober: &Prober, target: &Target, frame: Frame, permits: &Semaphore) -> Looked {
    sleep(clock::offset(&target.name, frame.interval)).await;
    let mut samples = Samples::default();
    let mut readings = Vec::new();
    loop {
        let look = async {
            // It is never closed; an error would only mean no limit.
            let _permit = permits.acquire().await;
            look_once(prober, target, frame).await
        };
        let (reading, figures) = match timeout_at(frame.deadline, look).await {
            Ok(looked) => looked,
            Err(_) if readings.is_empty() => {
                let why =
                    "no end before the next look was due; telemetry.timeout_ms is too long for the interval";
                (Reading::down(why), Samples::default())
            }
            Err(_) => break,
        };
        let failed = reading.status == Status::Down;
        samples = figures;
        readings.push(reading);
        match AGAIN.get(readings.len() - 1) {
            Some(pause) if failed && Instant::now() + *pause < frame.deadline => sleep(*pause).await,
            _ => break,
        }
    }
    Looked { check: Check { service: target.name.clone(), readings, quiet: false }, samples }
}

async fn look_once(prober: &Prober, target: &Target, frame: Frame) -> (Reading, Samples) {
    let mut samples = Samples::default();
    let name = &target.name;
    let reading = match &target.kind {
        TargetKind::Tcp { host, port } => {
            let probed = prober.tcp(host, *port).await;
            figures(&mut samples, name, &probed.timings, None, frame.now_s);
            verdict::tcp(&probed, target.slow)
        }
        TargetKind::Http { url, body } => {
            let probed = fetch(prober, url).await;
            figures(&mut samples, name, &probed.timings, probed.certificate_end, frame.now_s);
            if let Ok(answer) = &probed.outcome {
                samples.add("probe_http_status", name, f64::from(answer.status));
            }
            let days = frame.certificate_days;
            let expected = Expected { slow: target.slow, body: body.as_deref(), certificate_days: days };
            verdict::http(&probed, expected, frame.now_s)
        }
    };
    samples.add("probe_up", name, if reading.status == Status::Down { 0.0 } else { 1.0 });
    (reading, samples)
}

/// Fetches a page, and where that is on the same server, the one it leads to.
async fn fetch(prober: &Prober, url: &reqwest::Url) -> Probed<HttpAnswer> {
    let mut probed = prober.http(url).await;
    let mut at = url.clone();
    for _ in 0..HOPS {
        let next = probed.outcome.as_ref().ok().and_then(|answer| verdict::same_origin(&at, answer));
        let Some(next) = next else { break };
        let before = probed.timings.total;
        probed = prober.http(&next).await;
        probed.timings.total += before;
        at = next;
    }
    probed
}

fn figures(samples: &mut Samples, name: &str, timings: &Timings, end: Option<i64>, now_s: i64) {
    let seconds = |part: Option<Duration>| part.map(|part| part.as_secs_f64());
    samples.add("probe_seconds", name, timings.total.as_secs_f64());
    samples.add_some("probe_dns_seconds", name, seconds(timings.dns));
    samples.add_some("probe_connect_seconds", name, seconds(timings.connect));
    samples.add_some("probe_tls_seconds", name, seconds(timings.tls));
    samples.add_some("probe_first_byte_seconds", name, seconds(timings.first_byte));
    #[expect(clippy::cast_precision_loss, reason = "days")]
    samples.add_some("probe_certificate_days", name, end.map(|end| verdict::days_left(end, now_s) as f64));
}
