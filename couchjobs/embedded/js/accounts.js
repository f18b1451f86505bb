// Who is asking, and may he? Basic credentials, session cookies, the users database, _security.
'use strict';

const crypto = require('crypto');
const {HttpError} = require('./answers');

const ITERATIONS = 1000; // low on purpose: this server is reached from this machine alone
const SESSION_S = 600;
const NOBODY = {name: null, roles: []};

const digest = (text) => crypto.createHash('sha256').update(text).digest();
const same = (one, other) => crypto.timingSafeEqual(digest(one), digest(other));
const derive = (password, salt, iterations) => crypto.pbkdf2Sync(password, salt, iterations, 32, 'sha256').toString('hex');

class Accounts {
  constructor(databases, user, password) {
    this.databases = databases;
    this.user = user;
    this.password = password;
    this.secret = crypto.randomBytes(32);
    this.proved = new Map(); // digest of name, password and revision of the user -> true: pbkdf2 once, not a request
  }

  async identify(req) {
    const [scheme, value] = (req.headers.authorization || '').split(' ');
    if (/^basic$/i.test(scheme) && value) {
      const text = Buffer.from(value, 'base64').toString('utf8');
      const colon = text.indexOf(':');
      return this.logIn(text.slice(0, colon), text.slice(colon + 1));
    }
    const cookie = /(?:^|;\s*)AuthSession=([^;]*)/.exec(req.headers.cookie || '');
    return cookie && cookie[1] ? this.fromCookie(cookie[1]) : NOBODY;
  }

  async logIn(name, password) {
    if (name === this.user) {
      if (same(password, this.password)) return {name, roles: ['_admin']};
    } else {
      const user = await this.find(name);
      if (user && user.derived_key) {
        const proof = digest(JSON.stringify([name, password, user._rev])).toString('hex');
        if (this.proved.has(proof) || same(derive(password, user.salt, user.iterations), user.derived_key)) {
          this.proved.set(proof, true);
          return {name, roles: user.roles || []};
        }
      }
    }
    throw new HttpError(401, 'unauthorized', 'Name or password is incorrect.');
  }

  find(name) {
    return this.databases.get('_users').pouch.get('org.couchdb.user:' + name).catch(() => null);
  }

  sign(name, time, user) {
    const salt = user ? user.salt : ''; // a new password has a new salt: it ends the sessions of the old one
    return crypto.createHmac('sha256', this.secret).update(`${name}:${time}:${salt}`).digest('hex');
  }

  async cookieFor(name) {
    const time = Math.floor(Date.now() / 1000).toString(16);
    const user = name === this.user ? null : await this.find(name);
    const value = Buffer.from(`${name}:${time}:${this.sign(name, time, user)}`).toString('base64url');
    return `AuthSession=${value}; Version=1; Path=/; HttpOnly; SameSite=Strict`;
  }

  async fromCookie(value) {
    const parts = Buffer.from(value, 'base64url').toString('utf8').split(':');
    const [signature, time] = [parts.pop(), parts.pop()];
    const name = parts.join(':');
    const age = Date.now() / 1000 - parseInt(time, 16);
    const user = name === this.user ? null : await this.find(name);
    if (name !== this.user && !user) throw new HttpError(401, 'unauthorized', 'The user does not exist.');
    if (time === undefined || !same(signature, this.sign(name, time, user)) || !(age < SESSION_S)) {
      throw new HttpError(401, 'unauthorized', 'The session has ended, or is not one of this server.');
    }
    return user ? {name, roles: user.roles || []} : {name, roles: ['_admin']};
  }
}

const isServerAdmin = (user) => user.roles.includes('_admin');

function listed(user, section = {}) {
  return (section.names || []).includes(user.name) || (section.roles || []).some((role) => user.roles.includes(role));
}

function refuse(user, reason) {
  throw user.name ? new HttpError(403, 'forbidden', reason) : new HttpError(401, 'unauthorized', reason);
}

function requireServerAdmin(user) {
  if (!isServerAdmin(user)) refuse(user, 'You are not a server admin.');
}

function requireDatabaseAdmin(user, security) {
  if (!isServerAdmin(user) && !listed(user, security.admins)) refuse(user, 'You are not a db or server admin.');
}

function requireMember(user, security) {
  const members = security.members || {};
  const open = !(members.names || []).length && !(members.roles || []).length;
  if (open || isServerAdmin(user) || listed(user, security.admins) || listed(user, members)) return;
  refuse(user, 'You are not allowed to access this db.');
}

// What a document of the users database becomes before it is stored.
function withHashedPassword(doc) {
  if (typeof doc.password !== 'string') return doc;
  const {password, ...rest} = doc;
  const salt = crypto.randomBytes(16).toString('hex');
  return {...rest, password_scheme: 'pbkdf2', pbkdf2_prf: 'sha256', salt, iterations: ITERATIONS, derived_key: derive(password, salt, ITERATIONS)};
}

module.exports = {Accounts, isServerAdmin, requireServerAdmin, requireDatabaseAdmin, requireMember, withHashedPassword};
