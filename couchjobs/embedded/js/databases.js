// The databases of the server: names, creation, removal, security, and a signal for each write.
// A file is named after its database with "/" written as "~", which no database name can hold,
// so that two databases never share a file.
'use strict';

const fs = require('fs');
const path = require('path');
const {setTimeout} = require('timers/promises');
const {EventEmitter} = require('events');
const PouchDB = require('pouchdb-core');
const {HttpError} = require('./answers');

PouchDB.plugin(require('pouchdb-adapter-memory'))
  .plugin(require('pouchdb-adapter-leveldb'))
  .plugin(require('pouchdb-adapter-http'))
  .plugin(require('./mapreduce'))
  .plugin(require('pouchdb-replication'))
  .plugin(require('pouchdb-find'));

const LEGAL_NAME = /^(_users|_replicator|_global_changes|[a-z][a-z0-9_$()+/-]*)$/;
const ONLY_ADMINISTRATORS = {members: {roles: ['_admin']}, admins: {roles: ['_admin']}};
// Changes at a time of a view that is brought up to date. PouchDB's 50 take two thirds of the time for all of them, and
// others wait for each: two writes took 142 ms (p99) while 15,000 jobs were indexed in 3.1 s, and take 57 ms in 4.4 s.
const INDEXED_TOGETHER = 10;
// Of a view that is far behind, a tenth of what is missing, up to so many: else it may never come up to date where
// thousands of changes come in a second. While others write, they have their turn before each such part, for as long as it
// takes: with three times that, 500 jobs a second were more than was indexed.
const MOST_INDEXED_TOGETHER = 100;
const TURN_OF_OTHERS_MS = 0.2; // for each change
const REGISTRY = '~databases';

// PouchDB answers nothing for an edit that a document had already before it was deleted, stumbles over that, and its
// database answers no more. For CouchDB that is a conflict.
function answerAll(pouch) {
  const inner = pouch._bulkDocs.bind(pouch);
  pouch._bulkDocs = (request, options, callback) => inner(request, options, (error, answers) => {
    const conflict = () => Object.assign(new Error('Document update conflict.'), {status: 409, name: 'conflict', error: true});
    callback(error, answers && Array.from(request.docs, (_, index) => answers[index] || conflict()));
  });
  return pouch;
}

function indexInParts(database) {
  const {pouch} = database;
  const changes = pouch.changes.bind(pouch);
  let writes = 0; // as many as there were before the last part
  pouch.changes = (options, ...more) => {
    const indexes = options && options.conflicts && options.limit === INDEXED_TOGETHER && !options.query_params;
    if (!indexes) return changes(options, ...more);
    return pouch.info().then(async ({update_seq: present}) => {
      const part = Math.min(MOST_INDEXED_TOGETHER, Math.ceil((present - options.since) / 10));
      if (part <= INDEXED_TOGETHER) return changes(options);
      if (database.writeCount !== writes) await setTimeout(part * TURN_OF_OTHERS_MS);
      writes = database.writeCount;
      return changes({...options, limit: part});
    });
  };
}

class Database {
  constructor(name, pouch) {
    this.name = name;
    this.pouch = pouch;
    this.startTime = '0'; // when it was made, which tells it from one of its name before it
    this.writes = new EventEmitter(); // "write" after each write, "gone" when the database is deleted
    this.writes.setMaxListeners(0);
    this.writeCount = 0;
    this.validators = null; // compiled validate_doc_update functions; null: to be read again
    this.security = null;
  }

  written(ids) {
    if (ids.some((id) => typeof id === 'string' && id.startsWith('_design/'))) this.validators = null;
    this.writeCount += 1;
    this.writes.emit('write');
  }

  async getSecurity() {
    if (!this.security) {
      const stored = await this.pouch.get('_local/_security').catch(() => null);
      this.security = stored ? stored.security : ONLY_ADMINISTRATORS;
    }
    return this.security;
  }

