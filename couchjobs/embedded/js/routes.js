// Which request is answered by what. Hot requests are answered here; the rest go to the stock layer.
'use strict';

const {HttpError, MAX_DOCUMENT, sendJson, sendError, readJson, readQuery} = require('./answers');
const {isServerAdmin, requireServerAdmin, requireDatabaseAdmin, requireMember} = require('./accounts');
const {newId, writeOne, writeMany, remove, readMany, checkAttachment} = require('./documents');
const {changes} = require('./changes');
const {viewRows, allDocs, designDocs, perQuery} = require('./views');
const {createStock} = require('./stock');

const VERSION = '3.5.0';
const WELCOME = {
  couchdb: 'Welcome',
  version: VERSION,
  features: [],
  vendor: {name: 'couchjobs embedded server (PouchDB); not an Apache CouchDB'},
};
const MOST_UUIDS = 1000;
// A page that a browser has loaded from elsewhere may name us by a host of its own (DNS rebinding), and may send forms.
const OUR_HOSTS = ['localhost', '127.0.0.1', '[::1]'];
// What goes to the stock layer; everything else has its answer here, or none.
const STOCK = ['POST _revs_diff', 'POST _find', 'POST _explain', 'GET _index', 'POST _index', 'POST _view_cleanup'];
const CONFIG = {couchdb: {max_document_size: String(MAX_DOCUMENT)}, httpd: {max_http_request_size: '67108864'}};

function split(text, mark) {
  const at = text.indexOf(mark);
  return at < 0 ? [text, ''] : [text.slice(0, at), text.slice(at + 1)];
}

function segments(path) {
  let parts;
  try {
    parts = path.split('/').slice(1).map(decodeURIComponent);
  } catch {
    throw new HttpError(400, 'bad_request', 'Malformed URL.');
  }
  if (parts.at(-1) === '') parts.pop();
  if (parts.includes('')) throw new HttpError(400, 'bad_request', 'Empty path segment.');
  return parts;
}

function requireOurHost(req) {
  const host = (req.headers.host || '').replace(/:\d*$/, '').toLowerCase();
  if (!OUR_HOSTS.includes(host)) throw new HttpError(403, 'forbidden', `Host ${host} is not this server: use 127.0.0.1 or localhost.`);
}

function requireJson({req, parts}) {
  if (req.method !== 'POST' || parts[0] === '_session') return;
  const type = (req.headers['content-type'] || '').split(';')[0].trim().toLowerCase();
  if (type !== 'application/json') throw new HttpError(415, 'bad_content_type', 'Content-Type must be application/json');
}

function uuids(count = 1) {
  if (!Number.isInteger(count) || count < 0) throw new HttpError(400, 'bad_request', 'count must be a number');
  if (count > MOST_UUIDS) throw new HttpError(403, 'forbidden', 'count parameter too large');
  return Array.from({length: count}, newId);
}

