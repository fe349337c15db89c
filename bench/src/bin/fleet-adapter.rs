//! Our side of the peer benchmark: `fleet-adapter VERB N [--option value]…` with
//! `REDIS_URL` and `BENCH_QUEUE` in the environment; one JSON line last.

use clap::Parser;
use mpanel_bench::{BoxError, fleet};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let answer = Box::pin(fleet::run(fleet::Cli::parse())).await?;
    #[expect(clippy::print_stdout, reason = "the contract")]
    {
        println!("{}", serde_json::to_string(&answer)?);
    }
    Ok(())
}
