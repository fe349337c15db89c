// Side-car of the testkit: drives the real npm bullmq, one JSON line per request and per answer.
//   node sidecar.mjs REDIS_URL          (redis://, redis+sentinel://, redis+cluster://)
//   request {id, op, version?, ...}   answer {id, ok} or {id, error: {name, message, code?}}
// Requests run side by side; answers come as they finish. The end of stdin ends the process.
import { createInterface } from 'node:readline';
import { connectionOf } from './connection.mjs';
import { operations } from './ops.mjs';

const ops = operations(connectionOf(process.argv[2] ?? 'redis://127.0.0.1:6379/0'));

const answer = line => process.stdout.write(JSON.stringify(line) + '\n');

async function serve(text) {
  let request;
  try {
    request = JSON.parse(text);
    if (!Object.hasOwn(ops, request.op)) throw new Error(`unknown op ${request.op}`);
    answer({ id: request.id, ok: (await ops[request.op](request)) ?? null });
  } catch (e) {
    answer({ id: request?.id ?? null, error: { name: e.name, message: e.message, ...(e.code === undefined ? {} : { code: e.code }) } });
  }
}

process.on('unhandledRejection', e => console.error('unhandled:', e));
const lines = createInterface({ input: process.stdin });
lines.on('line', serve);
lines.on('close', () => process.exit(0));
