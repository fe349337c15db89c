// From the URL forms of our own crates to what ioredis and bullmq take as a connection.
import { createRequire } from 'node:module';

const require = createRequire(import.meta.url);
const { Redis, Cluster } = require('ioredis');

const FORM = /^(redis|redis\+sentinel|redis\+cluster):\/\/(?:([^:@]*):([^@]*)@)?([^/?]+)(?:\/([^?]*))?$/;

const addresses = (hosts, port) => hosts.split(',').map(host => {
  const [name, own] = host.split(':');
  return { host: name, port: Number(own ?? port) };
});

/** Options of an ioredis connection, or a Cluster object, which bullmq duplicates where it has to block. */
export function connectionOf(url) {
  const [, scheme, user, password, hosts, path = ''] = FORM.exec(url) ?? [];
  if (!scheme) throw new Error(`URL of an unknown form: ${url}`);
  const login = {
    ...(user ? { username: decodeURIComponent(user) } : {}),
    ...(password ? { password: decodeURIComponent(password) } : {}),
    maxRetriesPerRequest: null,
  };
  if (scheme === 'redis+cluster') {
    const cluster = new Cluster(addresses(hosts, 6379), { redisOptions: login, clusterRetryStrategy: () => 200 });
    cluster.on('error', e => console.error(`cluster: ${e.message}`));
    cluster.setMaxListeners(0);
    return cluster;
  }
  if (scheme === 'redis+sentinel') {
    const [name, db] = path.split('/');
    // Without failoverDetector ioredis stays with a primary that was replaced while it lives.
    const sentinel = { name, sentinelRetryStrategy: () => 200, failoverDetector: true };
    return { sentinels: addresses(hosts, 26379), db: Number(db || 0), ...login, ...sentinel };
  }
  return { ...addresses(hosts, 6379)[0], db: Number(path || 0), ...login };
}

/** A connection for plain commands. */
export const plainConnection = connection => (connection instanceof Cluster ? connection : new Redis(connection));