function createHandler(databases, accounts) {
  const stock = createStock(databases);

  return async (req, res) => {
    try {
      requireOurHost(req);
      const [path, search] = split(req.url, '?');
      const parts = segments(path); // as they are: to a URL, "." and "%2e" would mean the path before them
      const logsIn = parts[0] === '_session' && req.method === 'POST';
      const user = logsIn ? {name: null, roles: []} : await accounts.identify(req);
      const ask = {req, res, user, parts, method: req.method === 'HEAD' ? 'GET' : req.method, query: readQuery(new URLSearchParams(search))};
      requireJson(ask);
      if (parts.length === 0 || (parts[0].startsWith('_') && !['_users', '_replicator', '_global_changes'].includes(parts[0]))) {
        await server(ask);
      } else {
        await database(ask);
      }
    } catch (error) {
      sendError(res, error);
    }
  };

  async function server({req, res, user, parts, method, query}) {
    const route = `${method} /${parts[0] || ''}`;
    switch (route) {
      case 'GET /': return sendJson(res, 200, WELCOME);
      case 'GET /_up': return sendJson(res, 200, {status: 'ok', seeds: {}});
      case 'GET /_uuids': return sendJson(res, 200, {uuids: uuids(query.count)});
      case 'POST /_session': return logIn(req, res);
      case 'GET /_session':
        return sendJson(res, 200, {ok: true, userCtx: user, info: {authentication_handlers: ['cookie', 'default'], authenticated: user.name ? 'default' : undefined}});
      case 'DELETE /_session': return sendJson(res, 200, {ok: true}, {'Set-Cookie': 'AuthSession=; Version=1; Path=/; HttpOnly; SameSite=Strict; Max-Age=0'});
    }
    requireServerAdmin(user);
    if (method === 'PUT' && parts.length === 1) await databases.create(parts[0]);
    switch (route) {
      case 'GET /_all_dbs': return sendJson(res, 200, databases.names());
      case 'POST /_dbs_info': {
        const {keys = []} = (await readJson(req)) || {};
        const infos = keys.map(async (key) => ({key, info: await databases.info(key).catch(() => undefined)}));
        return sendJson(res, 200, await Promise.all(infos));
      }
      case 'GET /_dbs_info': return sendJson(res, 200, await Promise.all(databases.names().map(async (key) => ({key, info: await databases.info(key)}))));
      case 'GET /_membership': return sendJson(res, 200, {all_nodes: ['nonode@nohost'], cluster_nodes: ['nonode@nohost']});
      case 'GET /_node': {
        const found = parts[2] === '_config' && parts.slice(3).reduce((section, name) => section && section[name], CONFIG);
        if (!found) throw new HttpError(404, 'not_found', 'unknown_config_value');
        return sendJson(res, 200, found);
      }
      case 'POST /_replicate': return stock(req, res, null, user);
      default: throw new HttpError(404, 'not_found', 'missing');
    }
  }

  async function logIn(req, res) {
    const form = /urlencoded/.test(req.headers['content-type'] || '');
    const chunks = [];
    if (form) for await (const chunk of req) chunks.push(chunk);
    const body = form ? Object.fromEntries(new URLSearchParams(Buffer.concat(chunks).toString())) : (await readJson(req)) || {};
    const user = await accounts.logIn(String(body.name ?? body.username), String(body.password));
    sendJson(res, 200, {ok: true, ...user}, {'Set-Cookie': await accounts.cookieFor(user.name)});
  }

  async function database(ask) {
    const {req, res, user, parts, method} = ask;
    const name = parts[0];
    if (parts.length === 1 && method === 'PUT') {
      requireServerAdmin(user);
      await databases.create(name);
      return sendJson(res, 201, {ok: true});
    }
    if (parts.length === 1 && method === 'DELETE') {
      requireServerAdmin(user);
      await databases.remove(name);
      return sendJson(res, 200, {ok: true});
    }
    const found = databases.get(name);
    answerWhenGone(found, res);
    const security = await found.getSecurity();
    if (name === '_users') requireOwnUser(ask);
    else requireMember(user, security);
    if (parts.length === 1 && method === 'GET') return sendJson(res, 200, await databases.info(name));
    if (parts.length === 1 && method === 'POST') return created(res, await writeOne(found, user, (await readJson(req, 'document')) ?? null));
    if (parts.length === 1) throw new HttpError(405, 'method_not_allowed', 'Only DELETE,GET,HEAD,POST,PUT allowed');
    const words = ['_design', '_local'].includes(parts[1]) ? 3 : 2; // of an id
    if (parts[1].startsWith('_') && words === 2) {
      if (await special(ask, found, security)) return;
    } else if (parts[1] === '_design' && ['_view', '_info'].includes(parts[3])) {
      if (await view(ask, found)) return;
    } else if (parts.length === words) {
      if (await document(ask, found)) return;
    } else {
      await attachment(ask, found, security, parts.slice(1, words).join('/'), parts.slice(words).join('/'));
    }
    stock(req, res, found, user, security);
  }

  // PouchDB never ends what was under way when a database is removed.
  function answerWhenGone(found, res) {
    const gone = () => {
      if (!res.headersSent) sendError(res, new HttpError(404, 'not_found', 'Database does not exist.'));
    };
    found.writes.once('gone', gone);
    res.on('close', () => found.writes.off('gone', gone));
  }

  // An attachment is stored by the stock layer, once it is known that this user may change the document.
  async function attachment({user, method, query, req}, found, security, id, name) {
    if (!['GET', 'PUT', 'DELETE'].includes(method)) throw new HttpError(405, 'method_not_allowed', 'Only DELETE,GET,HEAD,PUT allowed');
    if (id.startsWith('_design/') && method !== 'GET') requireDatabaseAdmin(user, security);
    if (method !== 'GET') await checkAttachment(found, user, id, name, method, req.headers['content-type']);
  }

  // In the users database everybody reads and writes his own document; the rest is the administrator's.
  function requireOwnUser({user, parts}) {
    if (!isServerAdmin(user) && !(user.name && parts[1] === 'org.couchdb.user:' + user.name)) requireServerAdmin(user);
  }

  // Requests on /db/_something; true where it was answered.
  async function special({req, res, user, parts, method, query}, found, security) {
    const body = method === 'POST' && ['_bulk_docs', '_bulk_get', '_all_docs', '_design_docs', '_changes'].includes(parts[1]) ? await readJson(req, parts[1] === '_bulk_docs' ? 'documents' : '') : undefined;
    switch (`${method} ${parts.slice(1).join('/')}`) {
      case 'GET _security': return done(res, 200, security);
      case 'PUT _security':
        requireDatabaseAdmin(user, security);
        await found.putSecurity((await readJson(req)) || {});
        return done(res, 200, {ok: true});
      case 'POST _bulk_docs':
        if (!body || !Array.isArray(body.docs)) throw new HttpError(400, 'bad_request', 'POST body must include `docs` parameter.');
        return done(res, 201, await writeMany(found, user, body.docs, body.new_edits !== false));
      case 'POST _bulk_get':
        if (!body || !Array.isArray(body.docs)) throw new HttpError(400, 'bad_request', 'Missing JSON list of \'docs\'.');
        return done(res, 200, {results: await readMany(found, body.docs, query)});
      case 'GET _all_docs':
      case 'POST _all_docs': return done(res, 200, await allDocs(found, {...query, ...body}));
      case 'POST _all_docs/queries': return done(res, 200, await perQuery(await readJson(req), (one) => allDocs(found, one)));
      case 'GET _design_docs':
      case 'POST _design_docs': return done(res, 200, await designDocs(found, {...query, ...body}));
      case 'GET _changes':
      case 'POST _changes':
        await changes(req, res, found, {...query, ...body});
        return true;
      case 'POST _ensure_full_commit': return done(res, 201, {ok: true, instance_start_time: databases.startTime});
      case 'GET _revs_limit': return done(res, 200, 1000);
      case 'PUT _revs_limit':
        requireDatabaseAdmin(user, security);
        return done(res, 200, {ok: true});
      case 'POST _compact':
        requireDatabaseAdmin(user, security);
        await found.pouch.compact();
        return done(res, 202, {ok: true});
      default:
        if (!STOCK.includes(`${method} ${parts[1]}`)) throw new HttpError(404, 'not_found', 'missing');
        if (['POST _index', 'POST _view_cleanup'].includes(`${method} ${parts[1]}`)) requireDatabaseAdmin(user, security);
        return false;
    }
  }

  async function view({req, res, parts, method, query}, found) {
    const [, , ddoc, kind, name, queries] = parts;
    if (kind === '_info') return false;
    const body = method === 'POST' ? await readJson(req) : undefined;
    if (queries === 'queries') return done(res, 200, await perQuery(body, (one) => viewRows(found, ddoc, name, one)));
    return done(res, 200, await viewRows(found, ddoc, name, {...query, ...body}));
  }

  async function document({req, res, user, parts, method, query}, found) {
    const id = parts.slice(1).join('/');
    const ifMatch = (req.headers['if-match'] || '').replaceAll('"', '') || undefined;
    switch (method) {
      case 'GET': {
        const doc = await found.pouch.get(id, {...query, rev: query.rev && String(query.rev)});
        return done(res, 200, doc, doc._rev ? {ETag: `"${doc._rev}"`} : {});
      }
      case 'PUT': {
        if (/^multipart/i.test(req.headers['content-type'] || '')) throw new HttpError(415, 'bad_content_type', 'The embedded server takes no multipart documents: send attachments inline.');
        const doc = await readJson(req, 'document');
        if (doc === undefined || doc === null || typeof doc !== 'object' || Array.isArray(doc)) throw new HttpError(400, 'bad_request', 'Document must be a JSON object');
        if (doc._id !== undefined && doc._id !== id) throw new HttpError(400, 'bad_request', 'Document ID must match the one in the URL');
        doc._id = id;
        const rev = query.rev ?? ifMatch;
        if (rev !== undefined) doc._rev = String(rev);
        const options = query.new_edits === false ? {new_edits: false} : {};
        return created(res, await writeOne(found, user, doc, options));
      }
      case 'DELETE': return done(res, 200, await remove(found, user, id, query.rev ?? ifMatch));
      default: throw new HttpError(405, 'method_not_allowed', 'Only DELETE,GET,HEAD,PUT allowed');
    }
  }

  function created(res, answer) {
    return done(res, 201, answer, {ETag: `"${answer.rev}"`});
  }

  function done(res, status, body, headers) {
    sendJson(res, status, body, headers);
    return true;
  }
}

module.exports = {createHandler};
