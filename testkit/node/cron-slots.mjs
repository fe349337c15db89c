// Next times of random cron patterns as each generation of bullmq finds them.
//   node cron-slots.mjs SEED COUNT
// One JSON line a case: {version, pattern, tz, from, startDate?, endDate?, next | none | error}
import { createRequire } from 'node:module';

const require = createRequire(import.meta.url);
const strategies = Object.fromEntries(['bullmq-5.28', 'bullmq-5', 'bullmq-6'].map(version => {
  const home = require.resolve(`${version}/package.json`).replace(/package\.json$/, '');
  return [version, require(`${home}dist/cjs/classes/job-scheduler.js`).defaultRepeatStrategy];
}));

let state = Number(process.argv[2] ?? 1) >>> 0;
const random = () => { // xorshift, so that a seed gives the same cases everywhere
  state ^= state << 13; state >>>= 0; state ^= state >>> 17; state ^= state << 5; state >>>= 0;
  return state / 4294967296;
};
const below = n => Math.floor(random() * n);
const pick = list => list[below(list.length)];
const chance = p => random() < p;

const ZONES = ['UTC', 'Europe/Berlin', 'America/New_York', 'America/Sao_Paulo', 'Australia/Lord_Howe', 'Asia/Kolkata',
  'Africa/Cairo', 'Asia/Beirut', 'America/Havana', 'Pacific/Auckland', 'Pacific/Apia', 'America/St_Johns', 'Europe/London',
  'Asia/Kathmandu', 'Antarctica/Troll', 'europe/paris', 'UTC+5', 'utc-3:30', 'America/Los_Angeles', 'Asia/Tehran'];
// Minutes around which clocks are changed somewhere, and ordinary ones.
const MOMENTS = [1711846800000, 1729990800000, 1710054000000, 1730613600000, 1541300400000, 1550368800000, 1712415600000,
  1728140400000, 1714086000000, 1730404800000, 1711231200000, 1729976400000, 1710046800000, 1730606400000, 1712412000000,
  1727531100000, 1325239200000, 1700000000000, 1709164800000, 1735689000000, 1711843200000, 1647637200000, 1663702200000];
const NAMES = { month: ['jan', 'FEB', 'Mar', 'dec', 'jun'], weekday: ['sun', 'MON', 'Tue', 'fri', 'sat'] };

function part(min, max, names) {
  const value = () => String(min + below(max - min + 1));
  const [a, b] = [min + below(max - min + 1), min + below(max - min + 1)].sort((x, y) => x - y);
  switch (below(names ? 11 : 9)) {
    case 0: case 1: case 2: return value();
    case 3: return `${a}-${b}`;
    case 4: return `${a}-${b}/${1 + below(7)}`;
    case 5: case 6: return `*/${1 + below(max > 12 ? 20 : 5)}`;
    case 7: return `${value()}/${1 + below(10)}`;
    case 8: return '*';
    case 9: return pick(names);
    default: return `${names[1]}-${names[3]}`;
  }
}
function field(min, max, star, names) {
  if (chance(star)) return '*';
  const parts = [part(min, max, names)];
  while (chance(0.25)) parts.push(part(min, max, names));
  return parts.join(',');
}
function pattern() {
  if (chance(0.03)) return pick(['@yearly', '@monthly', '@weekly', '@daily', '@hourly', '@annually', '@minutely', '@weekdays', '@weekends', '@secondly', '@never']);
  let day = field(1, 31, 0.65), weekday = field(0, 7, 0.65, NAMES.weekday);
  if (chance(0.06)) day = pick(['L', 'L,15', '?', '1,L', '31', '29-31', '1-31', '*/1']);
  if (chance(0.08)) weekday = pick(['5L', 'friL', '1#1', 'MON#5', '3#2', '0#3', '7#1', '?', '1,5L', '0-6', '1-7', '0,7', '5-7', '1-7/4', 'sun-sat']);
  const fields = [field(0, 59, 0.25), field(0, 23, 0.3), day, field(1, 12, 0.7, NAMES.month), weekday];
  if (chance(0.3)) fields.unshift(pick(['0', '30', '*/15', '*', '59', '5,10', '0-10/3']));
  else if (chance(0.03)) fields.splice(0, 1 + below(3));
  if (chance(0.02)) fields[below(fields.length)] = pick(['61', '5-1', '', '1,,2', '*/0', 'x', '1-2-3', '-5', '5-', '/5', 'L', 'H', '1.5', '*/61', '0']);
  return fields.join(' ');
}

const out = [];
for (let i = 0, count = Number(process.argv[3] ?? 1000); i < count; i++) {
  const version = pick(['bullmq-5.28', 'bullmq-5', 'bullmq-6', 'bullmq-6']);
  const opts = { pattern: pattern(), tz: pick(ZONES) };
  const from = pick(MOMENTS) + (below(3) - 1) * below(86_400_000 * 2) + (chance(0.5) ? 0 : below(7_200_000));
  // 5.28 does not heed a start date yet; what we write is 5.81's.
  if (chance(0.1) && version !== 'bullmq-5.28') opts.startDate = from + (below(2) * 2 - 1) * below(86_400_000 * 40);
  if (chance(0.1)) opts.endDate = from + below(86_400_000 * 60);
  const line = { version, ...opts, from };
  // BullMQ does not search at all past the end date.
  if (opts.endDate !== undefined && from > opts.endDate) continue;
  try {
    const next = strategies[version](from, { ...opts });
    if (next === undefined) line.none = true; else line.next = next;
  } catch (e) {
    line.error = e.message;
  }
  out.push(JSON.stringify(line));
}
process.stdout.write(out.join('\n') + '\n');
