// The operations of the side-car. Each takes the request and returns what goes into the answer's `ok`.
// Queues, QueueEvents and mPanel's producer are opened on first use and kept until `closeAll`.
import { createRequire } from 'node:module';
import { Gates, processor } from './behaviour.mjs';
import { plainConnection } from './connection.mjs';
import { Journal } from './journal.mjs';
import { openMpanelQueues } from './mpanel-queues.mjs';
import { inSpan, spans, telemetry } from './telemetry.mjs';

const require = createRequire(import.meta.url);
export const VERSIONS = ['bullmq-5.28', 'bullmq-5', 'bullmq-6'];

/** What a test may want to know of a job, under BullMQ's own names. */
async function view(job) {
  if (!job) return null;
  const { id, name, data, opts, returnvalue, failedReason, stacktrace, attemptsMade, attemptsStarted, progress,
    timestamp, processedOn, finishedOn, delay, priority, parentKey, processedBy, stalledCounter } = job;
  const state = await job.getState();
  return { id, name, data, opts, returnvalue, failedReason, stacktrace, attemptsMade, attemptsStarted, progress,
    timestamp, processedOn, finishedOn, delay, priority, parentKey, processedBy, stalledCounter, state };
}

export function operations(connection) {
  const queues = new Map(), events = new Map(), flows = new Map(), workers = new Map(), mpanels = new Map();
  const gates = new Gates();
  let nextWorker = 1, raw;

  const lib = r => {
    if (!VERSIONS.includes(r.version)) throw new Error(`unknown version ${r.version}; known: ${VERSIONS.join(', ')}`);
    return require(r.version);
  };
  const settings = r => ({ connection, ...(r.prefix ? { prefix: r.prefix } : {}),
    ...(r.telemetry ? { telemetry: telemetry(r.version) } : {}) });
  const place = r => [r.version, r.prefix ?? '', r.telemetry ? 'traced' : ''];
  const key = r => [...place(r), r.queue].join('\n');
  const within = (r, f) => r.span ? inSpan(r.span, f) : f();
  const once = (map, id, open) => {
    if (!map.has(id)) {
      const opening = open();
      map.set(id, opening);
      opening.catch(() => map.delete(id)); // what could not be opened is tried anew next time
    }
    return map.get(id);
  };
  const quiet = (what, opened) => { opened.on('error', e => console.error(`${what}: ${e.message}`)); return opened; };

  const queueOf = r => once(queues, key(r), async () => {
    const queue = quiet(`queue ${r.queue}`, new (lib(r).Queue)(r.queue, settings(r)));
    await queue.waitUntilReady();
    return queue;
  });
  const jobOf = async r => {
    const job = await (await queueOf(r)).getJob(r.jobId);
    if (!job) throw new Error(`job ${r.jobId} is not in queue ${r.queue}`);
    return job;
  };
  // Starts from the stream's end as it is now, so that nothing added after the answer is missed.
  const eventsOf = r => once(events, key(r), async () => {
    raw ??= plainConnection(connection);
    const [last] = await raw.xrevrange(`${r.prefix ?? 'bull'}:${r.queue}:events`, '+', '-', 'COUNT', 1);
    const opened = quiet(`events ${r.queue}`, new (lib(r).QueueEvents)(r.queue, { ...settings(r), lastEventId: last?.[0] ?? '0-0' }));
    const journal = new Journal(), emit = opened.emit.bind(opened);
    opened.emit = (event, args, id) => {
      // `drained` has no fields: its only argument is the entry's id.
      if (event === 'drained') journal.push({ event, id: args });
      if (args && typeof args === 'object' && !(args instanceof Error)) journal.push({ event, id, jobId: args.jobId, args });
      return emit(event, args, id);
    };
    await opened.waitUntilReady();
    return { opened, journal };
  });
  const workerOf = r => {
    const found = workers.get(r.worker);
    if (!found) throw new Error(`no worker ${r.worker}`);
    return found;
  };
  const mpanelOf = r => once(mpanels, [r.version, r.prefix ?? ''].join('\n'), async () => {
    const clock = {};
    const panel = await openMpanelQueues(lib(r), connection, { prefix: r.prefix, now: () => clock.frozenAt ?? Date.now() });
    return { panel, clock };
  });
  const waitFor = (journal, r) => {
    const what = r.jobId === undefined ? r.event : `${r.event}(${r.jobId})`;
    const matches = e => e.event === r.event && (r.jobId === undefined || e.jobId === r.jobId);
    return journal.wait(matches, r.count ?? 1, r.timeoutMs ?? 10_000, what);
  };

  return {
    hello: async () => ({ node: process.version, pid: process.pid,
      versions: Object.fromEntries(VERSIONS.map(v => [v, require(`${v}/package.json`).version])) }),

    openQueue: async r => { await queueOf(r); return null; },
    add: async r => {
      const queue = await queueOf(r);
      return view(await within(r, () => queue.add(r.name, r.data, r.opts)));
    },
    addBulk: async r => {
      const queue = await queueOf(r);
      return (await within(r, () => queue.addBulk(r.jobs))).map(job => job.id);
    },
    flow: async r => {
      const flow = await once(flows, place(r).join('\n'),
        async () => quiet('flow', new (lib(r).FlowProducer)(settings(r))));
      const ids = node => ({ id: node.job.id, queue: node.job.queueName, children: (node.children ?? []).map(ids) });
      return ids(await within(r, () => flow.add(r.flow)));
    },
    getJobCounts: async r => (await queueOf(r)).getJobCounts(...(r.types ?? [])),
    getJob: async r => view(await (await queueOf(r)).getJob(r.jobId)),
    getJobs: async r => Promise.all((await (await queueOf(r)).getJobs(r.types, r.start ?? 0, r.end ?? -1, r.asc)).map(view)),
    getState: async r => (await queueOf(r)).getJobState(r.jobId),
    logs: async r => (await queueOf(r)).getJobLogs(r.jobId, r.start ?? 0, r.end ?? -1),
    pause: async r => { await (await queueOf(r)).pause(); return null; },
    resume: async r => { await (await queueOf(r)).resume(); return null; },
    isPaused: async r => (await queueOf(r)).isPaused(),
    getWorkers: async r => (await queueOf(r)).getWorkers(),
    waitUntilFinished: async r => {
      const { opened } = await eventsOf(r);
      return (await (await jobOf(r)).waitUntilFinished(opened, r.timeoutMs ?? 10_000)) ?? null;
    },
    // Any other method of Queue or Job, by name; the answer must be JSON.
    queueCall: async r => {
      const queue = await queueOf(r);
      return (await within(r, () => queue[r.method](...(r.args ?? [])))) ?? null;
    },
    jobCall: async r => (await (await jobOf(r))[r.method](...(r.args ?? []))) ?? null,

    openEvents: async r => { await eventsOf(r); return null; },
    events: async r => (await eventsOf(r)).journal.entries,
    waitEvent: async r => waitFor((await eventsOf(r)).journal, r),

    openWorker: async r => {
      const bullmq = lib(r), journal = new Journal();
      const worker = new bullmq.Worker(r.queue, processor(bullmq, r.script ?? {}, gates), { ...settings(r), ...(r.opts ?? {}) });
      const note = (event, job, more) => journal.push({ event, jobId: job?.id, name: job?.name, attemptsMade: job?.attemptsMade, ...more });
      worker.on('active', job => note('active', job));
      worker.on('completed', (job, value) => note('completed', job, { returnvalue: value }));
      worker.on('failed', (job, error) => note('failed', job, { failedReason: error.message }));
      worker.on('stalled', jobId => journal.push({ event: 'stalled', jobId }));
      worker.on('drained', () => note('drained'));
      worker.on('error', error => note('error', undefined, { failedReason: error.message }));
      await worker.waitUntilReady();
      workers.set(nextWorker, { worker, journal });
      return nextWorker++;
    },
    workerEvents: async r => workerOf(r).journal.entries,
    waitWorker: async r => waitFor(workerOf(r).journal, r),
    pauseWorker: async r => { await workerOf(r).worker.pause(r.doNotWaitActive); return null; },
    resumeWorker: async r => { workerOf(r).worker.resume(); return null; },
    closeWorker: async r => { await workerOf(r).worker.close(!!r.force); workers.delete(r.worker); return null; },
    release: async r => { gates.release(r.gate); return null; },
    spans: async () => spans(),

    // mPanel's producer; `now` freezes the clock of its default job ids for this and later calls.
    mpanel: async r => {
      const { panel, clock } = await mpanelOf(r);
      if (r.now !== undefined) clock.frozenAt = r.now ?? undefined;
      const answer = await panel[r.fn](...(r.args ?? []));
      if (!answer || r.fn === 'getQueueStats') return answer ?? null;
      return { id: answer.id, name: answer.name, queueName: answer.queueName, opts: answer.opts };
    },
    openMpanel: async r => { await mpanelOf(r); return null; },
    closeMpanel: async r => {
      const { panel } = await mpanelOf(r);
      await panel.close();
      mpanels.delete([r.version, r.prefix ?? ''].join('\n'));
      return null;
    },

    closeAll: async r => {
      await Promise.all([...workers.values()].map(w => w.worker.close(!!r.force)));
      for (const map of [events, flows, mpanels, queues]) {
        for (const pending of map.values()) {
          const opened = await pending;
          await (opened.opened ?? opened.panel ?? opened).close();
        }
        map.clear();
      }
      workers.clear();
      if (raw !== connection) raw?.disconnect();
      raw = undefined;
      return null;
    },
  };
}
