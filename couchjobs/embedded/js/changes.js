// The changes feed: normal, long poll, continuous and event source, with every parameter that
// CouchDB documents for them. A waiting feed holds no PouchDB listener: it reads again after each
// write, so that nothing is left behind when its client goes away.
'use strict';

const {HttpError, sendJson, sendError} = require('./answers');

const RECHECK_MS = 500; // writes that do not pass through this layer (replication) are seen by then

async function rowsSince(database, query, since) {
  const options = {
    since,
    include_docs: query.include_docs === true,
    conflicts: query.conflicts === true,
    attachments: query.attachments === true,
    style: query.style,
    descending: query.descending === true,
    query_params: query,
  };
  if (query.limit !== undefined) options.limit = query.limit;
  if (query.filter === '_selector') options.selector = query.selector || {};
  else if (query.filter === '_doc_ids' || query.doc_ids) options.doc_ids = query.doc_ids || [];
  else if (query.filter === '_design') options.filter = (doc) => doc._id.startsWith('_design/');
  else if (query.filter) Object.assign(options, {filter: query.filter, view: query.view});
  const answer = await database.pouch.changes(options);
  if (!answer || !answer.results) throw new HttpError(404, 'not_found', 'Database does not exist.'); // deleted meanwhile
  if (query.style === 'all_docs') await Promise.all(answer.results.map((row) => winnerFirst(database, row)));
  return answer;
}

// CouchDB names the winning leaf first, PouchDB the longest one.
async function winnerFirst(database, row) {
  if (row.changes.length < 2) return;
  const found = row.doc || (await database.pouch.get(row.id).catch(() => null));
  if (found) row.changes.sort((one, other) => (other.rev === found._rev) - (one.rev === found._rev));
}

async function checkFilter(database, query) {
  if (!query.filter || query.filter.startsWith('_')) return;
  const [ddoc, name] = query.filter.split('/');
  const doc = await database.pouch.get('_design/' + ddoc).catch(() => null);
  if (!doc || !doc.filters || !doc.filters[name]) throw new HttpError(404, 'not_found', `missing json key: filters.${name}`);
}

// A sequence is a number and the mark of the database that it is of: after a database was made anew, an old one means
// nothing, and is read as the beginning, as CouchDB does. A bare number is taken for one of this database.
const marked = (database, seq) => `${seq}-${database.startTime}`;

function numberOf(database, since) {
  const [number, mark] = String(since).split('-');
  if (!/^\d+$/.test(number)) throw new HttpError(400, 'bad_request', 'Malformed sequence supplied in \'since\' parameter.');
  return mark === undefined || mark === database.startTime ? Number(number) : 0;
}

function withMarks(database, results) {
  for (const row of results) row.seq = marked(database, row.seq);
  return results;
}

async function updateSeq(database) {
  return (await database.pouch.info()).update_seq;
}

async function pendingAfter(database, lastSeq) {
  return Math.max(0, (await updateSeq(database)) - lastSeq);
}

// Resolves when there have been more than `seen` writes, when it is time to look again, or when feed or database end.
function nextWrite(database, feed, seen) {
  return new Promise((resolve) => {
    if (feed.gone || database.writeCount !== seen) return resolve();
    const done = () => {
      clearTimeout(timer);
      database.writes.off('write', done);
      feed.wake = null;
      resolve();
    };
    const timer = setTimeout(done, RECHECK_MS);
    database.writes.on('write', done);
    feed.wake = done;
  });
}

const WRITERS = {
  continuous: {
    type: 'application/json',
    row: (row) => JSON.stringify(row) + '\n',
    beat: '\n',
    end: (seq, pending) => JSON.stringify({last_seq: seq, pending}) + '\n',
  },
  eventsource: {
    type: 'text/event-stream',
    row: (row) => `data: ${JSON.stringify(row)}\nid: ${row.seq}\n\n`,
    beat: 'event: heartbeat\ndata: \n\n',
    end: () => '',
  },
};

async function changes(req, res, database, query) {
  if (query.last_event_id === undefined && query['last-event-id'] !== undefined) query.last_event_id = query['last-event-id'];
  if (req.headers['last-event-id']) query.last_event_id = req.headers['last-event-id'];
  await checkFilter(database, query);
  let since = query.last_event_id ?? query.since ?? 0;
  since = since === 'now' ? await updateSeq(database) : numberOf(database, since);
  const mode = query.feed || 'normal';
  if (!['normal', 'longpoll', 'continuous', 'eventsource'].includes(mode)) throw new HttpError(400, 'bad_request', `Supported \`feed\` types: normal, continuous, longpoll, eventsource`);
  if (mode === 'normal') {
    const {results, last_seq: lastSeq} = await rowsSince(database, query, since);
    const pending = await pendingAfter(database, lastSeq);
    return sendJson(res, 200, {results: withMarks(database, results), last_seq: marked(database, lastSeq), pending});
  }
  return followed(res, database, query, since, mode);
}

async function followed(res, database, query, since, mode) {
  const feed = {gone: false, wake: null};
  const leave = () => {
    feed.gone = true;
    if (feed.wake) feed.wake();
  };
  res.on('close', leave);
  database.writes.on('gone', leave);
  const writer = WRITERS[mode];
  res.writeHead(200, {'Content-Type': writer ? writer.type : 'application/json', 'Cache-Control': 'must-revalidate'});
  res.flushHeaders();
  const beat = query.heartbeat === true ? 60000 : Number(query.heartbeat) || 0;
  const timeout = beat ? Infinity : query.timeout === undefined ? 60000 : Number(query.timeout);
  const heart = beat ? setInterval(() => res.write(writer ? writer.beat : '\n'), beat) : null;
  let deadline = Date.now() + timeout;
  const late = timeout === Infinity ? null : setInterval(() => Date.now() >= deadline && feed.wake && feed.wake(), Math.max(20, timeout / 10));
  try {
    let left = query.limit === undefined ? Infinity : Math.max(1, query.limit);
    while (!feed.gone) {
      const seen = database.writeCount;
      const {results, last_seq: lastSeq} = await rowsSince(database, {...query, limit: left === Infinity ? undefined : left}, since);
      if (feed.gone) break;
      const over = Date.now() >= deadline;
      if (!writer && (results.length || over)) {
        const pending = await pendingAfter(database, lastSeq);
        res.end(JSON.stringify({results: withMarks(database, results), last_seq: marked(database, lastSeq), pending}) + '\n');
        return;
      }
      since = lastSeq;
      if (results.length) {
        left -= results.length;
        deadline = Date.now() + timeout;
        if (!res.write(withMarks(database, results).map(writer.row).join('')) && !res.closed) await new Promise((resolve) => {
          res.once('drain', resolve);
          res.once('close', resolve);
        });
      }
      if (left <= 0 || (over && !results.length)) break;
      if (!results.length) await nextWrite(database, feed, seen);
    }
    if (writer) res.end(writer.end(marked(database, since), 0));
    else res.end(JSON.stringify({results: [], last_seq: marked(database, since), pending: 0}) + '\n');
  } catch (error) {
    sendError(res, error);
  } finally {
    clearInterval(heart);
    clearInterval(late);
    database.writes.off('gone', leave);
  }
}

module.exports = {changes, updateSeq};
