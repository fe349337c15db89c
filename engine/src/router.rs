//! From a job's name to the handler that runs it, with the types erased, and the
//! middleware around it.

use std::{
    collections::BTreeMap, future::Future, marker::PhantomData, panic::AssertUnwindSafe, pin::Pin, sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    context::JobContext,
    handler::{BoxError, FinalCause, Handler, JobError},
    middleware::{AnyMiddleware, Middleware, Next, ReturnValue},
};

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What came of an attempt: JSON text of its result, or why not.
pub(crate) type Ran = Result<ReturnValue, JobError>;

/// A [`Handler`] without its types. Its futures own what they need, so that they
/// can be given to a task of their own.
pub(crate) trait AnyHandler: Send + Sync {
    fn run(self: Arc<Self>, ctx: JobContext) -> BoxFuture<'static, Ran>;
    fn time_limit(&self, ctx: &JobContext) -> Option<Duration>;
    fn on_failed<'a>(
        &'a self,
        ctx: &'a JobContext,
        cause: FinalCause,
        reason: &'a str,
    ) -> BoxFuture<'a, Result<(), BoxError>>;
}

struct Typed<H>(H);

impl<H: Handler> Typed<H> {
    async fn attempt(&self, ctx: &JobContext) -> Ran {
        let data = serde_json::from_str::<H::Data>(ctx.data_json())
            .map_err(|error| JobError::bad_payload(format!("the payload cannot be decoded: {error}")))?;
        let output = self.0.run(ctx, data).await?;
        ReturnValue::of(&output)
    }
}

impl<H: Handler> AnyHandler for Typed<H> {
    fn run(self: Arc<Self>, ctx: JobContext) -> BoxFuture<'static, Ran> {
        Box::pin(async move {
            let attempt = AssertUnwindSafe(self.attempt(&ctx)).catch_unwind();
            attempt.await.unwrap_or_else(|panic| Err(JobError::panicked(&panic_text(panic.as_ref()))))
        })
    }

    fn time_limit(&self, ctx: &JobContext) -> Option<Duration> {
        self.0.time_limit(ctx)
    }

    fn on_failed<'a>(
        &'a self,
        ctx: &'a JobContext,
        cause: FinalCause,
        reason: &'a str,
    ) -> BoxFuture<'a, Result<(), BoxError>> {
        Box::pin(self.0.on_failed(ctx, cause, reason))
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

/// The handlers of a worker, and what stands around them.
#[derive(Clone, Default)]
pub(crate) struct Router {
    named: BTreeMap<String, Arc<dyn AnyHandler>>,
    any: Option<Arc<dyn AnyHandler>>,
    first: Option<Arc<dyn AnyHandler>>,
    middleware: Arc<[Arc<dyn AnyMiddleware>]>,
}

impl Router {
    pub(crate) fn add<H: Handler>(&mut self, name: Option<&str>, handler: H) {
        let handler: Arc<dyn AnyHandler> = Arc::new(Typed(handler));
        self.first.get_or_insert_with(|| handler.clone());
        match name {
            Some(name) => {
                self.named.insert(name.to_owned(), handler);
            }
            None => self.any = Some(handler),
        }
    }

    pub(crate) fn surround<M: Middleware>(&mut self, middleware: M) {
        let outer = self.middleware.iter().cloned();
        let inner: Arc<dyn AnyMiddleware> = Arc::new(middleware);
        self.middleware = outer.chain([inner]).collect();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// The handler of jobs with this name.
    pub(crate) fn find(&self, name: &str) -> Option<&Arc<dyn AnyHandler>> {
        self.named.get(name).or(self.any.as_ref())
    }

    /// One attempt by `handler`, through the middleware.
    pub(crate) fn run(&self, handler: &Arc<dyn AnyHandler>, ctx: JobContext) -> BoxFuture<'static, Ran> {
        if self.middleware.is_empty() {
            return handler.clone().run(ctx);
        }
        Next::new(self.middleware.clone(), handler.clone()).start(ctx)
    }

    /// Who is told of a job that nobody handles: the first handler registered.
    pub(crate) fn fallback(&self) -> Option<&Arc<dyn AnyHandler>> {
        self.first.as_ref()
    }

    /// The names served, for messages.
    pub(crate) fn names(&self) -> String {
        self.named.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
    }
}

/// A handler from a closure; see [`handler_fn`].
pub struct HandlerFn<F, D> {
    run: F,
    data: PhantomData<fn(D)>,
}

impl<F, D> std::fmt::Debug for HandlerFn<F, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HandlerFn")
    }
}

/// Makes a handler of a closure from context and payload to a result.
pub fn handler_fn<F, D, O, Fut>(run: F) -> HandlerFn<F, D>
where
    F: Fn(JobContext, D) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<O, JobError>> + Send,
    D: DeserializeOwned + Send + 'static,
    O: Serialize + Send,
{
    HandlerFn { run, data: PhantomData }
}

impl<F, D, O, Fut> Handler for HandlerFn<F, D>
where
    F: Fn(JobContext, D) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<O, JobError>> + Send,
    D: DeserializeOwned + Send + 'static,
    O: Serialize + Send,
{
    type Data = D;
    type Output = O;

    async fn run(&self, ctx: &JobContext, data: D) -> Result<O, JobError> {
        (self.run)(ctx.clone(), data).await
    }
}
