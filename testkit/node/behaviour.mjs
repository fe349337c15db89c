// Processors by script: what a worker of the side-car does with a job is data sent by the test.
//
// script    {default?, byName?: {name: B}, byId?: {id: B}}; B is one behaviour or a list, one per attempt
//           (the last one is kept for further attempts)
// behaviour {log?: [text], progress?: value, journal?: dir, sleepMs?: n, hold?: gate,
//            throw?: text | unrecoverable?: text | delayMs?: n | return?: value}
import { appendFileSync, closeSync, openSync } from 'node:fs';

/** Named gates: a job that holds at one goes on when the test releases it. */
export class Gates {
  #gates = new Map();

  #gate(name) {
    if (!this.#gates.has(name)) {
      const gate = {};
      gate.opened = new Promise(resolve => { gate.open = resolve; });
      this.#gates.set(name, gate);
    }
    return this.#gates.get(name);
  }

  pass(name) { return this.#gate(name).opened; }
  release(name) { this.#gate(name).open(); }
}

const pick = (script, job) => {
  const chosen = script.byId?.[job.id] ?? script.byName?.[job.name] ?? script.default ?? {};
  return Array.isArray(chosen) ? chosen[Math.min(job.attemptsMade, chosen.length - 1)] ?? {} : chosen;
};

// A history for `testkit/src/history.rs`: a line for each start, a file for each effect, which is made once.
const note = (dir, event) => appendFileSync(`${dir}/history.jsonl`, JSON.stringify(event) + '\n');

function commit(dir, id) {
  try {
    closeSync(openSync(`${dir}/effects/${id}`, 'wx'));
  } catch (e) {
    if (e.code === 'EEXIST') return;
    throw e;
  }
  note(dir, { event: 'effect', id, by: 'node' });
}

/** The processor function for a Worker of the given bullmq module. */
export function processor(bullmq, script, gates) {
  return async (job, token) => {
    const todo = pick(script, job);
    for (const row of todo.log ?? []) await job.log(row);
    if (todo.progress !== undefined) await job.updateProgress(todo.progress);
    if (todo.journal !== undefined) note(todo.journal, { event: 'start', id: job.id, by: 'node' });
    if (todo.sleepMs) await new Promise(resolve => setTimeout(resolve, todo.sleepMs));
    if (todo.hold !== undefined) await gates.pass(todo.hold);
    if (todo.journal !== undefined) commit(todo.journal, job.id);
    if (todo.throw !== undefined) throw new Error(todo.throw);
    if (todo.unrecoverable !== undefined) throw new bullmq.UnrecoverableError(todo.unrecoverable);
    if (todo.delayMs !== undefined) {
      await job.moveToDelayed(Date.now() + todo.delayMs, token);
      throw new bullmq.DelayedError();
    }
    return todo.return;
  };
}
