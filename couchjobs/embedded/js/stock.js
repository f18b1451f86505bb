// The stock HTTP layer, express-pouchdb, for what the layer above it has no own answer to:
// _find, _index, _replicate, _revs_diff, attachments. It never sees a request that it dies on.
'use strict';

const expressPouch = require('express-pouchdb');
const {Databases} = require('./databases');

const PARTS = ['routes/find', 'routes/replicate', 'routes/ddoc-info'];

function createStock(databases) {
  const app = expressPouch(databases.PouchDB, {mode: 'minimumForPouchDB', overrideMode: {
    include: PARTS,
    exclude: ['compression'],
  }});
  return (req, res, database, user, security) => {
    const [path, query] = req.url.split('?');
    const parts = path.split('/');
    if (database) parts[1] = encodeURIComponent(Databases.fileName(database.name));
    req.url = parts.join('/') + (query === undefined ? '' : '?' + query);
    req.couchSession = {userCtx: user};
    req.couchSecurityObj = security;
    if (!/json/.test(req.headers.accept || '')) req.headers.accept = 'application/json';
    if (req.method === 'POST' && !/^multipart/.test(req.headers['content-type'] || '')) req.headers['content-type'] = 'application/json';
    res.on('finish', () => {
      for (const name of databases.names()) databases.get(name).written(['_design/']);
    });
    app(req, res);
  };
}

module.exports = {createStock};
