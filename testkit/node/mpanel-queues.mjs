// What mPanel's producer file (src/services/cloudPodQueues.ts) does, said again in our own words, so that
// the demo and the tests can enqueue exactly as the panel does without carrying the panel's code.
// testkit/tests/mpanel_producer.rs compares what this leaves in Redis with dumps of the original.

/** Queue by the short name mPanel uses for it; `getQueueStats` answers under the same names. */
export const QUEUE_NAMES = {
  create: 'cloudpods-create',
  destroy: 'cloudpods-destroy',
  backup: 'cloudpods-backup',
  health: 'cloudpods-health',
  scale: 'cloudpods-scale',
};

/** Attempts per operation; everything else is the same for the five queues. */
const ATTEMPTS = { create: 2, destroy: 3, backup: 3, health: 1, scale: 2 };

const jobOptions = (operation, jobId) => ({
  attempts: ATTEMPTS[operation],
  backoff: { type: 'exponential', delay: 5000 },
  removeOnComplete: { age: 86_400, count: 1000 },
  removeOnFail: { age: 604_800 },
  jobId,
});

/**
 * Opens the five queues and their QueueEvents, as importing mPanel's file does (ten connections).
 * `now` gives the number in the default job ids.
 */
export async function openMpanelQueues(bullmq, connection, { prefix, now = () => Date.now() } = {}) {
  const settings = { connection, ...(prefix ? { prefix } : {}) };
  const queues = {}, events = {};
  for (const [short, name] of Object.entries(QUEUE_NAMES)) {
    queues[short] = new bullmq.Queue(name, settings);
    events[short] = new bullmq.QueueEvents(name, settings);
    for (const opened of [queues[short], events[short]]) opened.on('error', e => console.error(`mpanel ${name}: ${e.message}`));
  }
  await Promise.all([...Object.values(queues), ...Object.values(events)].map(opened => opened.waitUntilReady()));

  const enqueue = (operation, payload, jobId) =>
    queues[operation].add(operation, payload, jobOptions(operation, jobId ?? `${operation}-${payload.vmid}-${now()}`));

  return {
    queues,
    events,
    enqueueCloudPodCreate: (payload, jobId) => enqueue('create', payload, jobId),
    enqueueCloudPodDestroy: (payload, jobId) => enqueue('destroy', payload, jobId),
    enqueueCloudPodBackup: (payload, jobId) => enqueue('backup', payload, jobId),
    enqueueCloudPodHealth: (payload, jobId) => enqueue('health', payload, jobId),
    enqueueCloudPodScale: (payload, jobId) => enqueue('scale', payload, jobId),

    // A legacy repeatable, not a job scheduler: another interval adds a second schedule beside the first.
    scheduleHealthChecks: (minutes = 5) =>
      queues.health.add(
        'scheduled-health-sweep',
        { tenantId: 'system', vmid: 0, cloudPodId: 'all', triggeredBy: 'schedule' },
        { ...jobOptions('health', 'health-sweep-schedule'), repeat: { every: minutes * 60_000 } },
      ),

    async getQueueStats() {
      const stats = {};
      for (const [short, queue] of Object.entries(queues)) stats[short] = await queue.getJobCounts();
      return stats;
    },

    async close() {
      await Promise.all([...Object.values(events), ...Object.values(queues)].map(opened => opened.close()));
    },
  };
}
