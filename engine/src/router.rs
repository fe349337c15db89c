//! From a job's name to the handler that runs it, with the types erased.

use std::{collections::BTreeMap, future::Future, marker::PhantomData, pin::Pin, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    context::JobContext,
    handler::{BoxError, FinalCause, Handler, JobError},
};

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a handler made of an attempt: JSON text of its result, or why not.
pub(crate) enum Ran {
    Ok(String),
    BadPayload(String),
    Failed(JobError),
}

/// A [`Handler`] without its types.
pub(crate) trait AnyHandler: Send + Sync {
    fn run<'a>(&'a self, ctx: &'a JobContext) -> BoxFuture<'a, Ran>;
    fn on_failed<'a>(
        &'a self,
        ctx: &'a JobContext,
        cause: FinalCause,
        reason: &'a str,
    ) -> BoxFuture<'a, Result<(), BoxError>>;
}

struct Typed<H>(H);

impl<H: Handler> AnyHandler for Typed<H> {
    fn run<'a>(&'a self, ctx: &'a JobContext) -> BoxFuture<'a, Ran> {
        Box::pin(async move {
            let data = match serde_json::from_str::<H::Data>(ctx.data_json()) {
                Ok(data) => data,
                Err(error) => return Ran::BadPayload(format!("the payload cannot be decoded: {error}")),
            };
            match self.0.run(ctx, data).await {
                Ok(output) => match serde_json::to_string(&output) {
                    Ok(json) => Ran::Ok(json),
                    Err(e) => {
                        Ran::Failed(JobError::never(format!("the result cannot be written as JSON: {e}")))
                    }
                },
                Err(error) => Ran::Failed(error),
            }
        })
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

/// The handlers of a worker.
#[derive(Clone, Default)]
pub(crate) struct Router {
    named: BTreeMap<String, Arc<dyn AnyHandler>>,
    any: Option<Arc<dyn AnyHandler>>,
    first: Option<Arc<dyn AnyHandler>>,
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

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// The handler of jobs with this name.
    pub(crate) fn find(&self, name: &str) -> Option<&Arc<dyn AnyHandler>> {
        self.named.get(name).or(self.any.as_ref())
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
