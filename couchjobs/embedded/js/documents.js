// Documents by id, many at once, and the functions of design documents that may refuse a write.
'use strict';

const crypto = require('crypto');
const vm = require('vm');
const {HttpError, Refused, asHttpError} = require('./answers');
const {requireDatabaseAdmin, withHashedPassword} = require('./accounts');

// Time-ordered, as the ids are that CouchDB gives: random ones would scatter over its b-tree.
function newId() {
  const time = Date.now().toString(16).padStart(12, '0');
  return time + crypto.randomBytes(10).toString('hex');
}

// The functions of design documents run in a context of their own, which nothing but text enters or leaves: an object of
// ours in there would lead to the process. They have 5 s.
const LONGEST_MS = 5000;
const CALL = new vm.Script(`(() => {
  try {
    check.apply(null, JSON.parse(args));
    return 'null';
  } catch (thrown) {
    if (thrown instanceof Error) return JSON.stringify({error: String(thrown.name), reason: String(thrown.message)});
    return JSON.stringify(thrown && typeof thrown === 'object' ? thrown : {reason: String(thrown)});
  }
})()`);

function compile(source) {
  const context = vm.createContext(Object.create(null), {codeGeneration: {strings: false, wasm: false}});
  vm.runInContext('var log = () => {}, isArray = Array.isArray, toJSON = JSON.stringify;', context);
  try {
    vm.runInContext(`var check = (${source}\n);`, context, {timeout: LONGEST_MS});
  } catch (error) {
    throw new HttpError(500, 'compilation_error', String(error && error.message));
  }
  return (...args) => {
    context.args = JSON.stringify(args);
    try {
      return JSON.parse(String(CALL.runInContext(context, {timeout: LONGEST_MS})));
    } catch (error) {
      if (error && error.code === 'ERR_SCRIPT_EXECUTION_TIMEOUT') return {error: 'os_process_error', reason: 'timed out'};
      throw error;
    }
  };
}

async function validators(database) {
  if (!database.validators) {
    const {rows} = await database.pouch.allDocs({startkey: '_design/', endkey: '_design0', include_docs: true});
    database.validators = rows
      .map((row) => row.doc)
      .filter((doc) => typeof doc.validate_doc_update === 'string')
      .map((doc) => compile(doc.validate_doc_update));
  }
  return database.validators;
}

async function validate(database, user, doc, newEdits = true) {
  const functions = await validators(database);
  if (!functions.length) return;
  const parent = newEdits ? undefined : parentOf(doc);
  const old = parent === null ? null : await database.pouch.get(doc._id, {revs: true, ...(parent && {rev: parent})}).catch(() => null);
  const security = await database.getSecurity();
  for (const check of functions) {
    const thrown = check(doc, old, {db: database.name, name: user.name, roles: user.roles}, security);
    if (thrown === null) continue;
    if (thrown.unauthorized) throw new HttpError(401, 'unauthorized', String(thrown.unauthorized));
    if ('forbidden' in thrown) throw new HttpError(403, 'forbidden', String(thrown.forbidden));
    throw new HttpError(500, String(thrown.error || 'unknown_error'), String(thrown.reason || JSON.stringify(thrown)));
  }
}

// The revision that a replicated one follows, null where it has none: that is what a function gets as the old document.
function parentOf(doc) {
  const {start, ids = []} = doc._revisions || {};
  return ids.length > 1 ? `${start - 1}-${ids[1]}` : null;
}

// Whether this user may change an attachment: to the functions it is a change of the document.
async function checkAttachment(database, user, id, name, method, type) {
  const old = await database.pouch.get(id).catch(() => ({_id: id}));
  const attachments = {...old._attachments};
  if (method === 'DELETE') delete attachments[name];
  else attachments[name] = {stub: true, content_type: type};
  await accept(database, user, {...old, _attachments: attachments});
}

// The document as it will be stored, or an HttpError.
async function accept(database, user, doc, newEdits = true) {
  if (doc === null || typeof doc !== 'object' || Array.isArray(doc)) {
    throw new HttpError(400, 'bad_request', 'Document must be a JSON object');
  }
  if (doc instanceof Refused) throw doc.refusal;
  if (doc._id === undefined) doc._id = newId();
  if (typeof doc._id !== 'string') throw new HttpError(400, 'illegal_docid', 'Document id must be a string');
  if (doc._id === '_local/_security') throw new HttpError(403, 'forbidden', 'That document is the server\'s own.');
  if (doc._id.startsWith('_local/')) return doc;
  if (doc._id.startsWith('_design/')) requireDatabaseAdmin(user, await database.getSecurity());
  else await validate(database, user, doc, newEdits);
  return database.name === '_users' ? withHashedPassword(doc) : doc;
}

async function writeOne(database, user, doc, options = {}) {
  const stored = await accept(database, user, doc, options.new_edits !== false);
  const answer = await database.pouch.put(stored, options);
  database.written([stored._id]);
  return {ok: true, id: answer.id, rev: answer.rev};
}

// The documents in as many parts as the most frequent id has edits: of two edits in one part PouchDB stores both.
function rounds(accepted) {
  const parts = [];
  const seen = new Map();
  for (const [, doc] of accepted) {
    const number = seen.get(doc._id) || 0;
    seen.set(doc._id, number + 1);
    (parts[number] = parts[number] || []).push(doc);
  }
  return parts;
}

// Rows in the order of the documents, whatever order the adapter answers in.
async function writeMany(database, user, docs, newEdits) {
  const refused = new Map();
  const accepted = [];
  for (const [index, doc] of docs.entries()) {
    try {
      accepted.push([index, await accept(database, user, doc, newEdits)]);
    } catch (error) {
      const {error: name, message} = asHttpError(error);
      refused.set(index, {id: doc && doc._id, error: name, reason: message});
    }
  }
  const answers = [];
  for (const round of rounds(accepted)) answers.push(...await database.pouch.bulkDocs(round, {new_edits: newEdits}));
  database.written(accepted.map(([, doc]) => doc._id));
  const answersById = new Map();
  for (const answer of answers) {
    if (!answersById.has(answer.id)) answersById.set(answer.id, []);
    answersById.get(answer.id).push(answer);
  }
  for (const [index, doc] of accepted) {
    const answer = (answersById.get(doc._id) || []).shift();
    if (!answer) continue; // new_edits=false: CouchDB answers only what failed
    refused.set(index, answer.error
      ? {id: doc._id, error: answer.name, reason: answer.message}
      : {ok: true, id: answer.id, rev: answer.rev});
  }
  return docs.map((_, index) => refused.get(index)).filter((row) => row !== undefined && (newEdits || !row.ok));
}

async function remove(database, user, id, rev) {
  if (!rev) {
    const exists = await database.pouch.get(id).then(() => true, () => false);
    throw exists ? new HttpError(409, 'conflict', 'Document update conflict.') : new HttpError(404, 'not_found', 'missing');
  }
  return writeOne(database, user, {_id: id, _rev: rev, _deleted: true});
}

async function readMany(database, wanted, options) {
  const {results} = await database.pouch.bulkGet({docs: wanted, revs: options.revs, latest: options.latest});
  return results.map(({id, docs}) => ({
    id,
    docs: docs.map(({ok, missing, error}) => ok ? {ok} : {
      error: {id, rev: missing || 'undefined', error: 'not_found', reason: (error && error.reason) || 'missing'},
    }),
  }));
}

module.exports = {newId, writeOne, writeMany, remove, readMany, checkAttachment};
