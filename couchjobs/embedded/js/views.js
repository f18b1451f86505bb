// Views, _all_docs and _design_docs, one query or several in a request.
'use strict';

const {HttpError} = require('./answers');

const SAME = {start_key: 'startkey', end_key: 'endkey', start_key_doc_id: 'startkey_docid', end_key_doc_id: 'endkey_docid'};

function normalised(query) {
  const options = {};
  for (const [name, value] of Object.entries(query)) options[SAME[name] || name] = value;
  if (options.update === 'false' || options.update === false) options.stale = 'ok';
  else if (options.update === 'lazy') options.stale = 'update_after';
  delete options.update;
  delete options.stable;
  return options;
}

const keyed = (row) => JSON.stringify(row.key);

// PouchDB does not know startkey_docid: rows of the first key whose id comes before it are left out here.
async function fromDocid(pouch, name, options) {
  const {startkey_docid: docid, endkey_docid: _, limit, ...rest} = options;
  if (docid === undefined || rest.startkey === undefined) {
    return pouch.query(name, limit === undefined ? rest : {...rest, limit});
  }
  const first = JSON.stringify(rest.startkey);
  const before = (row) => keyed(row) === first && (rest.descending ? row.id > docid : row.id < docid);
  for (let ask = limit === undefined ? undefined : limit + 100; ; ask *= 4) {
    const answer = await pouch.query(name, ask === undefined ? rest : {...rest, limit: ask});
    const read = answer.rows.length;
    const rows = answer.rows.filter((row) => !before(row));
    if (ask === undefined || read < ask || rows.length >= limit) {
      return {...answer, rows: limit === undefined ? rows : rows.slice(0, limit)};
    }
  }
}

// PouchDB counts rows by reading all of them at once, and answers nobody meanwhile: here it is page by page.
const COUNTED_TOGETHER = 1000;
const COUNTABLE = new Set(['startkey', 'endkey', 'inclusive_end', 'stale', 'group', 'group_level', 'reduce']);

async function countedRows(pouch, name, options) {
  const {group, group_level: level, reduce: _, ...range} = options;
  const depth = group ? Infinity : Number(level) || 0;
  const rows = [];
  let last = null;
  for (let page = null; page === null || page.length >= COUNTED_TOGETHER;) {
    const from = last ? {startkey: last.key, startkey_docid: last.id, stale: 'ok'} : {};
    ({rows: page} = await fromDocid(pouch, name, {...range, ...from, reduce: false, limit: COUNTED_TOGETHER}));
    for (const row of page) {
      if (last && row.id === last.id && keyed(row) === keyed(last)) continue;
      const key = depth === 0 ? null : Array.isArray(row.key) ? row.key.slice(0, depth) : row.key;
      const before = rows[rows.length - 1];
      if (before && keyed(before) === JSON.stringify(key)) before.value += 1;
      else rows.push({key, value: 1});
    }
    last = page[page.length - 1] || last;
  }
  return {rows};
}

async function viewRows(database, ddoc, view, query) {
  const options = normalised(query);
  const doc = await database.pouch.get('_design/' + ddoc);
  const wanted = doc.views && doc.views[view];
  if (!wanted) throw new HttpError(404, 'not_found', 'missing_named_view');
  if (!wanted.reduce && (options.group || options.group_level)) throw new HttpError(400, 'query_parse_error', 'Invalid use of grouping on a map view.');
  const name = `${ddoc}/${view}`;
  const isCount = wanted.reduce === '_count' && options.reduce !== false && options.reduce !== 'false';
  if (isCount && Object.keys(options).every((one) => COUNTABLE.has(one))) return countedRows(database.pouch, name, options);
  return fromDocid(database.pouch, name, options);
}

async function allDocs(database, query) {
  const {startkey_docid: _, endkey_docid: __, reduce: ___, ...options} = normalised(query);
  const answer = await database.pouch.allDocs(options);
  for (const row of answer.rows) if (row.error === 'not_found') delete row.id;
  return answer;
}

function designDocs(database, query) {
  return allDocs(database, {startkey: '_design/', endkey: '_design0', inclusive_end: false, ...query});
}

// {"queries": [...]} -> {"results": [...]}; anything else -> one answer.
async function perQuery(body, run) {
  if (!Array.isArray(body && body.queries)) throw new HttpError(400, 'bad_request', '`queries` parameter must be an array.');
  const results = [];
  for (const query of body.queries) results.push(await run(query));
  return {results};
}

module.exports = {viewRows, allDocs, designDocs, perQuery};
