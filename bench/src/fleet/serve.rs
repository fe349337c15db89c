//! `serve`: workers of one or many queues in a process that the runner steers.

use std::time::Duration;

use mpanel_engine::{Engine, JobContext, JobError, Worker, handler_fn};

use super::{Cli, Drain, consume::worker, queue_names};
use crate::{
    BoxError,
    contract::{Answer, Payload, own_rss_kb},
    serve::{Completions, Steering},
};

pub(super) async fn serve(cli: &Cli, what: &Drain) -> Result<Answer, BoxError> {
    let engine = Engine::connect(&cli.redis_url).await?;
    let workers = queue_names(cli, what.queues)
        .iter()
        .map(|queue| {
            let handler = handler_fn(|_: JobContext, _: Payload| async { Ok::<_, JobError>(()) });
            Ok(worker(&engine, queue, what)?.handle_any(handler))
        })
        .collect::<Result<Vec<_>, BoxError>>()?;
    let rss_idle_kb = own_rss_kb()?;
    let mut serving = Steering::ready()?.go().await?;
    let workers =
        workers.into_iter().map(|worker| Ok(worker.start()?)).collect::<Result<Vec<_>, BoxError>>()?;
    let completions = Completions::default();
    tokio::select! {
        () = serving.until_end() => {}
        () = note_idle(&workers, &completions) => {}
    }
    for worker in &workers {
        worker.pause();
    }
    for worker in &workers {
        worker.until_quiet().await;
    }
    let n = completed(&workers);
    let answer = serving.close(n, &completions)?;
    for worker in workers {
        worker.stop(Duration::from_secs(5)).await;
    }
    Ok(Answer { rss_idle_kb: Some(rss_idle_kb), ..answer })
}

fn completed(workers: &[Worker]) -> u64 {
    workers.iter().map(|worker| worker.stats().completed).sum()
}

/// Notes when all workers became idle after new completions, for ever: noting each
/// completion would cost what is measured.
async fn note_idle(workers: &[Worker], completions: &Completions) {
    let mut noted = 0;
    loop {
        for worker in workers {
            worker.until_idle().await;
        }
        let count = completed(workers);
        if count > noted {
            completions.note_time();
            noted = count;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
