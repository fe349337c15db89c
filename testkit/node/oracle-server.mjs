// The oracle of ../data/oracle.mjs as a server: one scenario a line in, what npm bullmq did with it a line out
// ("null" where it gave up). The operations and the dump are the oracle's own text; what is taken away is its
// command line, and what is added is that queues and workers share connections, which costs most of its time.
// usage: node oracle-server.mjs REDIS_URL VERSION
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

const [url, version] = process.argv.slice(2);
const require = createRequire(import.meta.url);
const Redis = require('ioredis');
console.log = console.info = console.warn = console.error;

const GIVE_UP_MS = 20000;
const target = new URL(url);
const options = { host: target.hostname, port: Number(target.port), db: Number(target.pathname.slice(1)), maxRetriesPerRequest: null };

const shared = new Redis(options);
shared.setMaxListeners(0);
// A worker asks for a second connection to block on; here none ever blocks.
shared.duplicate = () => shared;
const ignore = () => {};
function forgetListeners() {
  shared.removeAllListeners();
  shared.on('error', ignore);
}
forgetListeners();

const path = require.resolve(version);
const real = require(version);
const light = {};
for (const name of ['Queue', 'Worker']) {
  light[name] = class extends real[name] {
    constructor(queue, ...rest) {
      const own = rest.pop();
      super(queue, ...rest, { ...own, connection: shared });
    }
    async close() {}
  };
}
light.FlowProducer = class extends real.FlowProducer {
  constructor(own) { super({ ...own, connection: shared }); }
  async close() {}
};
require.cache[path].exports = new Proxy(real, { get: (lib, name) => light[name] ?? lib[name] });

const whole = readFileSync(new URL('../data/oracle.mjs', import.meta.url), 'utf8');
const end = whole.indexOf('const args = process.argv');
const home = 'createRequire(import.meta.url)';
if (end < 0 || !whole.includes(home)) throw new Error('oracle.mjs has another form than expected');
const text = whole.slice(0, end).replace(home, `createRequire(${JSON.stringify(import.meta.url)})`) + 'export { runScenario };';
const { runScenario } = await import('data:text/javascript,' + encodeURIComponent(text));

for await (const line of createInterface({ input: process.stdin })) {
  const scenario = JSON.parse(line);
  let timer;
  const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error('scenario timeout')), GIVE_UP_MS); });
  let answer = null;
  try { answer = await Promise.race([runScenario(scenario, version, url), late]); }
  catch (e) { console.error(`${scenario.name}: ${e.stack}`); }
  clearTimeout(timer);
  forgetListeners();
  process.stdout.write(JSON.stringify(answer) + '\n');
  if (!answer) break; // what it left running must not reach the next one
}
process.exit(0);
