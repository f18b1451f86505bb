// The embedded server: what a CouchDB client needs, over PouchDB, on one port of 127.0.0.1.
// main reads the settings, starts the server, says so on stdout in one line of JSON, and ends
// when its standard input closes, which is what happens when the parent process ends.
// Settings (environment): COUCHJOBS_EMBEDDED = {"data": DIR or null, "port": N, "user", "password"}.
'use strict';

const http = require('http');
const {Databases} = require('./databases');
const {Accounts} = require('./accounts');
const {createHandler} = require('./routes');

async function main() {
  const settings = JSON.parse(process.env.COUCHJOBS_EMBEDDED);
  delete process.env.COUCHJOBS_EMBEDDED;
  const databases = new Databases(settings.data);
  await databases.open();
  for (const name of ['_users', '_replicator']) await databases.ensure(name);
  const accounts = new Accounts(databases, settings.user, settings.password);
  const server = http.createServer(createHandler(databases, accounts));
  server.keepAliveTimeout = 65000;
  server.requestTimeout = 0;

  let ending = false;
  const end = () => {
    if (ending) return;
    ending = true;
    server.close();
    server.closeAllConnections();
    databases.close().finally(() => process.exit(0));
  };
  process.stdin.resume();
  process.stdin.on('end', end);
  process.stdin.on('error', end);
  process.on('SIGTERM', end);
  process.on('SIGINT', () => {}); // Ctrl-C reaches the whole group: the parent decides when to end us

  server.on('error', (error) => {
    process.stdout.write(JSON.stringify({error: error.code || error.message}) + '\n');
    process.exit(1);
  });
  server.listen(settings.port, '127.0.0.1', () => {
    process.stdout.write(JSON.stringify({port: server.address().port}) + '\n');
  });
}

// One bad request must not end the server: PouchDB rejects promises that nobody waits for.
process.on('unhandledRejection', (error) => console.error('unhandled rejection:', error));
process.on('uncaughtException', (error) => console.error('uncaught exception:', error));
main();
