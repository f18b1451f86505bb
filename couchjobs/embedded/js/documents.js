// Documents by id, many at once, and the functions of design documents that may refuse a write.
'use strict';

const crypto = require('crypto');
const vm = require('vm');
const {HttpError, asHttpError} = require('./answers');
const {requireDatabaseAdmin, withHashedPassword} = require('./accounts');

// Time-ordered, as the ids are that CouchDB gives: random ones would scatter over its b-tree.
function newId() {
  const time = Date.now().toString(16).padStart(12, '0');
  return time + crypto.randomBytes(10).toString('hex');
}

async function validators(database) {
  if (!database.validators) {
    const {rows} = await database.pouch.allDocs({startkey: '_design/', endkey: '_design0', include_docs: true});
    database.validators = rows
      .map((row) => row.doc)
      .filter((doc) => typeof doc.validate_doc_update === 'string')
      .map((doc) => vm.runInNewContext(`(${doc.validate_doc_update}\n)`, {log: () => {}, isArray: Array.isArray, toJSON: JSON.stringify}));
  }
  return database.validators;
}

async function validate(database, user, doc) {
  const functions = await validators(database);
  if (!functions.length) return;
  const old = await database.pouch.get(doc._id, {revs: true}).catch(() => null);
  const security = await database.getSecurity();
  for (const check of functions) {
    try {
      check(JSON.parse(JSON.stringify(doc)), old, {db: database.name, name: user.name, roles: user.roles}, security);
    } catch (thrown) {
      if (thrown && thrown.unauthorized) throw new HttpError(401, 'unauthorized', thrown.unauthorized);
      if (thrown && thrown.forbidden) throw new HttpError(403, 'forbidden', thrown.forbidden);
      throw new HttpError(500, 'internal_server_error', String(thrown));
    }
  }
}

// The document as it will be stored, or an HttpError.
async function accept(database, user, doc) {
  if (doc === null || typeof doc !== 'object' || Array.isArray(doc)) {
    throw new HttpError(400, 'bad_request', 'Document must be a JSON object');
  }
  if (doc._id === undefined) doc._id = newId();
  if (typeof doc._id !== 'string') throw new HttpError(400, 'illegal_docid', 'Document id must be a string');
  if (doc._id.startsWith('_local/')) return doc;
  if (doc._id.startsWith('_design/')) requireDatabaseAdmin(user, await database.getSecurity());
  else await validate(database, user, doc);
  return database.name === '_users' ? withHashedPassword(doc) : doc;
}

async function writeOne(database, user, doc, options = {}) {
  const stored = await accept(database, user, doc);
  const answer = await database.pouch.put(stored, options);
  database.written([stored._id]);
  return {ok: true, id: answer.id, rev: answer.rev};
}

// Rows in the order of the documents, whatever order the adapter answers in.
async function writeMany(database, user, docs, newEdits) {
  const refused = new Map();
  const accepted = [];
  for (const [index, doc] of docs.entries()) {
    try {
      accepted.push([index, await accept(database, user, doc)]);
    } catch (error) {
      const {error: name, message} = asHttpError(error);
      refused.set(index, {id: doc && doc._id, error: name, reason: message});
    }
  }
  const answers = await database.pouch.bulkDocs(accepted.map(([, doc]) => doc), {new_edits: newEdits});
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

module.exports = {newId, writeOne, writeMany, remove, readMany};
