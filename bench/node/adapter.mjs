// npm bullmq's side of the peer benchmark: node adapter.mjs VERB N [--option value]…, REDIS_URL and
// BENCH_QUEUE in the environment, one JSON line last. Which bullmq: --bullmq or BENCH_BULLMQ, one of
// bullmq-5 (5.81.5, default), bullmq-5.28, bullmq-6: the locked packages of testkit/node.
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

const JOB_NAME = 'noop';
const [verb, count, ...rest] = process.argv.slice(2);
const options = { mode: 'bulk', batch: 1000, window: 200, concurrency: 50, 'interval-ms': 5, bullmq: process.env.BENCH_BULLMQ ?? 'bullmq-5' };
for (let i = 0; i < rest.length; i += 2) options[rest[i].replace(/^--/, '')] = rest[i + 1];
const number = name => (options[name] === undefined ? undefined : Number(options[name]));
const n = Number(count ?? 0);
const queueName = process.env.BENCH_QUEUE ?? 'bench';

const require = createRequire(process.env.BENCH_NODE_PACKAGES ?? new URL('../../testkit/node/package.json', import.meta.url));
const entry = require.resolve(options.bullmq);
const bullmq = require(options.bullmq);
const version = JSON.parse(readFileSync(`${entry.slice(0, entry.indexOf('/dist/'))}/package.json`, 'utf8')).version;
const url = new URL(process.env.REDIS_URL ?? 'redis://127.0.0.1:6379');
const connection = {
  host: url.hostname, port: Number(url.port || 6379), username: url.username || undefined,
  password: decodeURIComponent(url.password) || undefined, db: Number(url.pathname.slice(1) || 0), maxRetriesPerRequest: null,
};

const epochMs = () => performance.timeOrigin + performance.now();
const payload = i => ({ i, t: epochMs(), pad: 'x'.repeat(150) });
const rssKb = () => Number(/VmRSS:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1]);
const openWindow = () => ({ began: performance.now(), cpu: process.cpuUsage() });
function closeWindow(window) {
  const wall_ms = performance.now() - window.began, cpu = process.cpuUsage(window.cpu);
  return { n, wall_ms, cpu_ms: (cpu.user + cpu.system) / 1000, rss_kb: rssKb() };
}

async function openQueue() {
  const queue = new bullmq.Queue(queueName, { connection });
  await queue.waitUntilReady();
  return queue;
}

/** What job i is given. */
function optionsOf() {
  const keep = number('keep'), attempts = number('attempts'), backoff = number('backoff'), delay = number('delay'), priorities = number('priorities');
  const common = {
    ...(keep !== undefined && { removeOnComplete: keep === 0 ? true : keep }),
    ...(attempts !== undefined && { attempts }),
    ...(backoff > 0 && { backoff: { type: 'fixed', delay: backoff } }),
    ...(delay > 0 && { delay }),
  };
  return i => (priorities > 0 ? { ...common, priority: 1 + (i % priorities) } : common);
}

/** The indices of the jobs, in batches. */
function* batches(total, batch) {
  for (let first = 0; first < total; first += batch) yield Array.from({ length: Math.min(batch, total - first) }, (_, i) => first + i);
}

async function enqueue() {
  const queue = await openQueue(), opts = optionsOf(), children = number('children'), batch = number('batch');
  const flows = children ? new bullmq.FlowProducer({ connection }) : undefined;
  await flows?.waitUntilReady?.();
  const window = openWindow();
  if (flows) {
    const each = children + 1, job = i => ({ name: JOB_NAME, queueName, data: payload(i), opts: opts(i) });
    for (const indices of batches(Math.floor(n / each), Math.floor(batch / each))) {
      await flows.addBulk(indices.map(flow => ({ ...job(flow * each), children: Array.from({ length: children }, (_, c) => job(flow * each + 1 + c)) })));
    }
  } else if (options.mode === 'single') {
    let next = 0;
    await Promise.all(Array.from({ length: number('window') }, async () => {
      while (next < n) await queue.add(JOB_NAME, payload(next++), opts(0));
    }));
  } else if (options.mode === 'pipelined') {
    for (const indices of batches(n, batch)) await Promise.all(indices.map(i => queue.add(JOB_NAME, payload(i), opts(i))));
  } else {
    for (const indices of batches(n, batch)) await queue.addBulk(indices.map(i => ({ name: JOB_NAME, data: payload(i), opts: opts(i) })));
  }
  const answer = closeWindow(window);
  await flows?.close();
  await queue.close();
  return answer;
}

