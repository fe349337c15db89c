//! Fetching one page: HTTP/1.1 on a connection of its own, the body up to a bound.

use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use reqwest::Url;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use super::{Look, ProbeError, Probed, Prober};

/// Most of a body that is read; the rest is left.
const BODY_MAX: usize = 64 * 1024;
const AGENT: &str = concat!("mpanel-fleet-telemetry/", env!("CARGO_PKG_VERSION"));

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpAnswer {
    /// Its status.
    pub status: u16,
    /// Where a redirect leads, as the server says it.
    pub location: Option<String>,
    /// The body, or its first 64 KiB.
    pub body: Vec<u8>,
}

impl Prober {
    /// Fetches a page.
    ///
    /// # Cancel safety
    /// May be dropped at any point.
    pub async fn http(&self, url: &Url) -> Probed<HttpAnswer> {
        let mut look = self.look();
        let answer = self.fetch(&mut look, url).await;
        look.done(answer)
    }

    async fn fetch(&self, look: &mut Look, url: &Url) -> Result<HttpAnswer, ProbeError> {
        let no_host = || ProbeError::Setup(format!("{} names no host", url.scheme()));
        let host = url.host_str().ok_or_else(no_host)?.trim_matches(['[', ']']).to_owned();
        let port = url.port_or_known_default().ok_or_else(no_host)?;
        let stream = look.connect(&host, port).await?;
        // Without it the last part of a request may wait for an acknowledgement.
        let _ = stream.set_nodelay(true);
        if url.scheme() == "https" {
            let begun = Instant::now();
            let (shaken, end) = self.trust.shake_hands(&host, stream, look.deadline).await;
            look.certificate_end = end;
            let stream = match shaken {
                Some(Ok(stream)) => stream,
                Some(Err(detail)) => return Err(ProbeError::Tls(detail)),
                None => return Err(look.timeout("TLS was agreed on")),
            };
            look.timings.tls = Some(begun.elapsed());
            exchange(look, url, stream).await
        } else {
            exchange(look, url, stream).await
        }
    }
}

async fn exchange<S>(look: &mut Look, url: &Url, stream: S) -> Result<HttpAnswer, ProbeError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let broken = |error: hyper::Error| {
        // hyper's own words hide the cause.
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        ProbeError::Http(format!("{error}{}", cause.unwrap_or_default()))
    };
    let begun = Instant::now();
    let request = request(url)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // Its errors come out of the request.
    let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
    let answer = timeout_at(look.deadline, sender.send_request(request)).await;
    let answer = answer.map_err(|_| look.timeout("an answer was waited for"))?.map_err(broken)?;
    look.timings.first_byte = Some(begun.elapsed());
    let status = answer.status().as_u16();
    let location = answer.headers().get(header::LOCATION);
    let location = location.and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut incoming = answer.into_body();
    let mut body = Vec::new();
    while body.len() < BODY_MAX {
        let frame = timeout_at(look.deadline, incoming.frame()).await;
        match frame.map_err(|_| look.timeout("the body was read"))? {
            Some(frame) => {
                if let Ok(data) = frame.map_err(broken)?.into_data() {
                    let room = BODY_MAX - body.len();
                    body.extend_from_slice(&data[..data.len().min(room)]);
                }
            }
            None => break,
        }
    }
    Ok(HttpAnswer { status, location, body })
}

fn request(url: &Url) -> Result<Request<Empty<Bytes>>, ProbeError> {
    let mut path = url.path().to_owned();
    if let Some(query) = url.query() {
        path.push('?');
        path.push_str(query);
    }
    let host = url.host_str().unwrap_or_default();
    let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, AGENT)
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| ProbeError::Setup(format!("no request can be made of the address: {error}")))
}
