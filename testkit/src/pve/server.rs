//! The HTTPS listener: connections, limits of the wire, keep-alive.
//!
//! Turns bytes into `route::Request` and answers into bytes. Knows no path and no parameter.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::ext::ReasonPhrase;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request as HttpRequest, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::Core;
use super::route::{self, Answer, Request};
use super::wire::ApiError;

const BODY_MAX_BYTES: usize = 512 * 1024;
/// What still is read of a body that is too large, so that the refusal can be delivered.
const BODY_DRAIN_BYTES: usize = 8 * 1024 * 1024;
const HEADERS_MAX: usize = 64;
const HEADER_MAX_BYTES: usize = 8 * 1024;
/// How long a connection may sit idle between two requests.
const IDLE_MAX: Duration = Duration::from_secs(5);
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Marks a connection that has to be closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("connection dropped by a fault")]
struct DropConnection;

/// Accepts until `stop` changes or its sender is gone.
pub(crate) async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    core: Arc<Core>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.changed() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let (acceptor, core, stop) = (acceptor.clone(), Arc::clone(&core), stop.clone());
                tokio::spawn(connection(stream, acceptor, core, stop));
            }
            // Out of file descriptors, most likely: let some close.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    core: Arc<Core>,
    mut stop: watch::Receiver<bool>,
) {
    // Without it only latency suffers.
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await else { return };
    let service = service_fn(move |request| respond(Arc::clone(&core), request));
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_MAX)
        .max_headers(HEADERS_MAX)
        .max_header_size(HEADER_MAX_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // However a connection ends, there is nobody left to tell.
        _ = serving => {}
        _ = stop.changed() => {}
    }
}

async fn respond(
    core: Arc<Core>,
    request: HttpRequest<Incoming>,
) -> Result<Response<Full<Bytes>>, DropConnection> {
    let (parts, body) = request.into_parts();
    let chunked = parts.headers.contains_key("transfer-encoding");
    let announced = parts
        .headers
        .get("content-length")
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<usize>().ok())
        .unwrap_or(0);
    let takes_body = matches!(parts.method.as_str(), "POST" | "PUT");
    let refusal = if chunked {
        Some(ApiError::new(501, "chunked transfer encoding not supported"))
    } else if announced > 0 && !takes_body {
        Some(ApiError::new(501, format!("Unexpected content for method '{}'", parts.method)))
    } else if announced > BODY_MAX_BYTES {
        Some(ApiError::new(501, "for data too large"))
    } else {
        None
    };
    let limit = if refusal.is_some() { BODY_DRAIN_BYTES } else { BODY_MAX_BYTES };
    let body = match Limited::new(body, limit).collect().await {
        Ok(collected) => collected.to_bytes().to_vec(),
        // Longer than even the drain takes: answer, and let the connection close.
        Err(_) if refusal.is_some() => Vec::new(),
        Err(_) => return Err(DropConnection),
    };
    let request = Request {
        method: parts.method.as_str().to_owned(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers,
        body: if refusal.is_some() { Vec::new() } else { body },
        refusal,
    };
    // Its own task: a client that hangs up does not undo what it asked for.
    match tokio::spawn(route::answer(core, request)).await {
        Ok(Answer::Reply { status, reason, body }) => {
            Ok(response(status, reason, body).unwrap_or_else(|infallible| match infallible {}))
        }
        Ok(Answer::Dropped) | Err(_) => Err(DropConnection),
    }
}

fn response(status: u16, reason: Option<String>, body: String) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json;charset=UTF-8"));
    headers.insert("server", HeaderValue::from_static("pve-api-daemon/3.0"));
    if status >= 400 {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(reason) = reason.and_then(|text| ReasonPhrase::try_from(text).ok()) {
        response.extensions_mut().insert(reason);
    }
    Ok(response)
}
