// bull-board over queues of a test: node bull-board.mjs REDIS_URL VERSION QUEUE...
// Prints `listening PORT` (on 127.0.0.1); the end of stdin ends it.
import Module, { createRequire } from 'node:module';

const require = createRequire(import.meta.url);
const [url, version, ...names] = process.argv.slice(2);
// The board asks for `bullmq`; here it is installed under a name for each version.
const resolve = Module._resolveFilename;
Module._resolveFilename = (request, ...rest) => resolve(request === 'bullmq' ? require.resolve(version) : request, ...rest);
const { createBullBoard } = require('@bull-board/api');
const { BullMQAdapter } = require('@bull-board/api/bullMQAdapter');
const { ExpressAdapter } = require('@bull-board/express');
const express = require('express');
const { Queue } = require(version);

const { hostname, port } = new URL(url);
const connection = { host: hostname, port: Number(port), maxRetriesPerRequest: null };
const queues = names.map(name => new Queue(name, { connection, skipMetasUpdate: true }));

const serverAdapter = new ExpressAdapter();
createBullBoard({ queues: queues.map(queue => new BullMQAdapter(queue)), serverAdapter });
const app = express();
app.use('/', serverAdapter.getRouter());
const server = app.listen(0, '127.0.0.1', () => console.log(`listening ${server.address().port}`));
process.stdin.on('end', () => process.exit(0)).resume();