  async putSecurity(security) {
    const old = await this.pouch.get('_local/_security').catch(() => ({}));
    await this.pouch.put({_id: '_local/_security', _rev: old._rev, security});
    this.security = security;
  }
}

class Databases {
  constructor(directory) {
    const all = {auto_compaction: false, view_update_changes_batch_size: INDEXED_TOGETHER};
    const options = directory
      ? {prefix: path.join(directory, 'databases') + path.sep, adapter: 'leveldb', ...all}
      : {adapter: 'memory', ...all};
    if (directory) fs.mkdirSync(options.prefix, {recursive: true});
    this.PouchDB = PouchDB.defaults(options);
    this.open_ = new Map();
    this.changing = new Map(); // name -> promise of the creation or removal under way
    this.startTime = String(Date.now() * 1000);
  }

  async open() {
    this.registry = new this.PouchDB(REGISTRY);
    const {rows} = await this.registry.allDocs({include_docs: true});
    for (const {id, doc} of rows) this.load(id.slice(3), doc.made);
  }

  async close() {
    for (const database of this.open_.values()) database.writes.emit('gone');
    await Promise.allSettled([...this.open_.values()].map((database) => database.pouch.close()));
    await this.registry.close();
  }

  load(name, made) {
    const database = new Database(name, answerAll(new this.PouchDB(Databases.fileName(name))));
    indexInParts(database);
    database.startTime = String(made || 0);
    this.open_.set(name, database);
    return database;
  }

  static fileName(name) {
    return name.replaceAll('/', '~');
  }

  names() {
    return [...this.open_.keys()].sort();
  }

  get(name) {
    const database = this.open_.get(name);
    if (!database) throw new HttpError(404, 'not_found', 'Database does not exist.');
    return database;
  }

  // Creations and removals of one name follow one another; a failure of one does not fail the next.
  oneAfterAnother(name, change) {
    const done = (this.changing.get(name) || Promise.resolve()).catch(() => {}).then(change);
    this.changing.set(name, done);
    return done.finally(() => {
      if (this.changing.get(name) === done) this.changing.delete(name);
    });
  }

  create(name) {
    if (!LEGAL_NAME.test(name)) {
      throw new HttpError(400, 'illegal_database_name', `Name: '${name}'. Only lowercase characters (a-z), digits (0-9), and any of the characters _, $, (, ), +, -, and / are allowed. Must begin with a letter.`);
    }
    return this.oneAfterAnother(name, async () => {
      if (this.open_.has(name)) throw new HttpError(412, 'file_exists', 'The database could not be created, the file already exists.');
      const made = process.hrtime.bigint().toString() + Date.now();
      await this.registry.put({_id: 'db_' + name, made});
      await this.load(name, made).pouch.info();
    });
  }

  async ensure(name) {
    if (!this.open_.has(name)) await this.create(name);
  }

  remove(name) {
    return this.oneAfterAnother(name, async () => {
      const database = this.get(name);
      this.open_.delete(name);
      database.writes.emit('gone');
      await this.registry.remove(await this.registry.get('db_' + name));
      await database.pouch.destroy();
      const stockCache = this.PouchDB.__dbCacheMap; // express-pouchdb keeps its own objects, destroyed ones too
      if (stockCache) stockCache.delete(Databases.fileName(name));
    });
  }

  async info(name) {
    const database = this.get(name);
    const info = await database.pouch.info();
    return {
      db_name: name,
      doc_count: info.doc_count,
      doc_del_count: 0,
      update_seq: `${info.update_seq}-${database.startTime}`,
      purge_seq: 0,
      compact_running: false,
      disk_format_version: 8,
      sizes: {file: 0, external: 0, active: 0},
      props: {},
      cluster: {q: 1, n: 1, w: 1, r: 1},
      instance_start_time: database.startTime,
    };
  }
}

module.exports = {Databases};
