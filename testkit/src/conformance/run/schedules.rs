//! Steps about schedules, and what a fetch does for them.

use mpanel_producer::{EnqueueError, JobTemplate, Repeat, Schedules, Zone};
use mpanel_protocol::calls::{
    fetch::Fetched,
    schedule::{ScheduleOpError, continue_schedule},
};
use serde_json::{Map, Value, json};

use super::{Runner, StepError, StepResult, js, mask, text};

impl Runner<'_> {
    async fn schedules(&mut self, queue: &str) -> Result<Schedules, StepError> {
        self.open(queue).await?;
        // The goldens were made in UTC.
        Ok(self.producer.schedules(queue)?.time_zone(Zone::utc()))
    }

    fn repeat(given: &Value) -> Repeat {
        Repeat::from_json(js::normalised(given).as_object().cloned().unwrap_or_default())
    }

    pub(super) async fn upsert_scheduler(&mut self, queue: &str, step: &Map<String, Value>) -> StepResult {
        let schedules = self.schedules(queue).await?;
        let id = text(step, "id").unwrap_or_default();
        let given = step.get("template").cloned().unwrap_or_default();
        let options = js::short_names(self.with_defaults(given.get("opts")));
        let mut template = JobTemplate::new(
            given.get("name").filter(|n| !n.is_null()).map_or_else(|| id.to_owned(), js::argument),
        )
        .options_json(js::normalised(&options.into()).as_object().cloned().unwrap_or_default());
        if let Some(data) = given.get("data") {
            template = template.data(js::normalised(data))?;
        }
        let repeat = step.get("repeat").unwrap_or(&Value::Null);
        // `cron`, which repeatables have, is no word here.
        if repeat.get("pattern").is_none() && repeat.get("every").is_none() {
            return Err(StepError::new("a scheduler needs `pattern` or `every`"));
        }
        let repeat = Self::repeat(repeat);
        let scheduled = schedules.upsert(id, repeat, template).await?;
        #[expect(clippy::cast_possible_truncation, reason = "a delay in ms")]
        Ok(scheduled.map_or(
            Value::Null,
            |s| json!({ "id": mask(s.id.as_str()), "delay": s.delay.as_millis() as u64 }),
        ))
    }

    pub(super) async fn remove_scheduler(&mut self, queue: &str, id: &str) -> StepResult {
        Ok(json!(self.schedules(queue).await?.remove(id).await?))
    }

    /// `add` with `repeat`.
    pub(super) async fn add_repeatable(
        &mut self,
        queue: &str,
        name: &str,
        data: &Value,
        mut options: Map<String, Value>,
    ) -> StepResult {
        let schedules = self.schedules(queue).await?;
        let repeat = Self::repeat(&options.shift_remove("repeat").unwrap_or_default());
        let options = js::job_options(options).map_err(StepError::new)?;
        let added = match schedules.add_repeatable(name, &js::raw(data)?, options.into(), &repeat).await {
            Err(error @ EnqueueError::TooLarge { .. }) => {
                return Err(StepError::new(format!("too large for a repeatable: {error}")));
            }
            other => other?,
        };
        // The oracle prints the id of a job that it was not given.
        Ok(json!(added.map_or_else(|| "undefined".to_owned(), |e| mask(e.id().as_str()))))
    }

    /// What a worker does for the schedules of jobs it has just taken.
    pub(super) async fn continue_schedules(
        &mut self,
        queue: &str,
        fetched: &Fetched,
    ) -> Result<(), StepError> {
        let keys = self.keys(queue)?;
        let mut conn = self.conn().await?;
        for job in &fetched.jobs {
            let now = mpanel_protocol::time::Clock::now(&*self.clock);
            match continue_schedule(&mut conn, &keys, self.peer, now, Zone::utc(), job).await {
                // The schedule ends here, and says why; the job runs.
                Ok(_) | Err(ScheduleOpError::Schedule(_)) => {}
                Err(ScheduleOpError::Refused { refusal, .. }) => return Err(refusal.into()),
                Err(ScheduleOpError::Script(error)) => {
                    return Err(EnqueueError::Refused(error.to_string()).into());
                }
            }
        }
        Ok(())
    }
}