/** A worker that is connected and idle. */
async function idleWorker(name, handler) {
  const metrics = number('metrics'), limit = number('limit');
  const worker = new bullmq.Worker(name, handler, {
    connection, autorun: false, concurrency: number('concurrency'), removeOnComplete: { count: number('keep') ?? 0 },
    ...(metrics && { metrics: { maxDataPoints: metrics } }),
    ...(limit && { limiter: { max: limit, duration: 1000 } }),
  });
  worker.on('error', error => console.error(`worker: ${error.message}`));
  await worker.waitUntilReady();
  return worker;
}

/** The same; `finished` resolves with the n-th completion. */
async function openWorker(handler) {
  let resolve, seen = 0;
  const finished = new Promise(done => { resolve = done; });
  const worker = await idleWorker(queueName, handler);
  worker.on('completed', () => { if (++seen === n) resolve(); });
  return { worker, finished };
}

/** Works from SIGUSR2 to SIGTERM: one of several processes, begun together by the runner. */
async function serve() {
  const signalled = name => new Promise(resolve => process.once(name, resolve));
  const go = signalled('SIGUSR2'), end = signalled('SIGTERM');
  const count = number('queues');
  const names = count ? Array.from({ length: count }, (_, i) => `${queueName}-${i}`) : [queueName];
  const workers = [];
  for (const name of names) workers.push(await idleWorker(name, async () => {}));
  let completed = 0, ended_ms;
  for (const worker of workers) worker.on('completed', () => { completed++; ended_ms = epochMs(); });
  const rss_idle_kb = rssKb();
  console.log('{"ready":true}');
  await go;
  const window = openWindow(), began_ms = epochMs();
  for (const worker of workers) worker.run();
  await end;
  await Promise.all(workers.map(worker => worker.close()));
  return { ...closeWindow(window), n: completed, began_ms, ended_ms: ended_ms ?? epochMs(), rss_idle_kb };
}

async function consume(handler) {
  const { worker, finished } = await openWorker(handler);
  const rss_idle_kb = rssKb(), window = openWindow();
  worker.run();
  await finished;
  const answer = closeWindow(window);
  await worker.close();
  return { ...answer, rss_idle_kb };
}

async function latency() {
  const waits = [];
  const { worker, finished } = await openWorker(async job => { waits.push(epochMs() - job.data.t); });
  worker.run();
  const producer = spawn(process.execPath, [fileURLToPath(import.meta.url), 'produce', String(n), '--interval-ms', String(options['interval-ms']), '--bullmq', options.bullmq], { stdio: ['ignore', 'ignore', 'inherit'] });
  const ended = new Promise((resolve, reject) => producer.on('exit', code => (code === 0 ? resolve() : reject(new Error('the producer failed')))));
  const window = openWindow();
  await finished;
  const answer = closeWindow(window);
  await ended;
  await worker.close();
  waits.sort((a, b) => a - b);
  const at = share => waits[Math.ceil(waits.length * share) - 1];
  return { ...answer, p50_ms: at(0.5), p99_ms: at(0.99), p999_ms: at(0.999), max_ms: waits.at(-1) };
}

async function produce() {
  const queue = await openQueue();
  const window = openWindow(), interval = number('interval-ms');
  for (let i = 0, due = performance.now(); i < n; i++, due = Math.max(due + interval, performance.now())) {
    await new Promise(resolve => setTimeout(resolve, due - performance.now()));
    await queue.add(JOB_NAME, payload(i));
  }
  const answer = closeWindow(window);
  await queue.close();
  return answer;
}

const verbs = {
  version: () => ({}),
  enqueue,
  drain: () => consume(async () => {}),
  retry: () => consume(async job => { if (job.attemptsMade === 0) throw new Error('the first attempt fails'); }),
  serve,
  latency,
  produce,
};
if (!verbs[verb]) {
  console.error(`unknown verb ${verb}; one of ${Object.keys(verbs).join(', ')}`);
  process.exit(64);
}
const answer = await verbs[verb]();
console.log(JSON.stringify({ adapter: `npm bullmq ${version}`, ...answer }));
process.exit(0);
