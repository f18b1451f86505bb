// Answers as CouchDB gives them: JSON bodies, {"error", "reason"} with the right status.
'use strict';

const crypto = require('crypto');

class HttpError extends Error {
  constructor(status, error, reason) {
    super(reason);
    this.status = status;
    this.error = error;
  }
}

function sendJson(res, status, body, headers = {}) {
  if (res.headersSent) return;
  const text = JSON.stringify(body) + '\n';
  res.writeHead(status, {
    'Content-Type': 'application/json',
    'Cache-Control': 'must-revalidate',
    'Content-Length': Buffer.byteLength(text),
    ...headers,
  });
  res.end(res.req.method === 'HEAD' ? undefined : text);
}

function asHttpError(error) {
  if (error instanceof HttpError) return error;
  const status = error.status || 500;
  return new HttpError(status, error.name || 'internal_server_error', error.reason || error.message || String(error));
}

function sendError(res, error) {
  const {status, error: name, message} = asHttpError(error);
  if (status >= 500) console.error(error);
  if (res.writableEnded) return;
  if (res.headersSent) return res.destroy();
  const headers = status === 401 ? {'WWW-Authenticate': 'Basic realm="couchjobs"'} : {};
  sendJson(res, status, {error: name, reason: message}, headers);
}

const MAX_REQUEST = 64 * 1024 * 1024;
const MAX_DOCUMENT = 8_000_000;  // CouchDB's default

// The body; `holds`: a document, or documents, of which each may be refused by itself.
async function readJson(req, holds = '') {
  const chunks = [];
  let size = 0;
  for await (const chunk of req) {
    size += chunk.length;
    if (size > MAX_REQUEST) throw new HttpError(413, 'too_large', 'the request entity is too large');
    chunks.push(chunk);
  }
  if (size === 0) return undefined;
  try {
    const body = parse(Buffer.concat(chunks).toString('utf8'), holds === 'documents');
    if (holds && size > MAX_DOCUMENT) checkSizes(holds === 'documents' ? body.docs : [body], req.url);
    return body;
  } catch (error) {
    if (error instanceof HttpError) throw error;
    throw error instanceof RangeError
      ? new HttpError(413, 'too_large', 'the request holds more escapes than this server reads')
      : new HttpError(400, 'bad_request', 'invalid UTF-8 JSON');
  }
}

// As CouchDB, the whole request is refused where one document is too large: its attachments are not counted.
function checkSizes(docs, url) {
  for (const doc of Array.isArray(docs) ? docs : []) {
    const {_attachments: _, ...fields} = doc || {};
    if (Buffer.byteLength(JSON.stringify(fields)) <= MAX_DOCUMENT) continue;
    const id = fields._id || decodeURIComponent(url.split('?')[0].split('/').pop());
    throw new HttpError(413, 'document_too_large', id);
  }
}

// What JavaScript would change without a word, and CouchDB keeps or refuses, is refused: each document by itself.
const SUSPECT = /\d{16}|__proto__|\\u[dD][89a-fA-F]|[:,[\s]-?\d+(?:\.\d+)?[eE]\+?\d{3}/;
const TOKEN = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
const LONG_INTEGER = /^-?\d{16,}$/;
const KEPT_ELSEWHERE = 'this server is for trying out, CouchDB keeps it';

function parse(text, ofBatch) {
  const body = JSON.parse(text);
  if (!SUSPECT.test(text)) return body;
  const mark = crypto.randomUUID();
  let reason = '';
  const marked = text.replace(TOKEN, (token, offset) => {
    const found = token[0] === '"' ? whyNoText(token, text, offset) : whyNoNumber(token);
    reason = reason || found;
    return found ? `"${mark}${found}${mark}"` : token;
  });
  if (!reason) return body;
  if (!ofBatch || !Array.isArray(body.docs)) throw refusal(reason);
  const found = JSON.parse(marked).docs.map((doc) => (JSON.stringify(doc) || '').split(mark)[1]);
  return {...body, docs: body.docs.map((doc, index) => found[index] ? new Refused(doc, found[index]) : doc)};
}

function whyNoNumber(token) {
  const number = Number(token), told = token.length > 100 ? `${token.slice(0, 100)}...` : token;
  if (!Number.isFinite(number)) return `the number ${told} is too large`;
  const isSame = !LONG_INTEGER.test(token) || JSON.stringify(number) === token;
  return isSame ? '' : `the number ${told} would be rounded here: ${KEPT_ELSEWHERE}`;
}

function whyNoText(token, text, offset) {
  if (token.includes('\\u') && !JSON.parse(token).isWellFormed()) throw new HttpError(400, 'bad_request', 'invalid UTF-8 JSON');
  const isLost = token === '"__proto__"' && /^\s*:/.test(text.slice(offset + token.length, offset + token.length + 100));
  return isLost ? `the field __proto__ would be lost here: ${KEPT_ELSEWHERE}` : '';
}

// In the place of a document of many.
class Refused {
  constructor(doc, reason) {
    this._id = doc && doc._id;
    this.refusal = refusal(reason);
  }
}

function refusal(reason) {
  return new HttpError(400, 'bad_request', reason);
}

const PLAIN_TEXT = ['rev', 'startkey_docid', 'start_key_doc_id', 'endkey_docid', 'end_key_doc_id', 'filter', 'feed', 'style', 'view', 'since', 'last-event-id'];

// The query string, its values JSON decoded where CouchDB reads JSON.
function readQuery(params) {
  const query = {};
  for (const [name, text] of params) {
    try {
      query[name] = PLAIN_TEXT.includes(name) ? text : JSON.parse(text);
    } catch {
      query[name] = text;
    }
  }
  return query;
}

module.exports = {HttpError, MAX_DOCUMENT, Refused, asHttpError, sendJson, sendError, readJson, readQuery};
